"""The stop button during training: it ends the training, keeps the best, and lets the graph go on with it."""

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as memory

from reneg_core.training.run import Stopped

from .feedback import Progress


class StopButton:
    """Takes the host's stop request for itself, so that what follows the training still runs; pressed again during
    what follows, the button stops that as usual.

    Older hosts only set a flag, which is polled; newer ones also raise their interruption out of any operation of a
    network. Used as a context: what was stopped before there was anything to keep is stopped as usual.
    """

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> "StopButton":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is Stopped:
            raise memory.InterruptProcessingException from None

    def asked(self) -> bool:
        """Whether stop was pressed since the beginning."""
        if memory.processing_interrupted():
            memory.interrupt_current_processing(False)
            self.pressed = True
        return self.pressed

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Around operations of the host: an interruption that they raise becomes ``Stopped``."""
        try:
            yield
        except memory.InterruptProcessingException:
            self.pressed = True
            raise Stopped from None

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """The same, and nothing begins once stop was pressed."""
        if self.asked():
            raise Stopped
        with self.taken():
            yield

    def update(self, progress: Progress, done: int, picture: object = None, *, always: bool = False) -> None:
        """Move the bar; the host checks its stop request there too, which is taken like any other."""
        try:
            progress.update(done, picture, always=always)
        except memory.InterruptProcessingException:
            self.pressed = True
