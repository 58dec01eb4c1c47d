"""Figures of an evaluation and its JSON form, on scores made by hand."""

import json
from dataclasses import replace

import pytest
from evaluations import evaluation

from reneg_core.evaluation import Evaluation, Halves, Pairs
from reneg_core.evaluation.results import baseline_of
from reneg_core.evaluation.statistics import estimate
from reneg_core.sampling import Sampling


def of(own: bool = True, **modes: list) -> Evaluation:
    rows, k = len(next(iter(modes.values()))), len(next(iter(modes.values()))[0])
    prompts = [str(row) for row in range(rows)]
    return Evaluation(Pairs.own(prompts, k) if own else Pairs.shared(prompts, range(k)), {"m": modes})


def test_summary_and_json_round_trip() -> None:
    found = evaluation()
    report = json.loads(json.dumps(found.to_json()))
    assert report["none"]["reward_mean"] == pytest.approx(0.165)
    assert report["embedding"]["independent_mean"] == pytest.approx(0.315)
    low, high = report["none"]["reward_interval"]
    assert low < 0.165 < high and (low, high) == found.mean("reward", "none").interval
    assert report["none"]["label"] == "empty prompt" and report["labels"]["reward"] == "network"
    first = report["win_rate"]["independent"]["embedding>none"]
    assert first["rate"] == 1 and first["interval"] == pytest.approx([0.025 ** (1 / 24), 1])
    assert first["difference"] == pytest.approx(0.15)
    assert first["difference_interval"] == pytest.approx([0.15, 0.15])
    assert report["win_rate"]["reward"]["none>text"]["rate"] == 0
    assert report["pairs"] == 48 and report["prompts"][2] == "prompt <2>"
    assert report["seeds"][:2] == [[0, 1], [2, 3]] and report["shared_noise"] is False
    assert report["settings"]["height"] == 8 and report["confidence"] == 0.95
    assert Evaluation.from_json(report) == found


def test_json_has_parts_and_sampling_per_mode() -> None:
    found = evaluation()
    own = replace(found, samplings={**found.samplings, "none": found.samplings["none"].at_scale(5)}, baseline="text")
    report = json.loads(json.dumps(own.to_json()))
    assert report["embedding"]["independent_parts"]["colour"]["mean"] == pytest.approx(0.465)
    assert report["embedding"]["independent_parts"]["edge"]["mean"] == pytest.approx(0.165)
    assert len(report["embedding"]["independent_parts"]["edge"]["interval"]) == 2
    assert report["none"]["sampling"]["guidance_scale"] == 5 and report["text"]["sampling"]["guidance_scale"] == 3
    assert report["text"]["sampling"]["spacing"] == "trailing"
    assert Evaluation.from_json(report) == own


def test_reports_from_before_noises_of_their_own_are_read() -> None:
    """Keys as they were written then: one list of seeds for all prompts, no sampling, no parts, other settings."""
    old = {
        "none": {"label": "empty prompt", "reward_mean": 0.5, "reward_interval": [0.4, 0.6]},
        "win_rate": {},
        "pairs": 4,
        "prompts": ["a", "b"],
        "seeds": [0, 1],
        "confidence": 0.95,
        "labels": {"none": "empty prompt"},
        "settings": {"model": "tiny", "guidance_scale": 3.0, "steps": 10, "solver": "dpmpp_2m"},
        "versions": {"torch": "2"},
        "scores": {"reward": {"none": [[0.1, 0.3], [0.5, 0.7]]}},
        "run": {},
    }
    found = Evaluation.from_json(old)
    assert found.pairs == Pairs.shared(["a", "b"], [0, 1]) and found.pairs.crossed
    assert found.mean("reward", "none").value == pytest.approx(0.4)
    assert found.samplings == {} and found.parts == {} and found.settings == old["settings"]
    assert found.to_json()["seeds"] == [[0, 1], [0, 1]] and found.to_json()["shared_noise"] is True


def test_report_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="without prompts, scores"):
        Evaluation.from_json({"seeds": [], "labels": {}, "settings": {}, "versions": {}, "confidence": 0.95})


def test_ties_count_half() -> None:
    found = of(a=[[1.0, 2.0], [3.0, 4.0]], b=[[1.0, 1.0], [3.0, 5.0]])
    assert found.win_rate("m", "a", "b").value == 0.5 and found.win_rate("m", "b", "a").value == 0.5
    assert found.difference("m", "a", "b").value == 0


