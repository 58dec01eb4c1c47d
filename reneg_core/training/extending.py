"""Going on with another number of steps, or with more patience."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from . import schedule
from .config import LoopConfig
from .names import normalised
from .state import Progress


def go_on(progress: Progress, context: Mapping[str, Any], config: LoopConfig) -> list[str]:
    """Bring ``progress`` of the run of ``context`` under ``config``'s steps and patience; sentences on what changed.

    The learning rate is a function of the step and of ``config.steps`` alone (:func:`.schedule.learning_rate`): with
    another number of steps, each step from here on has the rate that it has in a run of that many steps. Steps already
    taken keep theirs, so that the result is not that of a run that had this number from the start; the change is noted
    in ``progress.changes``. A run that patience ended goes on when it gets more of it, or more steps, from which on
    validations without a new best are counted anew.
    """
    stored = normalised(context.get("settings", context))
    before, sentences = int(stored.get("steps", config.steps)), []
    if config.steps != before:
        progress.changes.append([progress.step, before, config.steps])
        if config.steps > before:
            progress.without_best = 0
        sentences.append(_changed(progress.step, before, config))
    progress.finished = bool(config.patience) and progress.without_best >= config.patience
    return sentences


def too_few(progress: Progress, config: LoopConfig) -> list[str]:
    """A sentence if ``config`` has fewer steps than were taken: that is another run."""
    if config.steps >= progress.step:
        return []
    return [f"steps: got {config.steps}, but the run has taken {progress.step} steps already. Try that number or more."]


def _changed(step: int, before: int, config: LoopConfig) -> str:
    was = schedule.learning_rate(replace(config, steps=before), step)
    now = schedule.learning_rate(config, step)
    return (
        f"steps: {before} before, {config.steps} from step {step} on. The learning rate goes on as in a run of "
        f"{config.steps} steps: {now:.4g} at the next step instead of {was:.4g}; the {step} steps taken keep theirs."
    )
