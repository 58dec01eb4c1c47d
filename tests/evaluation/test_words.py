"""Sentences about results: what is claimed, and what is admitted."""

import dataclasses

import pytest
from evaluations import evaluation

from reneg_core.evaluation import Evaluation, Pairs, cautions, headline
from reneg_core.evaluation.words import about, losing


def of(scores: dict, prompts: tuple[str, ...] = ("a",)) -> Evaluation:
    return Evaluation(Pairs.own(prompts, 1), scores)


def test_headline_gives_differences_and_win_rates() -> None:
    text = headline(evaluation())
    assert text.startswith("Embedding scores 0.315 on pixels: 0.150 more than empty prompt (95 % interval +0.150 to ")
    assert 'than "bad & ugly"' in text and "wins 100 % of 48 pairs (86 to 100)." in text


def test_headline_admits_what_cannot_be_told() -> None:
    rows = {"none": [[0.0], [1.0], [0.0]], "embedding": [[1.0], [0.0], [0.1]]}
    unsure = headline(of({"reward": rows}, ("a", "b", "c")))
    assert "so no difference that these pairs can show" in unsure and "wins 67 % of 3 pairs" in unsure
    lone = headline(of({"reward": {"none": [[0.5]], "mine": [[0.7]]}}))
    assert lone == "Mine scores 0.700 on reward: 0.200 more than none, and wins 100 % of one pair."
    assert headline(of({"m": {"none": [[0.5]]}})) == "None scores 0.500 on m over one pair."


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (Pairs.own(["a", "b"], 2), "speak about other prompts and other noises: every picture has a noise of its own"),
        (Pairs.shared(["a", "b"], [0, 1]), "all prompts share the same 2 noises, so prompts and noises are resampled"),
        (
            Pairs.shared(["a", "b"], [0]),
            "All prompts share one noise: the intervals are over prompts and speak about this",
        ),
        (Pairs.own(["a"], 2), "over the noises of this one prompt and say nothing about other prompts"),
        (Pairs.own(["a"], 1), "A single pair has no interval."),
    ],
)
def test_every_design_says_what_its_intervals_speak_about(pairs: Pairs, words: str) -> None:
    assert words in about(pairs)


def test_reward_hacking_is_pointed_out() -> None:
    good = evaluation(pictures=False)
    falling = {mode: [[-value for value in row] for row in rows] for mode, rows in good.scores["reward"].items()}
    hacked = dataclasses.replace(good, scores={"reward": good.scores["reward"], "independent": falling})
    assert cautions(good) == []
    (caution,) = cautions(hacked)
    assert caution.startswith("The training reward rose while pixels fell: a sign of reward hacking.")


def test_weak_evidence_is_pointed_out() -> None:
    assert cautions(evaluation(prompts=5))[0].startswith("With 5 prompts the intervals are rough")
    alone = of({"reward": {"none": [[0.5]]}})
    assert [text[:26] for text in cautions(alone)] == ["Only the reward that was t", "With a single prompt the f"]


@pytest.mark.parametrize(
    ("k", "start"),
    [(1, "All prompts were drawn from one and the same noise"), (4, "All prompts share 4 noises: so few"), (8, None)],
)
def test_shared_noises_are_pointed_out(k: int, start: str | None) -> None:
    own = evaluation(seeds=k)
    shared = dataclasses.replace(own, pairs=Pairs.shared(own.pairs.prompts, range(k)))
    assert cautions(own) == []
    assert [text[: len(start or "")] for text in cautions(shared)] == ([start] if start else [])


def test_losing_says_both_halves() -> None:
    rows = {"none": [[0.1], [0.9], [0.8], [0.3]], "embedding": [[0.5], [0.6], [0.9], [0.2]]}
    text = losing(of({"m": rows}, ("a", "b", "c", "d")))
    assert "Where none does best (the half of the pairs in which it scores higher), embedding loses 0.1" in text
    assert "in the other half it gains 0.1" in text and text.count("95 % interval") == 2
    assert losing(of({"m": {"none": [[0.1]], "embedding": [[0.2]]}})) == ""
    assert losing(of({"m": {"none": [[0.1], [0.2]]}}, ("a", "b"))) == ""
