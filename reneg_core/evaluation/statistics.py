"""Means with honest intervals for scores of (prompt, noise) pairs.

Pictures of one prompt resemble each other, and so do pictures that start from one noise: pairs are no independent
draws. Where every pair has a noise of its own, whole prompts are resampled with their pairs nested in them (cluster
bootstrap, Field & Welsh 2007). Where all prompts share the same noises, prompts and noises are resampled independently
of each other (two-way bootstrap of a crossed design, Owen 2007, arXiv 0712.1111).

Percentiles of either are too short for few prompts and far too short for few noises (with four noises they end at the
four means: at most 87 % of 95). So the bootstrap gives the interval its lopsidedness only, and the mean squares of the
analysis of variance give it its width, every component with the t quantile of its own degrees of freedom (Banerjee
1961). In simulations with normal effects (``benchmarks/coverage.py``), 95 % intervals of means, differences, win rates
and halves cover 94 to 96 % for 24 prompts and more. Two shared noises can tell so little that they cover nearly always,
and are wide. Beyond what four shared noises can show, coverage falls to about 90 %: for win rates and halves where the
noise matters more than the prompt, and where one noise in many spoils everything. Noises of their own have no such
limits.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 2000
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval ``(low, high)``; the interval is None where one pair is all there is."""

    value: float
    interval: tuple[float, float] | None

    def excludes(self, number: float) -> bool:
        """Whether the whole interval lies on one side of ``number``."""
        return self.interval is not None and not self.interval[0] <= number <= self.interval[1]


def estimate(
    values: ArrayLike, *, crossed: bool = False, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean of ``values [prompts, k]`` with its interval; see the module's text.

    crossed: column j is the same noise for every prompt; otherwise every entry has a noise of its own. The interval
    speaks about other prompts and other noises, with these exceptions: a single prompt's speaks about other noises of
    that prompt, a single shared noise's about other prompts from that noise. The same arguments give the same interval.
    Errors: ValueError for an empty array, one that is not two-dimensional, NaN or infinite values, or settings
    outside their range.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"Got scores of shape {list(table.shape)}, expected [prompts, k] with at least one pair.")
    if not np.isfinite(table).all():
        raise ValueError(f"Got {int((~np.isfinite(table)).sum())} NaN or infinite scores, expected finite numbers.")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"Got confidence {confidence} and {resamples} resamples, expected 0 < confidence < 1 and >= 1."
        )
    return Estimate(float(table.mean()), _interval(table, crossed, confidence, resamples, seed))


