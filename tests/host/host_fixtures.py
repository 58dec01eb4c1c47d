"""Every ComfyUI at hand for all tests that need one; without any they skip and say so in one loud line."""

from collections.abc import Iterator
from pathlib import Path

import graphs
import hosting
import pytest

HOSTS = hosting.find_hosts()


@pytest.fixture(scope="session", params=HOSTS or [None], ids=[*map(hosting.version_of, HOSTS)] or ["none"])
def host(request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A checkout and the Python that runs it."""
    python = request.param and hosting.find_python(request.param)
    if not python:
        pytest.skip(hosting.MISSING if not HOSTS else f"NO PYTHON runs {request.param}: see COMFYUI_PYTHON")
    return request.param, python


@pytest.fixture(scope="session")
def base(host: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base directory with the test checkpoints and the pack installed."""
    return hosting.base_directory(tmp_path_factory.mktemp("comfy"), hosting.models_folder(*host))


@pytest.fixture(scope="session")
def server(host: tuple[Path, str], base: Path) -> Iterator[hosting.Server]:
    """The running server, with the files the example workflows name."""
    running = hosting.start_server(*host, base)
    graphs.prepare(base)
    yield running
    running.stop()
