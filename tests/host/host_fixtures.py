"""One ComfyUI for all tests that need it; without one they skip and say so in one loud line."""

from collections.abc import Iterator
from pathlib import Path

import graphs
import hosting
import pytest


@pytest.fixture(scope="session")
def host() -> tuple[Path, str]:
    """The checkout and the Python that runs it."""
    folder = hosting.find_host()
    python = folder and hosting.find_python(folder)
    if not folder or not python:
        pytest.skip(hosting.MISSING)
    return folder, python


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