def share(
    values: ArrayLike, *, crossed: bool = False, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """:func:`estimate` for values in [0,1], such as wins: the interval stays there.

    Where all values are 0, or all are 1, nothing varies that could be resampled; the interval then ends where that many
    prompts (or shared noises, if they are fewer) would all agree by chance with half the error probability
    (Clopper & Pearson 1934).
    """
    table = np.asarray(values, dtype=np.float64)
    found = estimate(table, crossed=crossed, confidence=confidence, resamples=resamples)
    if found.interval is None:
        return found
    low, high = (min(1.0, max(0.0, end)) for end in found.interval)
    if low == high and found.value in (0, 1):
        prompts, noises = table.shape
        draws = noises if prompts == 1 else min(table.shape) if crossed and noises > 1 else prompts
        reach = ((1 - confidence) / 2) ** (1 / draws)
        low, high = (reach, 1.0) if found.value else (0.0, 1 - reach)
    return Estimate(found.value, (low, high))


def wins(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """1 where ``first`` is higher, 0 where ``second`` is, 0.5 for a tie; same shape as both."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return (np.sign(difference) + 1) / 2


def better_half(by: ArrayLike) -> np.ndarray:
    """Which pairs ``[prompts, k]`` belong to the half with the higher ``by``; an odd one out belongs to the lower."""
    order = np.argsort(np.asarray(by, dtype=np.float64), axis=None, kind="stable")
    chosen = np.zeros(order.size, dtype=bool)
    chosen[order[order.size - order.size // 2 :]] = True
    return chosen.reshape(np.shape(by))


def within(values: ArrayLike, chosen: ArrayLike, by: ArrayLike) -> np.ndarray:
    """Pseudo-values ``[prompts, k]`` whose mean is that of ``values`` over the ``chosen`` pairs, for :func:`estimate`.

    chosen: :func:`better_half` of ``by``, or the rest. They are the linearised ratio of sums (influence function): a
    chosen pair counts with what it adds to the half's mean, and every pair with what it adds by moving the border
    between the halves, where the value is the mean of the fifth of the pairs nearest to it. Without the latter,
    intervals of a half cover about 90 % where they say 95. Their deviations are scaled up for the two means taken from
    the chosen pairs.
    """
    values, chosen = np.asarray(values, dtype=np.float64), np.asarray(chosen, dtype=bool)
    part, mean = chosen.mean(), values[chosen].mean()
    order = np.argsort(np.asarray(by, dtype=np.float64), axis=None, kind="stable")
    border, reach = order.size - order.size // 2, max(1, order.size // 10)
    nearest = values.ravel()[order[max(0, border - reach) : border + reach]].mean()
    count = int(chosen.sum())
    scale = (count / max(count - 2, 1)) ** 0.5 / part
    return mean + scale * (chosen * (values - mean) + (chosen - part) * (mean - nearest))


def decimals(estimates: Iterable[Estimate]) -> int:
    """Decimal places, 0 to 6, that show two significant digits of the narrowest interval's half-width.

    Intervals of rounding size count as none; 3 places without any.
    """
    widths = [(e.interval[1] - e.interval[0]) / 2 for e in estimates if e.interval]
    widths = [width for width in widths if width > 1e-9]
    return min(6, max(0, 1 - math.floor(math.log10(min(widths))))) if widths else 3


def _interval(
    table: np.ndarray, crossed: bool, confidence: float, resamples: int, seed: int
) -> tuple[float, float] | None:
    if table.size == 1:
        return None
    if len(table) == 1:
        table, crossed = table.T, False
    mean, tail = table.mean(), (1 - confidence) / 2
    crossed = crossed and table.shape[1] > 1
    means = _two_way(table, resamples, seed) if crossed else _one_way(table.mean(axis=1), resamples, seed)
    low, high = np.quantile(means, [tail, 1 - tail]) - mean
    if high - low < 1e-12:
        return float(mean), float(mean)
    half = _crossed_half_width(table, 1 - tail) if crossed else _nested_half_width(table.mean(axis=1), 1 - tail)
    stretch = 2 * half / (high - low)
    return float(mean + stretch * low), float(mean + stretch * high)


def _one_way(clusters: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of resampled ``clusters [n]``."""
    count, generator = len(clusters), np.random.default_rng(seed)
    sizes = _sizes(resamples, count)
    return np.concatenate([clusters[generator.integers(count, size=(size, count))].mean(axis=1) for size in sizes])


def _two_way(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of ``table [n, k]`` with rows and columns resampled independently (Owen 2007's pigeonhole bootstrap)."""
    (rows, columns), generator, means = table.shape, np.random.default_rng(seed), []
    for size in _sizes(resamples, table.size):
        by_column = table[generator.integers(rows, size=(size, rows))].mean(axis=1)
        drawn = generator.integers(columns, size=(size, columns))
        means.append(np.take_along_axis(by_column, drawn, axis=1).mean(axis=1))
    return np.concatenate(means)


def _sizes(resamples: int, count: int) -> list[int]:
    """``resamples`` cut into parts whose ``count`` draws fit into memory."""
    most = max(1, _CHUNK // count)
    return [min(most, resamples - start) for start in range(0, resamples, most)]


def _nested_half_width(clusters: np.ndarray, probability: float) -> float:
    """Half the t interval of the mean of ``clusters [n]``."""
    count = len(clusters)
    return student_quantile(probability, count - 1) * float(clusters.std(ddof=1)) / count**0.5


def _crossed_half_width(table: np.ndarray, probability: float) -> float:
    """Half the interval of the mean of ``table [n, k]`` with row, column and residual effects.

    The squared t intervals of rows and columns add up; what residuals contribute to the columns is taken off, since the
    rows have it already, except with two columns, which cannot show that there is nothing else in them.
    """
    rows, columns = table.shape
    by_row, by_column = table.mean(axis=1), table.mean(axis=0)
    residual = table - by_row[:, None] - by_column[None] + table.mean()
    row_square, column_square = columns * by_row.var(ddof=1), rows * by_column.var(ddof=1)
    square = (residual**2).sum() / ((rows - 1) * (columns - 1))
    extra = max(column_square - square, square if columns == 2 else 0.0)
    t_rows, t_columns = (student_quantile(probability, count - 1) for count in (rows, columns))
    return float(((t_rows**2 * max(row_square, square) + t_columns**2 * extra) / table.size) ** 0.5)


@lru_cache(maxsize=256)
def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t distribution: with t = sqrt(degrees) tan(a), the density of the angle a is
    proportional to cos(a)^(degrees - 1) and is summed up here. Right to five digits from 0.001 to 0.999."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 40_001)
    density = np.cos(angles).clip(0) ** (degrees - 1)
    summed = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(degrees**0.5 * np.tan(np.interp(probability, summed / summed[-1], angles)))
