"""The sentences of a report, word for word."""

import re

import pytest

from reneg_core.evaluation import Evaluation, Pairs, cautions, headline
from reneg_core.evaluation.words import about, capital, losing

OWN = "The intervals speak about other prompts and other noises: every picture has a noise of its own, and all"
SENTENCES = [
    (Pairs.own(["a"], 1), "A single pair has no interval."),
    (
        Pairs.own(["a"], 2),
        "The intervals are over the noises of this one prompt and say nothing about other prompts.",
    ),
    (Pairs.own(["a", "b"], 2), f"{OWN} pictures of a prompt are resampled together."),
    (Pairs.own(["a", "b"], 1), f"{OWN} pictures of a prompt are resampled together."),
    (
        Pairs.shared(["a", "b"], [5]),
        "All prompts share one noise: the intervals are over prompts and speak about this noise only; another one can "
        "give another result.",
    ),
    (
        Pairs.shared(["a", "b"], [5, 6, 7]),
        "The intervals speak about other prompts and other noises: all prompts share the same 3 noises, so prompts and "
        "noises are resampled independently, and few noises make wide intervals.",
    ),
]


@pytest.mark.parametrize(("pairs", "sentence"), SENTENCES)
def test_what_the_intervals_speak_about(pairs: Pairs, sentence: str) -> None:
    assert about(pairs) == sentence


def of(pairs: Pairs, **modes: list) -> Evaluation:
    return Evaluation(pairs, {"reward": modes})


FEW = (
    "prompts the intervals are rough: they assume that prompts differ about as a bell curve does. 20 or more make them"
)
HACKING = (
    "Only the reward that was trained on is shown here. It can rise while pictures get worse (reward hacking): look at "
    "the pictures, and judge by a measure that was not trained on."
)
ONE_NOISE = (
    "All prompts were drawn from one and the same noise: the figures say nothing about other noises. Try a noise of "
    "its own for every picture."
)


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        (Pairs.own(["a"], 2), ["With a single prompt the figures say nothing about other prompts."]),
        (Pairs.own([*map(str, range(19))], 1), [f"With 19 {FEW} dependable."]),
        (Pairs.own([*map(str, range(20))], 1), []),
        (Pairs.shared([*map(str, range(20))], [3]), [ONE_NOISE]),
        (
            Pairs.shared([*map(str, range(20))], [3, 4, 5, 6]),
            [
                "All prompts share 4 noises: so few can hardly show how much the noise matters, and the intervals are "
                "wide for it. Try a noise of its own for every picture."
            ],
        ),
        (Pairs.shared([*map(str, range(20))], [3, 4, 5, 6, 7]), []),
        (Pairs.shared(["a", "b"], [3]), [f"With 2 {FEW} dependable.", ONE_NOISE]),
    ],
)
def test_what_to_be_careful_of(pairs: Pairs, told: list[str]) -> None:
    row = [[0.0] * pairs.each] * len(pairs.prompts)
    assert cautions(of(pairs, none=row)) == [HACKING, *told]
    assert cautions(Evaluation(pairs, {"pixels": {"none": row}})) == told


def two_measures(reward: float, pixels: float) -> Evaluation:
    """24 prompts whose reward and pixels change by so much, a little differently for each."""
    steps = [[i / 1000] for i in range(24)]
    tables = {
        name: {"none": steps, "embedding": [[value + change + value / 10] for [value] in steps]}
        for name, change in (("reward", reward), ("pixels", pixels))
    }
    return Evaluation(Pairs.own([*map(str, range(24))], 1), tables)


@pytest.mark.parametrize(
    ("reward", "pixels", "hacked"),
    [(0.5, -0.5, True), (0.5, 0.5, False), (-0.5, -0.5, False), (0.5, 0.0, False), (-0.001, -0.5, False)],
)
def test_reward_hacking_is_a_reward_that_rose_while_the_judge_fell(reward: float, pixels: float, hacked: bool) -> None:
    told = (
        "The training reward rose while pixels fell: a sign of reward hacking. Try fewer steps, a lower learning rate, "
        "or a mix of rewards."
    )
    assert cautions(two_measures(reward, pixels)) == ([told] if hacked else [])


