"""How long a stage of the tiny world's training lasts, and the average of its weights."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Budget:
    """How long a stage trains: ``steps`` optimizer steps, or ``minutes`` (0 = no limit) if that is sooner."""

    steps: int
    minutes: float = 0.0

    def run(self, step: Callable[[], Tensor], optimizer: torch.optim.Optimizer, after: Callable[[], None]) -> None:
        """Call ``step`` for a loss until the budget is used up, with 2 % warm-up and a cosine to zero."""
        start, peaks = time.time(), [group["lr"] for group in optimizer.param_groups]
        done, smooth = 0, None
        while (progress := self._progress(done, time.time() - start)) < 1:
            scale = min(1, progress / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * progress))
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * scale
            optimizer.zero_grad(set_to_none=True)
            loss = step()
            loss.backward()
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
            optimizer.step()
            after()
            done += 1
            smooth = loss.item() if smooth is None else 0.99 * smooth + 0.01 * loss.item()
            if done % 100 == 0:
                print(f"  step {done}, {time.time() - start:.0f} s, loss {smooth:.4f}", flush=True)

    def _progress(self, done: int, seconds: float) -> float:
        return max(done / self.steps, seconds / (60 * self.minutes) if self.minutes else 0.0)


class Average:
    """Exponential moving average of the weights of ``modules`` (decay 0.998, faster at the beginning)."""

    def __init__(self, modules: list[nn.Module], decay: float = 0.998) -> None:
        self.modules, self.decay, self.updates = modules, decay, 0
        self.shadow = [copy.deepcopy(module).requires_grad_(False) for module in modules]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the current weights."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        for module, shadow in zip(self.modules, self.shadow, strict=True):
            torch._foreach_lerp_(list(shadow.parameters()), list(module.parameters()), 1 - decay)
