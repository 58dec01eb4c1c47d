"""The factor on the reward that keeps half-precision gradients from vanishing; trainer and adaptation share it."""

from dataclasses import dataclass
from typing import Any

import torch

FP16_LOSS_SCALE = 1024.0
GROWTH = 100  # finite steps in a row after which a lowered scale is doubled again
MAX_SKIPPED = 5  # steps in a row without a finite gradient, at the lowest scale, before a run gives up


@dataclass
class LossScale:
    """value: the factor now; highest: the most it grows to; finite, skipped: steps in a row of each kind."""

    value: float = 1.0
    highest: float = 1.0
    finite: int = 0
    skipped: int = 0

    def update(self, finite: bool) -> None:
        """Take note of a step whose gradient was finite or was not: the latter halves the factor, down to 1."""
        self.finite, self.skipped = (self.finite + 1, 0) if finite else (0, self.skipped + 1)
        if not finite and self.value > 1:
            self.value, self.skipped = max(1.0, self.value / 2), 0
        elif self.finite and self.finite % GROWTH == 0:
            self.value = min(self.highest, self.value * 2)

    @property
    def hopeless(self) -> bool:
        """Whether lowering it has not helped."""
        return self.skipped >= MAX_SKIPPED


def loss_scale_for(model: Any) -> LossScale:
    """The scale to begin with: fp16 networks need one, others do not."""
    value = FP16_LOSS_SCALE if getattr(model, "dtype", None) == torch.float16 else 1.0
    return LossScale(value, value)
