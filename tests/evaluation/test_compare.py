"""Evaluation on a model with a closed form: every picture is one grey level that can be worked out by hand."""

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from evaluations import GreyModel, grey, level
from processes import in_processes
from torch import Tensor

from reneg_core.evaluation import Evaluation, Keep, Mode, Pairs, evaluate
from reneg_core.evaluation.compare import _Losses, versions
from reneg_core.failures import EndedElsewhere
from reneg_core.model import Conditioning
from reneg_core.rewards.smoke import Brightness
from reneg_core.sampling import Sampling, Size, sample
from reneg_core.training.workers import Workers

MODES = {"none": Mode(level(0.0), "empty prompt"), "good": Mode(level(-0.1))}
PROMPTS, SEEDS = ["dark", "bright"], [0, 1, 2]
SAMPLING = Sampling(steps=1).at_scale(1.5)


def run(
    model: GreyModel | None = None,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    modes: dict = MODES,
    measures: dict | None = None,
    sampling: Sampling = SAMPLING,
    **options: object,
) -> Evaluation:
    pairs = Pairs.shared(prompts, seeds)
    return evaluate(model or GreyModel(), pairs, modes, measures or {"reward": grey}, sampling, **options)


def close(found: object, expected: object) -> bool:
    return torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-6)


def test_scores_are_the_closed_form() -> None:
    """none: 1.5 * positive; good: 1.5 * positive + 0.05; and 0.01 per seed for both, whatever the batches."""
    expected = torch.tensor([[0.30, 0.31, 0.32], [0.90, 0.91, 0.92]])
    for batch_size in (1, 4, 100):
        scores = run(batch_size=batch_size).scores["reward"]
        assert close(scores["none"], expected.tolist()) and close(scores["good"], (expected + 0.05).tolist())


def test_every_pair_is_drawn_from_its_own_noise() -> None:
    pairs = Pairs(("dark", "bright"), ((4, 1), (7, 0)))
    model = GreyModel()
    found = evaluate(model, pairs, MODES, {"reward": grey}, SAMPLING, batch_size=3)
    assert close(found.scores["reward"]["none"], [[0.34, 0.31], [0.97, 0.90]])
    assert model.noises == [(4, 1, 7), (0,)] and found.pairs == pairs


def test_every_mode_starts_from_the_same_noise_drawn_once() -> None:
    model = GreyModel()
    run(model, batch_size=4)
    assert model.noises == [(0, 1, 2, 0), (1, 2)] and model.prepared == 1


def test_a_mode_may_bring_its_own_sampling() -> None:
    """At scale 2 and 3: 2 * 0.2 + 0.1 and 3 * 0.2 + 0.2, plus 0.01 per seed, from the same noise as the others."""
    own = {f"at {scale}": Mode(level(-0.1), sampling=SAMPLING.at_scale(scale)) for scale in (2, 3)}
    model = GreyModel()
    found = run(model, ["dark"], [0, 5], {**MODES, **own})
    scores = found.scores["reward"]
    assert close(scores["good"], [[0.35, 0.40]])
    assert close(scores["at 2"], [[0.50, 0.55]]) and close(scores["at 3"], [[0.80, 0.85]])
    assert model.noises == [(0, 5)]
    assert found.samplings == {
        name: SAMPLING.at_scale(s) for name, s in zip(found.modes, (1.5, 1.5, 2, 3), strict=True)
    }


def test_a_mode_may_bring_its_own_model() -> None:
    """One whose encoder says half as much: 1.5 times half of the prompt's grey."""

    class Half(GreyModel):
        def encode(self, prompts: Sequence[str]) -> Conditioning:
            return replace(super().encode(prompts), tokens=super().encode(prompts).tokens / 2)

    scores = run(modes={**MODES, "tuned": Mode(level(0.0), model=Half())}).scores["reward"]
    assert close(scores["tuned"], [[0.15, 0.16, 0.17], [0.45, 0.46, 0.47]])
    assert close(scores["none"], [[0.30, 0.31, 0.32], [0.90, 0.91, 0.92]])


def test_one_negative_per_pair() -> None:
    rows = level(0.0, 0.1, 0.2, 0.0, 0.0, 0.3)
    scores = run(modes={"adapted": Mode(rows)}, batch_size=4).scores["reward"]["adapted"]
    assert close(scores, [[0.30, 0.26, 0.22], [0.90, 0.91, 0.77]])


