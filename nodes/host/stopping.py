"""The stop button during training: it ends the training, keeps the best, and lets the graph go on with it."""

import comfy.model_management as memory

from reneg_core.training.trainer import Stopped

from .feedback import Progress


class StopButton:
    """Takes the host's stop request for itself, so that what follows the training still runs; pressed again during
    what follows, the button stops that as usual."""

    def __init__(self) -> None:
        self.pressed = False

    def asked(self) -> bool:
        """Whether stop was pressed since the beginning."""
        if memory.processing_interrupted():
            memory.interrupt_current_processing(False)
            self.pressed = True
        return self.pressed

    def leave_step(self) -> None:
        """End the running step at once if stop was pressed."""
        if self.asked():
            raise Stopped

    def update(self, progress: Progress, done: int, picture: object = None, *, always: bool = False) -> None:
        """Move the bar; the host checks its stop request there too, which is taken like any other."""
        try:
            progress.update(done, picture, always=always)
        except memory.InterruptProcessingException:
            self.pressed = True
