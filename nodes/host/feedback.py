"""What the user sees while a node works: bar, picture, a line of text; and the stop button."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import comfy.model_management
import comfy.utils
from PIL.Image import Image

from .probing import running_server

PREVIEW_SIDE = 1024
PREVIEW_SECONDS = 0.5
Passing = Callable[[], AbstractContextManager[None]]
"""A context around every use of a network of the host: it decides what the stop button does meanwhile."""


def say(text: str, node_id: str | None) -> None:
    """Show a line of text on the node; silent without a server (library use)."""
    server = running_server()
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)


@contextmanager
def stoppable() -> Iterator[None]:
    """Around operations of the host: the stop button raises the host's own interruption, on every version."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    yield


class DownloadWatch:
    """Shows a download on its node. Raises the host's interruption if the user pressed stop; what came is kept."""

    def __init__(self, node_id: str | None) -> None:
        self.node_id, self._bars, self._spoken = node_id, {}, 0.0

    def told(self, name: str, done: int, total: int) -> None:
        """So many bytes of a file have come, of so many in all (0: the server does not say)."""
        if name not in self._bars:
            self._bars[name] = Progress(max(total, 1))
        self._bars[name].update(min(done, max(total, 1)))
        if done == total or time.monotonic() - self._spoken >= PREVIEW_SECONDS:
            self._spoken = time.monotonic()
            whole = f" of {total / 1e6:,.0f}" if total else ""
            say(f"downloading {name}: {done / 1e6:,.0f}{whole} MB", self.node_id)


class Progress:
    """The node's bar, with a picture at most every half second (a picture passed with ``always`` is never dropped)."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._bar = comfy.utils.ProgressBar(total)
        self._last = 0.0

    def update(self, done: int, picture: Image | None = None, *, always: bool = False) -> None:
        """Set the bar to ``done`` of the total. Raises the host's interruption if the user pressed stop."""
        due = always or time.monotonic() - self._last >= PREVIEW_SECONDS
        preview = None
        if picture is not None and due:
            self._last = time.monotonic()
            preview = ("JPEG", picture, PREVIEW_SIDE)
        self._bar.update_absolute(done, self.total, preview)