def test_parts_are_recorded_per_mode_and_pair() -> None:
    def split(images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        level = grey(images, prompts)
        return {"low": level / 10, "known": torch.tensor([float(prompt == "dark") for prompt in prompts])}

    found = run(parts={"reward": split}, batch_size=4)
    assert close(found.parts["reward"]["low"]["good"], [[0.035, 0.036, 0.037], [0.095, 0.096, 0.097]])
    assert found.parts["reward"]["known"] == {mode: [[1.0] * 3, [0.0] * 3] for mode in MODES}
    assert found.part("reward", "low", "none").value == pytest.approx(0.061)


def test_settings_say_how_to_do_it_again() -> None:
    found = run(sampling=Sampling("dpmpp_2m", 2, "karras", size=Size(6, 8)).at_scale(2))
    assert found.settings["model"] == "grey" and found.settings["solver"] == "dpmpp_2m"
    assert [found.settings[key] for key in ("steps", "spacing", "guidance_scale")] == [2, "karras", 2]
    assert (found.settings["height"], found.settings["width"], found.settings["device"]) == (6, 8, "cpu")
    sizes = [run().settings[side] for side in ("height", "width")]
    assert sizes == [4, 4], "the size that came out, where none was asked for"
    assert found.labels == {"none": "empty prompt"} and found.versions == versions()


def test_versions_are_those_of_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "torch":
            raise PackageNotFoundError
        return f"{package} 1"

    monkeypatch.setattr("reneg_core.evaluation.compare.version", version)
    others = {package: f"{package} 1" for package in ("reneg", "diffusers", "transformers")}
    assert versions() == {"python": platform.python_version()} | others


def test_kept_pictures_are_evenly_spaced_and_right() -> None:
    pictures = run(keep=Keep(3), batch_size=4, sampling=Sampling(steps=1, size=Size(6, 8)).at_scale(1.5)).pictures
    assert pictures.pairs == ((0, 0), (0, 2), (1, 1))
    assert pictures.images["good"].shape == (3, 3, 6, 8)
    assert close(pictures.images["good"].mean((1, 2, 3)).tolist(), [0.35, 0.37, 0.96])
    assert run(keep=Keep(2)).pictures.pairs == ((0, 0), (1, 1))
    assert run().pictures.pairs == () and run().pictures.images == {}
    assert len(run(keep=Keep(50)).pictures.pairs) == 6


def test_the_largest_losses_are_kept_with_both_pictures() -> None:
    """The embedding loses half of its level: 0.05, 0.1, 0.15 on pairs 1, 5, 2; gains are none of it."""
    modes = {"none": Mode(level(0.0)), "embedding": Mode(level(-0.1, 0.1, 0.3, -0.1, 0.0, 0.2)), "late": MODES["good"]}
    for batch_size in (2, 100):
        losses = run(modes=modes, keep=Keep(losses=2), batch_size=batch_size).losses
        assert losses.pairs == ((0, 2), (1, 2)) and list(losses.images) == ["none", "embedding"]
        assert close(losses.images["none"].mean((1, 2, 3)).tolist(), [0.32, 0.92])
        assert close(losses.images["embedding"].mean((1, 2, 3)).tolist(), [0.17, 0.82])
    assert run(modes=modes, keep=Keep(losses=9)).losses.pairs == ((0, 2), (1, 2), (0, 1))
    against = run(modes=modes, keep=Keep(losses=9, baseline="late"))
    assert len(against.losses.pairs) == 4 and against.rival == "late" and next(iter(against.losses.images)) == "late"


def test_losses_are_judged_by_the_independent_measure() -> None:
    measures = {"reward": grey, "independent": lambda images, prompts: -grey(images, prompts), "last": grey}
    assert len(run(measures=measures, keep=Keep(losses=9)).losses.pairs) == 6
    assert run(keep=Keep(losses=9)).losses.pairs == ()
    assert run(modes={"none": MODES["none"]}, keep=Keep(losses=9)).losses.pairs == ()


def test_losses_hold_two_modes_and_no_more_pictures_than_asked_for() -> None:
    plan = _Losses("embedding", "none", "m", 1)
    assert [plan.watches(mode) for mode in ("none", "embedding", "text")] == [True, True, False]
    assert not replace(plan, most=0).watches("none") and not replace(plan, baseline="embedding").watches("embedding")
    two = {mode: torch.rand(2, 3, 2, 2) for mode in ("none", "embedding")}
    plan.offer(range(2), {"none": [1.0, 1.0], "embedding": [0.5, 0.5]}, two)
    assert plan.pictures(Pairs.shared(["dark"], [0, 1])).pairs == ((0, 0),), "the first of equal ones"


def test_one_prompt_and_one_pair() -> None:
    one = run(prompts=["dark"]).mean("reward", "none")
    assert one.value == pytest.approx(0.31)
    assert one.interval == pytest.approx((0.31 - 0.0248, 0.31 + 0.0248), abs=1e-4), "t with 2 degrees of freedom"
    report = run(prompts=["dark"], seeds=[7]).to_json()
    assert report["none"]["reward_interval"] is None
    assert report["win_rate"]["reward"]["good>none"]["interval"] is None
    assert report["win_rate"]["reward"]["good>none"]["halves"] == {}


def test_a_reward_that_ignores_prompts_is_a_measure() -> None:
    assert run(measures={"brightness": Brightness().score}).mean("brightness", "none").value == pytest.approx(0.61)


def test_nothing_is_recorded_for_gradients() -> None:
    negative = Conditioning(level(0.0).tokens.requires_grad_())
    seen = []
    run(modes={"n": Mode(negative)}, measures={"m": lambda i, p: seen.append(i.requires_grad) or grey(i, p)})
    assert seen == [False]


def test_progress_ends_at_the_number_of_pictures() -> None:
    calls = []
    run(batch_size=4, progress=lambda *call: calls.append(call))
    assert calls == [(4, 12), (8, 12), (10, 12), (12, 12)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modes": {}}, "Got no modes, expected at least one of each"),
        ({"modes": {"wide": Mode(Conditioning(torch.zeros(1, 2, 5)))}}, "width 5 for the mode 'wide', expected 3"),
        ({"modes": {"two": Mode(level(0.0, 0.0))}}, "Got 2 negatives for the mode 'two', expected 1 or 6"),
        ({"modes": {"seeds": MODES["none"]}}, "Got a mode called 'seeds'"),
        ({"modes": {"parts": MODES["none"]}}, "Got a mode called 'parts'"),
        ({"modes": {"a>b": MODES["none"]}}, "Got a mode called 'a>b'"),
        ({"modes": {"reward": MODES["none"]}}, "Got reward as a mode and as a measure"),
        (
            {"modes": {"tall": Mode(level(0.0), sampling=Sampling(size=Size(8, 4)))}},
            "Got another picture size for the mode 'tall' than for the comparison, expected the same: all modes start "
            "from the same noise.",
        ),
        ({"parts": {"x": lambda i, p: {}}}, "Got parts of 'x', expected one of reward"),
        (
            {"parts": {"x": lambda i, p: {}}, "measures": {"a": grey, "b": grey}},
            "Got parts of 'x', expected one of a, b\\.$",
        ),
        (
            {"modes": dict.fromkeys("ab", MODES["none"]), "measures": dict.fromkeys("ab", grey)},
            "Got a, b as a mode and as a measure, expected different names",
        ),
        ({"modes": {"a>b": MODES["none"]}}, "without '>' that is none of [a-z_]+, [a-z_]+"),
        ({"keep": Keep(baseline="text")}, "Got the baseline 'text', expected one of the modes none, good"),
        ({"batch_size": 0}, "Got batch size 0"),
    ],
)
def test_refused_before_sampling(options: dict, message: str) -> None:
    model = GreyModel()
    with pytest.raises(ValueError, match=message):
        run(model, **options)
    assert model.prepared == 0


