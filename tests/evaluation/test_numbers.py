"""The statistics' numbers: against formulas written out as loops, as properties, and as earlier versions gave them."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reneg_core.evaluation import Pairs
from reneg_core.evaluation import statistics as module
from reneg_core.evaluation.statistics import Estimate, better_half, decimals, estimate, share, student_quantile, within

TABLE = np.array([[0.1, 0.5, 0.2], [0.9, 0.4, 0.8], [0.3, 0.7, 0.1], [0.6, 0.2, 0.9]])
TABLES = arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(1, 4)), elements=st.floats(0, 1, width=16))


def test_intervals_are_those_of_earlier_versions() -> None:
    """The same scores give the published interval again."""
    assert estimate(TABLE).interval == pytest.approx((0.16458683986529898, 0.7854131601347011), abs=1e-12)
    assert estimate(TABLE, crossed=True).interval == pytest.approx((0.17790712213072107, 0.7987334424001231), abs=1e-12)
    narrow = estimate(TABLE, confidence=0.8, resamples=100, seed=3)
    assert narrow.interval == pytest.approx((0.3152557811008936, 0.6347442188991065), abs=1e-12)
    shared = share(TABLE, crossed=True, confidence=0.5, resamples=300)
    assert shared.interval == pytest.approx((0.38973490297193847, 0.5389488227710462), abs=1e-12)
    assert share(TABLE) == estimate(TABLE)


def test_the_width_for_noises_of_their_own_is_the_t_interval_of_the_prompts_means() -> None:
    means = [sum(row) / 3 for row in TABLE.tolist()]
    centre = sum(means) / 4
    deviation = math.sqrt(sum((mean - centre) ** 2 for mean in means) / 3)
    low, high = estimate(TABLE, confidence=0.9).interval
    assert high - low == pytest.approx(2 * student_quantile(0.95, 3) * deviation / 2)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_width_for_shared_noises_is_the_analysis_of_variances(columns: int, weight: float) -> None:
    """Mean squares of rows, columns and residuals as textbooks have them; weight: how much the noise matters."""
    rows, table = 4, (TABLE + weight * np.arange(3) / 10)[:, :columns]
    values = {(i, j): table[i, j] for i, j in product(range(rows), range(columns))}
    centre = sum(values.values()) / (rows * columns)
    row = [sum(values[i, j] for j in range(columns)) / columns for i in range(rows)]
    column = [sum(values[i, j] for i in range(rows)) / rows for j in range(columns)]
    of_rows = columns * sum((mean - centre) ** 2 for mean in row) / (rows - 1)
    of_columns = rows * sum((mean - centre) ** 2 for mean in column) / (columns - 1)
    left = sum((value - row[i] - column[j] + centre) ** 2 for (i, j), value in values.items())
    left /= (rows - 1) * (columns - 1)
    extra = max(of_columns - left, left if columns == 2 else 0)
    t_rows, t_columns = student_quantile(0.975, rows - 1), student_quantile(0.975, columns - 1)
    half = math.sqrt((t_rows**2 * max(of_rows, left) + t_columns**2 * extra) / (rows * columns))
    low, high = estimate(table, crossed=True).interval
    assert high - low == pytest.approx(2 * half)


@given(TABLES, st.floats(-5, 5), st.floats(0.1, 10), st.booleans())
def test_an_interval_moves_and_stretches_with_the_scores(
    table: np.ndarray, shift: float, stretch: float, crossed: bool
) -> None:
    plain, moved = (estimate(values, crossed=crossed, resamples=60) for values in (table, shift + stretch * table))
    assert plain.value == pytest.approx(table.mean())
    low, high = plain.interval
    assert low <= plain.value + 1e-9 and plain.value <= high + 1e-9
    if high - low > 1e-6:
        assert moved.interval == pytest.approx((shift + stretch * low, shift + stretch * high), abs=1e-6)


@given(TABLES)
def test_more_confidence_is_a_wider_interval(table: np.ndarray) -> None:
    widths = [np.ptp(estimate(table, confidence=c, resamples=60).interval) for c in (0.5, 0.8, 0.95)]
    assert widths == sorted(widths)


@given(TABLES, st.booleans())
def test_the_interval_of_a_share_lies_within_zero_and_one(table: np.ndarray, crossed: bool) -> None:
    wins = (table > 0.5).astype(float)
    found = share(wins, crossed=crossed, resamples=60)
    assert 0 <= found.interval[0] <= found.interval[1] <= 1 and found.value == pytest.approx(wins.mean())
    if found.value in (0, 1):
        assert found.interval[1] - found.interval[0] > 0


def test_unanimity_follows_the_confidence_and_what_was_drawn() -> None:
    for confidence in (0.5, 0.9):
        bound = ((1 - confidence) / 2) ** (1 / 8)
        assert share(np.ones((8, 3)), confidence=confidence).interval == (pytest.approx(bound), 1.0)
    bound = 0.025 ** (1 / 3)
    assert share(np.zeros((3, 8)), crossed=True).interval == (0.0, pytest.approx(1 - bound))
    assert share(np.ones((1, 6)), crossed=True).interval == (pytest.approx(0.025 ** (1 / 6)), 1.0)


@given(arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(2, 4)), elements=st.floats(0, 1)))
def test_values_within_a_half_have_its_mean(values: np.ndarray) -> None:
    by = np.random.default_rng(0).permutation(values.size).reshape(values.shape).astype(float)
    for chosen in (better_half(by), ~better_half(by)):
        assert within(values, chosen, by).mean() == pytest.approx(values[chosen].mean(), abs=1e-9)


@pytest.mark.parametrize("upper", [True, False])
def test_values_within_a_half_by_the_formula(upper: bool) -> None:
    """Of 24 pairs 12 are chosen; the border's value is the mean of the two pairs on each of its sides."""
    generator = np.random.default_rng(3)
    values, by = generator.normal(size=(8, 3)), generator.permutation(24).reshape(8, 3)
    chosen = (by >= 12) == upper
    assert (better_half(by) == (by >= 12)).all()
    mean = sum(values[chosen]) / 12
    border = sum(values[(by >= 10) & (by < 14)]) / 4
    scale = math.sqrt(12 / 10) / 0.5
    for i, j in product(range(8), range(3)):
        own = (values[i, j] - mean) if chosen[i, j] else 0.0
        expected = mean + scale * (own + (0.5 if chosen[i, j] else -0.5) * (mean - border))
        assert within(values, chosen, by)[i, j] == pytest.approx(expected)


