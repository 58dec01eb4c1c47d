"""What a run is judged by: the same (prompt, seed) pairs, sampled as the configuration says, every time."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import sample
from ..seeds import derive_seed
from .config import LoopConfig
from .judging import require_finite, score
from .state import Progress, clone
from .workers import Workers

PREVIEWS = 8

Parts = Callable[[range, Callable[[range], Any]], Iterable[Any]]
"""Calls a function on parts of a range of rows and yields what it returns, as memory allows."""


@dataclass(frozen=True)
class Found:
    """Mean rewards over all pairs of all processes, and this process's first pictures ``[n,3,H,W]`` (or None; of
    a video its judged frames)."""

    reward: float
    watch: float | None
    images: Tensor | None
    prompts: list[str]


@dataclass(frozen=True)
class Validator:
    """The pairs and the judges; ``watch`` is only measured."""

    prompts: Sequence[str]
    config: LoopConfig
    reward: Reward
    watch: Reward | None = None

    def pairs(self, rows: Sequence[int]) -> tuple[list[str], list[int]]:
        """Prompts and noise seeds of ``rows``: the same in every validation of every run with this seed."""
        prompts = [self.prompts[row % len(self.prompts)] for row in rows]
        return prompts, [derive_seed("validation", self.config.seed, row) for row in rows]

    @torch.no_grad()
    def run(self, model: DiffusionModel, negative: Conditioning, parts: Parts, workers: Workers) -> Found:
        """Sample every pair with ``negative`` and score the pictures.

        Errors: FloatingPointError for pictures or rewards that are no finite numbers.
        """
        count, sampling = self.config.validation_pairs, self.config.sampling
        sums, previews, shown = torch.zeros(2, dtype=torch.float64), [], []

        def work(rows: range) -> tuple[Tensor, Tensor, list[str]]:
            prompts, seeds = self.pairs(rows)
            noise = model.noise(seeds, sampling.size)
            latents = sample(model, model.encode(prompts), negative, noise, sampling)
            images = model.decode(latents, self.config.judged_frames)
            return self._sums(images, prompts), images.cpu(), prompts

        for part, images, prompts in parts(range(count), work):
            sums += part
            if len(shown) < PREVIEWS:
                previews.append(images)
                shown += prompts
        reward, watch = (workers.sum(sums) / count).tolist()
        images = torch.cat(previews)[:PREVIEWS] if previews else None
        return Found(reward, watch if self.watch else None, images, shown[:PREVIEWS])

    def _sums(self, images: Tensor, prompts: list[str]) -> Tensor:
        scores = [score(judge, images, prompts).cpu().double() for judge in (self.reward, self.watch) if judge]
        require_finite(self.reward, scores[0], prompts)
        return torch.stack([*(one.sum() for one in scores), torch.zeros((), dtype=torch.float64)][:2])


def judge(found: Found, tensors: dict[str, Tensor], progress: Progress, config: LoopConfig) -> bool:
    """Whether this validation is the best so far, noted in ``progress`` together with whether patience has run out.

    A watched reward that fell by more than ``config.watch_drop`` below its start, or is no number any more, vetoes the
    best. Errors: FloatingPointError for a watched reward that was none from the start.
    """
    progress.validated_at = progress.step
    if progress.start_reward is None:
        if found.watch is not None and not math.isfinite(found.watch):
            raise FloatingPointError(f"The watched reward is {found.watch} at the start. Expected a finite number.")
        progress.start_reward, progress.start_watch = found.reward, found.watch
    best = found.reward > progress.best_reward and not _hacked(found, progress, config)
    if best:
        progress.best, progress.best_reward, progress.best_step = clone(tensors), found.reward, progress.step
        progress.without_best = 0
    else:
        progress.without_best += 1
        progress.finished = bool(config.patience) and progress.without_best >= config.patience
    return best


def _hacked(found: Found, progress: Progress, config: LoopConfig) -> bool:
    if config.watch_drop is None or found.watch is None:
        return False
    return not found.watch >= progress.start_watch - config.watch_drop


def finite(value: float) -> float | None:
    """``value``, or None where there is none yet."""
    return value if math.isfinite(value) else None
