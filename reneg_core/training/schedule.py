"""Everything random or scheduled in a run as pure functions of the seed and the step, so that resuming is exact and
the result does not depend on how a batch is split over processes."""

import itertools
import math
import random
from collections.abc import Sequence
from functools import lru_cache

from ..sampling import Sampling
from ..seeds import derive_seed
from .config import LoopConfig, TrainConfig, recorded_passes


def learning_rate(config: LoopConfig, step: int) -> float:
    """Linear warm-up, then a cosine from ``config.learning_rate`` to 0 at ``config.steps``; step counts from 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def validates(step: int, config: LoopConfig) -> bool:
    """Whether a run validates once it has taken ``step`` steps."""
    return step % config.validate_every == 0 or step == config.steps


def gradient_points(window: tuple[int, int], points: int, *seed: object) -> list[int]:
    """``points`` step indices, one drawn evenly from each of ``points`` equal parts of the window."""
    first, last = window
    draw = random.Random(derive_seed("points", *seed))
    edges = [first + (last - first) * i // points for i in range(points + 1)]
    return [draw.randrange(low, high) for low, high in itertools.pairwise(edges)]


def spread_points(window: tuple[int, int], points: int, draws: int, *seed: object) -> list[list[int]]:
    """``draws`` times ``points`` step indices that together cover the window.

    Of one draw :func:`gradient_points`. Of several, each of the window's ``points`` equal parts is cut into ``draws``
    equal shares, which the draws take in an order that is drawn too, so that each is as evenly distributed as it is
    alone.
    """
    if draws == 1:
        return [gradient_points(window, points, *seed)]
    draw = random.Random(derive_seed("draws", *seed))
    first, last = window
    columns = []
    for part in range(points):
        low, high = (first + (last - first) * edge // points for edge in (part, part + 1))
        places = draw.sample(range(draws), draws)
        columns.append([min(high - 1, low + int((high - low) * (at + draw.random()) / draws)) for at in places])
    return [list(row) for row in zip(*columns, strict=True)]


def points_of(config: TrainConfig, sampling: Sampling, step: int, rows: Sequence[int]) -> list[list[int]]:
    """The gradient points of each of ``rows`` of the batch of ``step``, whose sampling is ``sampling``."""
    drawn = spread_points(config.window_of(sampling), config.points, config.draws, config.seed, step)
    return [drawn[row * config.draws // config.batch_size] for row in rows]


def recorded_steps(config: TrainConfig, step: int) -> int:
    """Denoising steps that the gradient of ``step`` passes through, from its earliest point."""
    sampling = config.jitter.draw(config.sampling, config.seed, step)
    points = points_of(config, sampling, step, range(config.batch_size))
    return recorded_passes(config.through, sampling.steps - min(map(min, points)))


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(derive_seed("order", seed, epoch)).shuffle(order)
    return tuple(order)


def prompt_index(count: int, seed: int, position: int) -> int:
    """Which of ``count`` prompts is the ``position``-th sample of the run: every epoch is a new permutation."""
    epoch, place = divmod(position, count)
    return _permutation(count, seed, epoch)[place]


def batch_prompts(prompts: Sequence[str], seed: int, step: int, batch_size: int, rows: Sequence[int]) -> list[str]:
    """The prompts of ``rows`` of the batch of ``step``."""
    return [prompts[prompt_index(len(prompts), seed, step * batch_size + row)] for row in rows]


def noise_seeds(seed: int, step: int, rows: Sequence[int]) -> list[int]:
    """A noise seed for each of ``rows`` of the batch of ``step``."""
    return [derive_seed("noise", seed, step, row) for row in rows]
