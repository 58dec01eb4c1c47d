"""Means, intervals and win rates against closed forms and known populations."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.coverage import DOMINANT, FIGURES, OWN, ROWS, SHARED, coverage
from reneg_core.evaluation.statistics import (
    Estimate,
    better_half,
    decimals,
    estimate,
    share,
    student_quantile,
    wins,
    within,
)

ROOT = Path(__file__).resolve().parents[2]


def test_student_quantiles_are_the_tables() -> None:
    """Against the printed table of Student's t, two-sided 95 % and 99 %."""
    table = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 23: (2.069, 2.807), 63: (1.998, 2.656)}
    for degrees, quantiles in table.items():
        found = (student_quantile(0.975, degrees), student_quantile(0.995, degrees))
        assert found == pytest.approx(quantiles, abs=6e-4 * quantiles[0])
    assert student_quantile(0.975, 100_000) == pytest.approx(1.95998, abs=1e-3)


def test_two_prompts_get_the_t_interval_with_one_degree_of_freedom() -> None:
    """Means 0 and 1: half = 12.706 * 0.7071 / sqrt(2)."""
    found = estimate([[0.0, 0.0], [1.0, 1.0]])
    assert found.value == 0.5 and found.interval == pytest.approx((0.5 - 6.353, 0.5 + 6.353), abs=2e-3)


def test_interval_is_deterministic_and_seeded() -> None:
    values = np.random.default_rng(1).exponential(size=(30, 2))
    for crossed in (OWN, SHARED):
        assert estimate(values, crossed=crossed) == estimate(values, crossed=crossed)
        assert estimate(values, crossed=crossed, seed=1).interval != estimate(values, crossed=crossed).interval


def test_large_sample_interval_equals_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=(900, 1))
    half = 1.96 * values.std() / 30
    low, high = estimate(values, resamples=6000).interval
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)


def test_a_lopsided_population_gets_a_lopsided_interval() -> None:
    """The width is the t interval's; of it, more lies on the side of the long tail."""
    values = np.random.default_rng(3).exponential(size=(40, 1))
    low, high = estimate(values).interval
    half = student_quantile(0.975, 39) * values.std(ddof=1) / 40**0.5
    assert high - low == pytest.approx(2 * half)
    assert high - values.mean() > 1.05 * (values.mean() - low)


def test_correlated_pairs_need_the_clusters() -> None:
    """With 8 equal pictures per prompt the interval is sqrt(8) times that of as many independent pairs."""
    values = np.repeat(np.random.default_rng(2).normal(size=(50, 1)), 8, axis=1)
    low, high = estimate(values).interval
    naive_low, naive_high = estimate(values.reshape(-1, 1)).interval
    assert (high - low) / (naive_high - naive_low) == pytest.approx(8**0.5, rel=0.08)


def test_shared_noises_that_matter_widen_the_interval_to_their_own() -> None:
    """Four noises, equal for all prompts: all that is known are four draws, so it is their t interval."""
    noises = np.array([0.0, 0.1, 0.3, 0.2])
    table = np.tile(noises, (64, 1)) + 1e-6 * np.random.default_rng(0).normal(size=(64, 4))
    half = student_quantile(0.975, 3) * noises.std(ddof=1) / 2
    low, high = estimate(table, crossed=True).interval
    assert high - low == pytest.approx(2 * half, rel=1e-3)
    assert estimate(table).interval == pytest.approx((0.15, 0.15), abs=1e-6), "read as own noises it would look sure"


def test_shared_noises_that_do_not_matter_cost_little() -> None:
    values = np.random.default_rng(5).normal(size=(64, 4)) + 2 * np.random.default_rng(6).normal(size=(64, 1))
    own, crossed = (np.ptp(estimate(values, crossed=c).interval) for c in (OWN, SHARED))
    assert 0.999 * own <= crossed < 1.4 * own


def test_one_prompt_resamples_its_noises_and_one_pair_has_no_interval() -> None:
    assert estimate([[0.0, 1.0]]).interval == estimate([[0.0], [1.0]]).interval
    assert estimate([[0.0, 1.0]], crossed=True).interval == estimate([[0.0], [1.0]]).interval
    lone = estimate([[0.3]])
    assert lone == Estimate(0.3, None) and not lone.excludes(0)


