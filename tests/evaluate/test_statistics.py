"""Means, intervals and win rates against closed forms and a known population."""

import numpy as np
import pytest

from reneg_core.statistics import Estimate, decimals, estimate, wins


def test_mean_and_interval_of_two_prompts() -> None:
    """Two rows give the means 0, 0.5 and 1 with chances 1/4, 1/2, 1/4: the outer quantiles are 0 and 1."""
    assert estimate([[0.0, 0.0], [1.0, 1.0]]) == Estimate(0.5, (0.0, 1.0))


def test_interval_is_deterministic_and_seeded() -> None:
    values = np.random.default_rng(1).normal(size=(30, 2))
    assert estimate(values) == estimate(values)
    assert estimate(values, seed=1).interval != estimate(values).interval


def test_large_sample_interval_equals_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=(900, 1))
    half = 1.96 * values.std() / 30
    low, high = estimate(values, resamples=6000).interval
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """400 evaluations of 40 prompts with a prompt effect: binomial(400, 0.95) lies in 0.92..0.98 all but surely."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        values = generator.normal(size=(40, 1)) + 0.5 * generator.normal(size=(40, 4)) + 3
        covered += not estimate(values, resamples=1000).excludes(3)
    assert 0.92 <= covered / 400 <= 0.98


def test_correlated_pairs_need_the_clusters() -> None:
    """With 8 equal seeds per prompt the interval is sqrt(8) times that of as many independent pairs."""
    values = np.repeat(np.random.default_rng(2).normal(size=(50, 1)), 8, axis=1)
    low, high = estimate(values).interval
    naive_low, naive_high = estimate(values.reshape(-1, 1)).interval
    assert (high - low) / (naive_high - naive_low) == pytest.approx(8**0.5, rel=0.08)


def test_one_prompt_resamples_its_seeds_and_one_pair_has_no_interval() -> None:
    assert estimate([[0.0, 1.0]]).interval == (0.0, 1.0)
    lone = estimate([[0.3]])
    assert lone == Estimate(0.3, None) and not lone.excludes(0)


def test_wins_counts_ties_half() -> None:
    assert wins([[1.0, 2.0, 3.0]], [[0.0, 2.0, 4.0]]).tolist() == [[1.0, 0.5, 0.0]]


def test_excludes() -> None:
    assert Estimate(2, (1, 3)).excludes(0) and not Estimate(2, (1, 3)).excludes(1)


@pytest.mark.parametrize(
    ("intervals", "places"),
    [
        ([(0.7, 0.74)], 3),
        ([(0.0, 1.0), (0.0, 0.02)], 3),
        ([(10.0, 50.0)], 0),
        ([None], 3),
        ([(1.0, 1.0)], 3),
        ([(0.1, 0.1 + 1e-16)], 3),
    ],
)
def test_decimals_show_two_digits_of_the_half_width(intervals: list, places: int) -> None:
    assert decimals(Estimate(0, interval) for interval in intervals) == places


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[]], {}, r"Got scores of shape \[1, 0\]"),
        ([1.0], {}, r"Got scores of shape \[1\]"),
        ([[1.0, float("nan")]], {}, "Got 1 NaN or infinite scores"),
        ([[1.0]], {"confidence": 95}, "Got confidence 95"),
    ],
)
def test_refusals(values: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(values, **options)
