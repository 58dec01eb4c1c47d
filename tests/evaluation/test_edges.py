"""Edges of comparisons: names left out, the smallest numbers, cautions, all worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
from evaluations import evaluation

from reneg_core.evaluation import Evaluation, Pairs
from reneg_core.evaluation.results import baseline_of
from reneg_core.evaluation.statistics import Estimate, decimals, estimate, share, within
from reneg_core.evaluation.words import cautions


def tables(**modes: list[list[float]]) -> dict[str, list[list[float]]]:
    return modes


def made(measures: dict, prompts: int = 2, each: int = 1) -> Evaluation:
    pairs = Pairs.own([f"p{i}" for i in range(prompts)], each)
    return Evaluation(pairs, measures, {}, {}, {}, {}, {})


def test_the_baseline_is_the_empty_prompt_or_the_first() -> None:
    assert baseline_of(["text", "none"]) == "none" and baseline_of(["text", "embedding"]) == "text"
    assert baseline_of(["text", "none"], "text") == "text"


def test_pairs_are_equal_whatever_they_were_made_of() -> None:
    found = Pairs(["a", "b"], [[1.0, 2], [3, 4]])
    assert found == Pairs(("a", "b"), ((1, 2), (3, 4))) and hash(found) == hash(Pairs(("a", "b"), ((1, 2), (3, 4))))
    assert found.prompts == ("a", "b") and found.seeds == ((1, 2), (3, 4)) and type(found.seeds[0][0]) is int


def test_an_unknown_mode_of_a_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"^Got the mode 'x', expected one of none, text, embedding"):
        evaluation().part("independent", "edge", "x")


def test_the_confidence_reaches_every_interval() -> None:
    wide, narrow = evaluation(), replace(evaluation(), confidence=0.5)
    for one in ("win_rate", "difference"):
        ends = [getattr(found, one)("independent", "text", "none").interval for found in (wide, narrow)]
        assert ends[0][0] <= ends[1][0] <= ends[1][1] <= ends[0][1]
    mixed = made({"m": tables(a=[[0.0], [1.0], [1.0]], b=[[0.5]] * 3)}, 3)
    ends = [one.win_rate("m", "a", "b").interval for one in (mixed, replace(mixed, confidence=0.5))]
    assert ends[0] != ends[1]


def test_two_pairs_have_halves_and_one_has_none() -> None:
    two = made({"m": tables(none=[[0.1], [0.5]], embedding=[[0.3], [0.6]])})
    assert two.halves("m", "embedding", "none") is not None
    assert made({"m": tables(none=[[0.1]], embedding=[[0.3]])}, 1).halves("m", "embedding", "none") is None


def test_a_tie_is_no_loss() -> None:
    one = made({"m": tables(none=[[0.5], [0.5]], embedding=[[0.5], [0.4]])})
    assert one.worst("m", "embedding", "none", 5) == [(1, 0)]


def test_a_report_of_an_older_version_is_read() -> None:
    text = evaluation(pictures=False).to_json()
    for name in ("baseline", *evaluation().modes):
        text.pop(name, None)
    found = Evaluation.from_json(text)
    assert found.baseline == "" and found.samplings == {} and found.modes == evaluation().modes
    assert Evaluation.from_json({**text, "scores": {}}).measures == []


def test_how_many_scores_are_no_numbers() -> None:
    with pytest.raises(ValueError, match=r"^Got 1 NaN or infinite scores, expected finite numbers\.$"):
        estimate([[1.0, np.nan, 2.0]])


def test_resamples_reach_a_share() -> None:
    values = [[float(i % 3 > 0)] for i in range(40)]
    assert share(values, resamples=3) != share(values)


def test_two_shared_noises_that_agree_are_two_draws() -> None:
    """Of three prompts and two noises the noises are fewer: 0.025 ** (1 / 2)."""
    assert share(np.ones((3, 2)), crossed=True).interval == (pytest.approx(0.025**0.5), 1.0)
    assert share(np.ones((3, 2))).interval == (pytest.approx(0.025 ** (1 / 3)), 1.0)


def test_values_within_a_half_of_three() -> None:
    """One of three is in the upper half, the value at the border is the mean of the two around it: 2.5."""
    by, values = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [3.0]])
    found = within(values, np.array([[False], [False], [True]]), by)
    scale = 1.0 / (1 / 3)
    expected = [3 + scale * ((chosen - 1 / 3) * (3 - 2.5)) for chosen in (0, 0, 1)]
    assert found[:, 0] == pytest.approx(expected)


def test_widths_of_rounding_size_are_none() -> None:
    assert decimals([Estimate(0.0, (0.0, 2e-9))]) == 3 and decimals([Estimate(0.0, (0.0, 2.0))]) == 1


@pytest.mark.parametrize(
    ("modes", "measures", "warned"),
    [
        (("none", "embedding"), ("reward", "independent"), True),
        (("none", "embedding"), ("reward",), False),
        (("none", "embedding"), ("independent", "other"), False),
        (("embedding",), ("reward", "independent"), False),
    ],
)
def test_a_caution_of_hacking_needs_a_reward_that_rose_and_a_judge_that_fell(
    modes: tuple[str, ...], measures: tuple[str, ...], warned: bool
) -> None:
    up = {"none": [[0.1 + i / 1000] for i in range(30)], "embedding": [[0.5 + i / 1000] for i in range(30)]}
    down = {"none": up["embedding"], "embedding": up["none"]}
    found = made({m: {mode: (up if m == "reward" else down)[mode] for mode in modes} for m in measures}, 30)
    assert any("reward hacking" in line and "rose while" in line for line in cautions(found)) is warned
