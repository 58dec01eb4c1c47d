"""The browser tests use the host tests' server, and a page of it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "host")]

from host_fixtures import base, host, server  # noqa: E402, F401
from page import FIRST_WITH_NODES_2, ComfyPage, chromium, open_page  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session", params=["classic", "nodes2"])
def opened(server: Any, request: pytest.FixtureRequest) -> Iterator[ComfyPage]:  # noqa: F811
    """ComfyUI's page, open, with each of its two ways of drawing nodes."""
    pytest.importorskip("playwright", reason="NO PLAYWRIGHT: the browser tests are skipped (pip install playwright)")
    if chromium() is None:
        pytest.skip("NO CHROMIUM: the browser tests are skipped")
    with open_page(server.url, nodes_2=request.param == "nodes2") as page:
        if request.param == "nodes2" and page.version() < FIRST_WITH_NODES_2:
            pytest.skip(f"page {'.'.join(map(str, page.version()))} has no Nodes 2.0")
        yield page