def test_one_shared_noise_can_only_speak_about_prompts() -> None:
    values = np.random.default_rng(7).normal(size=(30, 1))
    assert estimate(values, crossed=True) == estimate(values)


def test_equal_scores_have_an_interval_of_no_width() -> None:
    assert estimate([[0.1] * 3] * 7).interval == pytest.approx((0.1, 0.1))
    assert estimate([[0.1] * 3] * 7, crossed=True).interval == pytest.approx((0.1, 0.1))


def test_wins_counts_ties_half() -> None:
    assert wins([[1.0, 2.0, 3.0]], [[0.0, 2.0, 4.0]]).tolist() == [[1.0, 0.5, 0.0]]


def test_shares_stay_in_range_and_unanimity_is_not_certainty() -> None:
    """Clopper and Pearson: of 24 prompts without a loss, the win rate is at least 0.025 ** (1 / 24)."""
    assert share([[1.0], [0.0]]).interval == (0.0, 1.0)
    bound = 0.025 ** (1 / 24)
    assert share(np.ones((24, 2))) == Estimate(1.0, (pytest.approx(bound), 1.0))
    assert share(np.zeros((24, 2))).interval == (0.0, pytest.approx(1 - bound))
    assert share(np.ones((24, 4)), crossed=True).interval == (pytest.approx(0.025 ** (1 / 4)), 1.0)
    assert share(np.ones((24, 1)), crossed=True).interval == (pytest.approx(bound), 1.0)
    assert share(np.ones((1, 5))).interval == (pytest.approx(0.025 ** (1 / 5)), 1.0)
    assert share(np.full((24, 2), 0.5)).interval == (0.5, 0.5)
    assert share([[1.0]]).interval is None


def test_better_half_is_by_rank() -> None:
    assert better_half([[0.3, 0.1], [0.2, 0.4]]).tolist() == [[True, False], [False, True]]
    assert better_half([[0.3], [0.1], [0.2]]).tolist() == [[True], [False], [False]]
    assert better_half([[1.0, 1.0], [1.0, 1.0]]).sum() == 2


def test_values_within_a_half_average_to_its_mean() -> None:
    generator = np.random.default_rng(0)
    values, by = generator.normal(size=(15, 3)), generator.normal(size=(15, 3))
    upper = better_half(by)
    assert within(values, upper, by).mean() == pytest.approx(values[upper].mean())
    assert within(values, ~upper, by).mean() == pytest.approx(values[~upper].mean())


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


EVERY, LINEAR = tuple(FIGURES), ("mean", "difference")


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_intervals_cover_the_truth_as_often_as_they_say(row: str) -> None:
    """95 % intervals of prompts and noises drawn anew each time: at least 93 of 100 hold the population's value; win
    rates and halves too, unless noises that all prompts share matter more than the prompt and are only four. 400
    evaluations tell a point or two, the published 4000 a third of one; the seed is one that agrees with those."""
    world, _, k, crossed = ROWS[row]
    found = coverage(row, times=400, seed=5)
    names = LINEAR if (world, k, crossed) == (DOMINANT, 4, SHARED) else EVERY
    assert min(found[name] for name in names) >= 0.93, found


def test_documented_coverage_is_the_published_one() -> None:
    """Every row of the table in docs/evaluation.md stands in the file that benchmarks/coverage.py wrote."""
    published = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())
    lines = [line.split("|") for line in (ROOT / "docs" / "evaluation.md").read_text().splitlines() if "|" in line]
    shown = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for cells in lines[2:]}
    assert lines[0][2:-1] == [f" {name} " for name in FIGURES] and set(shown) == set(ROWS)
    for row, cells in shown.items():
        assert cells == [f"{100 * published['coverage'][row][name]:.1f}" for name in FIGURES], row


def test_percentiles_over_prompts_alone_would_miss_shared_noises() -> None:
    """What the two-way design is for: read as noises of their own, four dominant shared ones leave most truths out."""
    generator = np.random.default_rng(1)
    tables = (DOMINANT.draw(generator, 64, 4, SHARED)[1] for _ in range(100))
    assert sum(estimate(table, crossed=OWN, resamples=200).excludes(0) for table in tables) > 50