def test_an_odd_pair_belongs_to_the_lower_half_and_ties_to_the_later() -> None:
    assert better_half([[3.0, 1.0, 2.0, 5.0, 4.0]]).tolist() == [[False, False, False, True, True]]
    assert better_half([[1.0, 1.0], [1.0, 1.0]]).tolist() == [[False, False], [True, True]]


@given(st.integers(1, 3000), st.integers(1, 10_000_000))
def test_resamples_are_cut_into_what_fits(resamples: int, count: int) -> None:
    sizes = module._sizes(resamples, count)
    assert sum(sizes) == resamples and min(sizes) > 0
    assert all(size * count <= 4_000_000 or size == 1 for size in sizes)
    assert len(sizes) == 1 or 2 * sizes[0] * count > 4_000_000 or sizes[0] == 1


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = estimate(TABLE, resamples=40)
    monkeypatch.setattr(module, "_CHUNK", 40)
    assert estimate(TABLE, resamples=40) == whole


def test_quantiles_are_symmetric_and_of_known_values() -> None:
    """With one degree of freedom the t distribution is Cauchy's: tan(pi (p - 1/2)); with two, its own closed form."""
    for probability in (0.01, 0.3, 0.5, 0.9, 0.995):
        cauchy = math.tan(math.pi * (probability - 0.5))
        assert student_quantile(probability, 1) == pytest.approx(cauchy, rel=1e-4, abs=1e-4)
        two = (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
        assert student_quantile(probability, 2) == pytest.approx(two, rel=1e-4, abs=1e-4)
        assert student_quantile(1 - probability, 5) == pytest.approx(-student_quantile(probability, 5), abs=1e-4)


def test_an_interval_excludes_what_lies_outside_it_and_its_ends_are_inside() -> None:
    found = Estimate(0.5, (0.0, 1.0))
    assert [found.excludes(number) for number in (-0.1, 0.0, 0.5, 1.0, 1.1)] == [True, False, False, False, True]


def test_decimals_by_the_narrowest() -> None:
    widths = {0.5: 2, 0.05: 3, 0.0005: 5, 5.0: 1, 50.0: 0, 5000.0: 0, 5e-8: 6, 1e-10: 3}
    for half, places in widths.items():
        assert decimals([Estimate(0, (-half, half)), Estimate(0, None)]) == places
    assert decimals([Estimate(0, (0.0, 1.0)), Estimate(0, (0.0, 0.1))]) == 3 and decimals([]) == 3


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[1.0], [math.inf]], {}, r"^Got 1 NaN or infinite scores, expected finite numbers\.$"),
        (
            [[1.0]],
            {"confidence": 0.0},
            r"^Got confidence 0\.0 and 2000 resamples, expected 0 < confidence < 1 and >= ",
        ),
        ([[1.0]], {"confidence": 1.0}, "Got confidence 1.0"),
        ([[1.0]], {"resamples": 0}, "0 resamples"),
        (
            np.zeros((2, 2, 2)),
            {},
            r"^Got scores of shape \[2, 2, 2\], expected \[prompts, k\] with at least one",
        ),
    ],
)
def test_what_has_no_interval(values: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(values, **options)
    assert estimate([[1.0], [2.0]], resamples=1).interval[0] <= 1.5


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**31))
def test_pairs_go_through_prompts_then_noises(prompts: int, each: int, seed: int) -> None:
    pairs = Pairs.own([f"p{i}" for i in range(prompts)], each, seed)
    assert len({noise for _, noise in pairs}) == len(pairs) == prompts * each
    for index, (prompt, noise) in enumerate(pairs):
        row, column = pairs.place(index)
        assert (prompt, noise) == (f"p{row}", pairs.seeds[row][column]) and row * each + column == index
    for count in range(len(pairs) + 2):
        spread = pairs.spread(count)
        assert len({*spread}) == len(spread) == min(count, len(pairs)) and spread == sorted(spread)


def test_the_noises_of_a_comparison_are_those_of_earlier_versions() -> None:
    assert Pairs.own(["a"], 2).seeds == Pairs.own(["b", "c"], 2, 0).seeds[:1] == ((8489365827316602, 4928918785711987),)
