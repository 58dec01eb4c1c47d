"""Means with bootstrap intervals for scores of (prompt, seed) pairs.

Pictures of one prompt resemble each other, so pairs are no independent draws: whole prompts are resampled (cluster
bootstrap, Field & Welsh 2007) and the interval speaks about other prompts of the same kind.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 4000
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its percentile interval ``(low, high)``; the interval is None where one pair is all there is."""

    value: float
    interval: tuple[float, float] | None

    def excludes(self, number: float) -> bool:
        """Whether the whole interval lies on one side of ``number``."""
        return self.interval is not None and not self.interval[0] <= number <= self.interval[1]


def estimate(values: ArrayLike, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Mean of ``values [prompts, seeds]`` with its cluster-bootstrap percentile interval.

    Rows are resampled with replacement; with a single prompt its seeds are, and the interval then speaks about other
    seeds of that prompt only. The same arguments give the same interval. Percentile intervals are too short for few
    prompts: below about 20 they cover less often than ``confidence`` says.
    Errors: ValueError for an empty array, one that is not two-dimensional, NaN or infinite values, or settings
    outside their range.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"Got scores of shape {list(table.shape)}, expected [prompts, seeds] with at least one pair.")
    if not np.isfinite(table).all():
        raise ValueError(f"Got {int((~np.isfinite(table)).sum())} NaN or infinite scores, expected finite numbers.")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"Got confidence {confidence} and {resamples} resamples, expected 0 < confidence < 1 and >= 1."
        )
    clusters = table.mean(axis=1) if len(table) > 1 else table[0]
    return Estimate(float(table.mean()), _interval(clusters, confidence, resamples, seed))


def decimals(estimates: Iterable[Estimate]) -> int:
    """Decimal places, 0 to 6, that show two significant digits of the narrowest interval's half-width.

    Intervals of rounding size count as none; 3 places without any.
    """
    widths = [(e.interval[1] - e.interval[0]) / 2 for e in estimates if e.interval]
    widths = [width for width in widths if width > 1e-9]
    return min(6, max(0, 1 - math.floor(math.log10(min(widths))))) if widths else 3


def wins(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """1 where ``first`` is higher, 0 where ``second`` is, 0.5 for a tie; same shape as both."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return (np.sign(difference) + 1) / 2


def _interval(clusters: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float] | None:
    count = len(clusters)
    if count == 1:
        return None
    generator: Any = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    sizes = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    means = [clusters[generator.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)
