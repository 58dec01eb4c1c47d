"""How long the rest of a run will take, from what its last steps and validations took."""

from collections import deque
from statistics import fmean

from . import schedule
from .config import LoopConfig

RECENT = 16


class Pace:
    """Seconds of the last steps and validations of this process.

    step, validation: seconds to begin with, for example of a rehearsal; None where nothing is known.
    """

    def __init__(self, step: float | None = None, validation: float | None = None) -> None:
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._validations: deque[float] = deque(maxlen=RECENT)
        self._first = (step, validation)

    def add_step(self, seconds: float) -> None:
        self._steps.append(seconds)

    def add_validation(self, seconds: float) -> None:
        self._validations.append(seconds)

    @property
    def step(self) -> float | None:
        """Mean seconds of a step."""
        return fmean(self._steps) if self._steps else self._first[0]

    @property
    def validation(self) -> float | None:
        """Mean seconds of a validation."""
        return fmean(self._validations) if self._validations else self._first[1]

    def remaining(self, done: int, config: LoopConfig) -> float | None:
        """Seconds from step ``done``, just validated if that was due, to the end; None before anything is known."""
        if self.step is None:
            return None
        due = sum(schedule.validates(step, config) for step in range(done + 1, config.steps + 1))
        return (config.steps - done) * self.step + due * (self.validation or 0.0)


def most_steps(step: float, validation: float, limit: float, done: int, config: LoopConfig) -> int:
    """The most steps in all, up to ``config.steps``, that a run at step ``done`` finishes in ``limit`` seconds, a
    validation now and all later ones counted; at least one more than are done.

    step, validation: seconds of one.
    """
    every = config.validate_every
    for steps in range(done + 1, config.steps + 1):
        due = 1 + steps // every - done // every + (steps % every != 0)
        if (steps - done) * step + due * validation > limit:
            return max(done + 1, steps - 1)
    return config.steps
