"""The browser tests use the host tests' server, and a page of it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "host")]

from host_fixtures import base, host, server  # noqa: E402, F401
from page import ComfyPage, chromium, open_page  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def opened(server: Any) -> Iterator[ComfyPage]:  # noqa: F811
    """ComfyUI's page, open."""
    pytest.importorskip("playwright", reason="NO PLAYWRIGHT: the browser tests are skipped (pip install playwright)")
    if chromium() is None:
        pytest.skip("NO CHROMIUM: the browser tests are skipped")
    with open_page(server.url) as page:
        yield page