def test_a_measure_that_fails_is_named_with_its_pair() -> None:
    def broken(images: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([float("nan") if p == "bright" else 0.0 for p in prompts])

    told = "prompt 'bright', seed 0; expected a finite number. Try fp32, and look at that picture.$"
    with pytest.raises(ValueError, match=f"Got nan from the measure 'm' for the mode 'none', {told}"):
        run(measures={"m": broken})
    with pytest.raises(ValueError, match=r"Got list from the measure 'm', expected a tensor \[6\], one per picture"):
        run(measures={"m": lambda images, prompts: [0.0] * 6})
    with pytest.raises(ValueError, match=r"Got shape \[\] from the measure 'm', expected a tensor \[6\]"):
        run(measures={"m": lambda images, prompts: images.mean()})
    with pytest.raises(ValueError, match="Got nan from the part 'p' of 'reward' for the mode 'none', prompt 'bright'"):
        run(parts={"reward": lambda images, prompts: {"p": broken(images, prompts)}})


def test_stable_diffusion_end_to_end(model) -> None:
    """On the real architectures: the pictures are those of the sampler alone, for batches that split prompts."""
    modes = {"none": Mode(model.encode([""])), "text": Mode(model.encode(["ugly"]))}
    sampling, pairs = Sampling(steps=3).at_scale(4), Pairs.own(["a red fox", "blue"], 2)
    whole = evaluate(model, pairs, modes, {"m": grey}, sampling, keep=Keep(4), batch_size=4)
    split = evaluate(model, pairs, modes, {"m": grey}, sampling, keep=Keep(4), batch_size=3)
    positive = model.encode(["a red fox", "a red fox", "blue", "blue"])
    noise = model.noise([seed for _, seed in pairs])
    latents = sample(model, positive, modes["text"].negative, noise, sampling)
    assert torch.equal(whole.pictures.images["text"], model.decode(latents))
    assert torch.allclose(whole.pictures.images["text"], split.pictures.images["text"], atol=1e-5)
    assert whole.settings["height"] == 16


LOSING = {
    "none": Mode(level(0.0)),
    "good": Mode(level(-0.1)),
    "embedding": Mode(level(*(0.01 * i for i in range(-5, 7)))),
}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_processes_share_the_batches_and_find_the_same(count: int, batch_size: int) -> None:
    """To the last bit: the numbers, their order, the kept pictures and those of the largest losses."""
    prompts, seeds = ["dark", "bright", "light", ""], [0, 1, 2]
    keep, parts = Keep(5, 3), {"reward": lambda images, prompts: {"half": images.mean((1, 2, 3)) / 3}}
    options = {"prompts": prompts, "seeds": seeds, "modes": LOSING, "keep": keep, "parts": parts}
    alone, models = run(batch_size=batch_size, **options), [GreyModel() for _ in range(count)]
    told: list[list[tuple[int, int]]] = [[] for _ in range(count)]

    def one(workers: Workers) -> Evaluation:
        told_here = told[workers.rank]
        model, progress = models[workers.rank], lambda *at: told_here.append(at)
        return run(model, batch_size=batch_size, workers=workers, progress=progress, **options)

    for found in in_processes(count, one):
        assert found.to_json() == alone.to_json() and json.dumps(found.to_json()) == json.dumps(alone.to_json())
        for kept, expected in ((found.pictures, alone.pictures), (found.losses, alone.losses)):
            assert kept.pairs == expected.pairs and list(kept.images) == list(expected.images)
            assert all(torch.equal(kept.images[mode], expected.images[mode]) for mode in kept.images)
    assert len(alone.losses.pairs) == 3 and len(alone.pictures.pairs) == 5
    drawn = [noises for model in models for noises in model.noises]
    assert drawn == [tuple(seeds * 4)[i : i + batch_size] for i in range(0, 12, batch_size)], (
        "each batch once, as alone"
    )
    assert all(at == sorted(at) and at[-1] == (36, 36) for at in told if at)
    assert all(type(done) is int for at in told for done, _ in at)


def test_a_measure_that_fails_in_one_process_ends_all() -> None:
    def measure(images: Tensor, prompts: list[str]) -> Tensor:
        return grey(images, prompts) / (0 if "bright" in prompts else 1)

    options = {"measures": {"m": measure}, "batch_size": 3}
    found = in_processes(2, lambda workers: run(prompts=["bright", "dark"], workers=workers, **options))
    assert [type(error) for error in found] == [ValueError, EndedElsewhere]
    found = in_processes(2, lambda workers: run(workers=workers, **options))
    assert [type(error) for error in found] == [EndedElsewhere, ValueError]
    assert "Got inf from the measure 'm' for the mode 'none', prompt 'bright', seed 0" in str(found[1])
