"""What a training will take, measured on parts of its own first steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from .memory import micro_batches
from .trainer import Trainer

T = TypeVar("T")
PARTS, SECONDS = 8, 30.0  # of each kind: at most so many are timed, and no new one is begun after so long


@dataclass(frozen=True)
class Rehearsal:
    """step, validation: seconds of one, from the mean of ``parts`` and ``validation_parts`` timed micro-batches after a
    first that was not counted; micro_batch: the size that fitted; kept: bytes that one sample's graph holds besides
    the weights; peak: bytes on the accelerator, 0 elsewhere.
    """

    step: float
    validation: float
    parts: int
    validation_parts: int
    micro_batch: int
    kept: int
    peak: int

    def seconds(self, trainer: Trainer) -> float:
        """Of what is left of the run, all validations counted; loading and writing not."""
        left = trainer.config.steps - trainer.progress.step
        return left * self.step + (1 + left // trainer.config.validate_every) * self.validation


def rehearse(trainer: Trainer, parameters: list[torch.nn.Parameter]) -> Rehearsal:
    """Check all that a run checks, then time micro-batches of its first steps and of its validation; writes nothing.

    parameters: of the networks, which a graph only refers to. Errors: those of :meth:`Trainer.prepare`.
    """
    return trainer.inside(lambda: _measured(trainer, parameters))


def _measured(trainer: Trainer, parameters: list[torch.nn.Parameter]) -> Rehearsal:
    trainer.prepare()
    config = trainer.config
    kept = _kept(lambda: trainer.part_gradient(trainer.progress.step, range(1)), parameters)
    size = _fitting(trainer)
    parts = [_timed(lambda s=step: _passes(trainer, s, size)) for step in _while_short(trainer.progress.step)]
    rows = range(min(size, config.validation_pairs))
    checks = [_timed(lambda: trainer.validator.part(trainer.model, trainer.negative(), rows)) for _ in range(2)]
    share = len(trainer.session.workers.share(range(config.batch_size)))
    return Rehearsal(0, 0, 0, 0, size, kept, 0)
