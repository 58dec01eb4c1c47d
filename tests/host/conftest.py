"""What the host tests share; see ``host_fixtures.py``."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import hosting
from host_fixtures import base, host, server  # noqa: F401

collect_ignore = ["inside"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.host)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if any("NO COMFYUI FOUND" in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(hosting.MISSING, red=True, bold=True)