def test_shared_noises_count_in_every_interval() -> None:
    """The same scores say less when their columns are shared noises that matter."""
    rows = [[p / 50, 0.3 + p / 50, 0.5 + p / 40, 0.1 + p / 50] for p in range(30)]
    other = [[0.2 - p / 50, p / 40, p / 30, 0.2] for p in range(30)]
    own, shared = (of(kind, a=rows, b=other) for kind in (True, False))

    def widths(found: Evaluation) -> list[float]:
        halves = found.halves("m", "a", "b")
        estimates = [found.mean("m", "a"), found.difference("m", "a", "b"), found.win_rate("m", "a", "b"), halves.upper]
        return [high - low for low, high in (e.interval for e in estimates)]

    assert all(b > 1.5 * a for a, b in zip(widths(own), widths(shared), strict=True))


def test_halves_are_sorted_by_the_second_mode() -> None:
    """b's best two pairs are (0, 1) and (1, 1), where a loses 0.3 and 0.6; a's own best are (1, 0) and (0, 1)."""
    found = of(a=[[0.5, 0.6], [0.9, 0.2]], b=[[0.1, 0.9], [0.3, 0.8]])
    halves = found.halves("m", "a", "b")
    assert halves.upper.value == pytest.approx((-0.3 - 0.6) / 2)
    assert halves.lower.value == pytest.approx((0.4 + 0.6) / 2)
    assert found.halves("m", "b", "a").upper.value == pytest.approx((-0.6 + 0.3) / 2)
    assert of(a=[[0.5]], b=[[0.1]]).halves("m", "a", "b") is None


def test_halves_in_json_are_per_comparison() -> None:
    found = of(a=[[0.5, 0.6], [0.9, 0.2]], b=[[0.1, 0.9], [0.8, 0.3]])
    listed, halves = found.to_json()["win_rate"]["m"]["a>b"]["halves"], found.halves("m", "a", "b")
    assert isinstance(halves, Halves) and set(listed) == {"lower", "upper"}
    assert listed["upper"] == {"difference": halves.upper.value, "interval": list(halves.upper.interval)}
    assert listed["lower"]["difference"] == halves.lower.value


def test_worst_pairs_come_first_and_gains_do_not() -> None:
    found = of(a=[[0.5, 0.6], [0.9, 0.2]], b=[[0.1, 0.9], [0.8, 0.3]])
    assert found.worst("m", "a", "b", 5) == [(0, 1), (1, 1)]
    assert found.worst("m", "a", "b", 1) == [(0, 1)] and found.worst("m", "b", "a", 1) == [(0, 0)]


def test_who_is_judged_by_what_against_whom() -> None:
    found = evaluation()
    assert (found.judge, found.subject, found.rival) == ("independent", "embedding", "none")
    assert replace(found, baseline="text").rival == "text"
    two = of(first=[[0.1]], second=[[0.2]])
    assert (two.judge, two.subject, two.rival) == ("m", "second", "first")
    with pytest.raises(ValueError, match="Got the baseline 'x', expected one of the modes a, b"):
        baseline_of(["a", "b"], "x")


def test_confidence_is_that_of_the_intervals() -> None:
    found = evaluation()
    wide = replace(found, confidence=0.99)
    table = found.table("reward", "none")
    assert wide.mean("reward", "none") == estimate(table, confidence=0.99) != found.mean("reward", "none")


def test_labels_are_added() -> None:
    found = evaluation().labelled(none="nothing", embedding="learned")
    assert found.label("none") == "nothing" and found.label("embedding") == "learned" and found.label("x") == "x"
    assert found.label("independent") == "pixels"


def test_unknown_names_list_what_there_is() -> None:
    found = evaluation()
    with pytest.raises(ValueError, match="Got the mode 'x', expected one of none, text, embedding"):
        found.mean("reward", "x")
    with pytest.raises(ValueError, match="Got the measure 'x', expected one of reward, independent"):
        found.mean("x", "none")
    with pytest.raises(ValueError, match="Got the part 'x' of 'independent', expected one of colour, edge"):
        found.part("independent", "x", "none")
    with pytest.raises(ValueError, match="Got the part 'x' of 'reward', expected one of none: it has no parts"):
        found.part("reward", "x", "none")


def test_samplings_are_values() -> None:
    report = evaluation().to_json()
    assert Sampling.from_mapping(report["none"]["sampling"]) == evaluation().samplings["none"]
