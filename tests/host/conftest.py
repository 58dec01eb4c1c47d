"""One ComfyUI for all host tests; without one they skip and say so in one loud line."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hosting
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.host)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if any("NO COMFYUI FOUND" in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(hosting.MISSING, red=True, bold=True)


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
    running = hosting.start_server(*host, base)
    yield running
    running.stop()
    errors = [line for line in running.log.read_text().splitlines() if "reneg" in line.lower() and "Error" in line]
    if errors:
        warnings.warn(f"the server's log: {errors[:3]}", stacklevel=1)