def test_the_result_in_one_sentence_for_every_rival() -> None:
    pairs = Pairs.own(["a", "b", "c", "d"], 1)
    modes = {"none": [[0.1], [0.2], [0.3], [0.4]], "text": [[0.3], [0.3], [0.3], [0.3]]}
    found = of(pairs, **modes, embedding=[[0.2], [0.3], [0.5], [0.4]])
    assert headline(found) == (
        "Embedding scores 0.35 on reward: 0.10 more than none (95 % interval -0.03 to +0.23, so no difference that "
        "these pairs can show), and wins 88 % of 4 pairs (34 to 100). It scores 0.05 more than text (95 % interval "
        "-0.16 to +0.26, so no difference that these pairs can show), and wins 62 % of 4 pairs (0 to 100)."
    )
    alone = of(pairs, none=modes["none"])
    assert re.fullmatch(r"None scores 0\.25 on reward \(0\.0\d to 0\.4\d\) over 4 pairs\.", headline(alone))
    falling = of(pairs, none=modes["none"], embedding=[[0.0], [0.1], [0.2], [0.3]])
    assert headline(falling).startswith("Embedding scores 0.15 on reward: 0.100 less than none (95 % interval -0.100")
    assert "so no difference" not in headline(falling) and "and wins 0 % of 4 pairs" in headline(falling)


def test_where_it_gains_and_where_it_loses() -> None:
    pairs = Pairs.own([*map(str, range(8))], 1)
    found = of(pairs, none=[[i / 10] for i in range(8)], embedding=[[0.35]] * 8)
    told = losing(found)
    assert re.fullmatch(
        r"Where none does best \(the half of the pairs in which it scores higher\), embedding loses 0\.20 on average "
        r"\(95 % interval -0\.\d\d to [+-]0\.\d\d\); in the other half it gains 0\.20 on average \(95 % interval "
        r"[+-]0\.\d\d to \+0\.\d\d\)\.",
        told,
    ), told
    assert losing(of(pairs, none=[[0.0]] * 8)) == ""
    assert losing(of(Pairs.own(["a"], 1), none=[[0.0]], embedding=[[1.0]])) == ""


def test_capitals() -> None:
    assert (capital("a b"), capital("Xy"), capital("")) == ("A b", "Xy", "")


def test_a_long_list_of_noises_is_cut() -> None:
    with pytest.raises(ValueError, match=r"^Got the noise seeds 1, 2, 3, 4, 5, 6, … for 'a', expected"):
        Pairs(("a",), ((1, 2, 3, 4, 5, 6, 1),))
    with pytest.raises(ValueError, match=r"^Got the noise seeds 1, 2, 3, 4, 5, 1 for 'a', expected"):
        Pairs(("a",), ((1, 2, 3, 4, 5, 1),))


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ((), (), "Got no prompts, expected at least one prompt with at least one noise."),
        (("a",), (), "Got no noises, expected at least one prompt with at least one noise."),
        (
            ("a", "b"), ((1, 2), (3,)),
            "Got 2 rows of [1, 2] noises for 2 prompts, expected a row for each prompt, all of one length.",
        ),
        (
            ("a", "b"), ((1, 2), (2, 3)),
            "Got noise seeds that only some prompts share, expected a noise of its own for every pair, or the same "
            "noises in the same order for all prompts. Try Pairs.own or Pairs.shared.",
        ),
        (
            ("a",), ((1, 1),),
            "Got the noise seeds 1, 1 for 'a', expected different ones: the same noise is the same picture.",
        ),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be(prompts: tuple, seeds: tuple, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Pairs(prompts, seeds)
    assert str(caught.value) == message
