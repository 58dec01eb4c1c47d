"""What goes wrong in a training: rewards, divergence, full disks; and what a rehearsal finds before it."""

import errno
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import Constant, Curved, Wrapped
from runs import PROMPTS, QUICK, Steps, records, trainer
from small import SmallModel, start_of

from reneg_core import NegativeEmbedding, load_embedding
from reneg_core.clips import FRAMES
from reneg_core.guidance import Guidance
from reneg_core.rewards import Reward
from reneg_core.sampling import Jitter, Sampling, Size
from reneg_core.training import (
    AdaptConfig,
    ConfigError,
    Prompts,
    Session,
    TrainConfig,
    Trainer,
    adapt,
    rehearsal,
    schedule,
)
from reneg_core.training.identity import _changed_reward, _renewed
from reneg_core.training.judging import check_reward, score
from reneg_core.training.rehearsal import rehearse, rehearse_adaptation, rehearse_sampling
from reneg_core.training.run_folder import RunFolder
from reneg_core.training.schedule import recorded_steps

THREE = Sampling(steps=3).at_scale(3.0)

# rewards


@pytest.fixture
def model() -> SmallModel:
    """A few numbers, unless a test counts what a real architecture keeps."""
    return SmallModel()


class Detached(Curved):
    name = "detached"

    def _score(self, images, prompts):
        return super()._score(images.detach(), prompts)


class Raising(Curved):
    """Fails on pictures of ``side`` pixels; 64 is what it is tried out with."""

    name = "raising"
    side = 64

    def _score(self, images, prompts):
        if images.shape[-1] == self.side:
            raise KeyError("no such prompt")
        return super()._score(images, prompts)


class Late(Raising):
    side = 16


class Odd(Curved):
    """``value`` for every picture of the second prompt, once ``after`` scorings are over (a validation is two, and the
    reward is tried out before)."""

    name = "odd"

    def __init__(self, value: float, after: int = 1) -> None:
        super().__init__()
        self.value, self.after, self.calls = value, after, 0

    def _score(self, images, prompts):
        self.calls += 1
        factor = [self.value if p == PROMPTS[1] and self.calls > self.after else 1.0 for p in prompts]
        return super()._score(images, prompts) * torch.tensor(factor)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (Detached(), r"reward 'detached' carries no gradient with respect to the pictures"),
        (Raising(), r"The reward 'raising' failed on 1 pictures of 64x64 pixels \(KeyError: 'no such prompt'\)"),
    ],
)
def test_a_reward_that_cannot_train_is_refused_before_work(model, tmp_path: Path, reward: Reward, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer(model, tmp_path, reward=reward).run()
    assert [path.name for path in tmp_path.iterdir()] in ([], [".lock"])


def test_a_watched_reward_needs_no_gradient(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, replace(QUICK, steps=1), watch=Detached()).run()
    assert all(math.isfinite(record["watch"]) for record in records(tmp_path, "validation"))


def test_a_reward_that_raises_later_is_named(stable_diffusion, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The reward 'raising' failed on 2 pictures of 16x16 pixels \(KeyError"):
        trainer(stable_diffusion, tmp_path, reward=Late()).run()


def test_adaptation_names_such_rewards_too(stable_diffusion) -> None:
    start = NegativeEmbedding(stable_diffusion.encode([""]).tokens, stable_diffusion.family)
    config = AdaptConfig(steps=1, sampling=Sampling(steps=2).at_scale(4.0), window=(0, 2), points=1)
    for reward, words in ((Detached(), "carries no gradient"), (Late(), "failed on 1 pictures of 16x16")):
        with pytest.raises(ValueError, match=words):
            adapt(stable_diffusion, reward, ["a"], [1], start, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_ends_the_run_at_once_and_names_the_picture(
    model, tmp_path: Path, value: float
) -> None:
    with pytest.raises(FloatingPointError, match=rf"reward 'odd' gave -?{value} for a validation picture of 'blue'"):
        trainer(model, tmp_path, reward=Odd(value)).run()
    assert not (tmp_path / "negative.safetensors").exists() and not (tmp_path / "metrics.jsonl").exists()


def test_a_reward_that_becomes_no_number_keeps_the_best(model, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="gave nan for a validation picture of 'blue'"):
        trainer(model, tmp_path, replace(QUICK, validate_every=1), reward=Odd(float("nan"), after=3)).run()
    assert torch.equal(load_embedding(tmp_path / "best.safetensors").tokens, model.encode([""]).tokens)


def test_a_watched_reward_that_becomes_no_number_vetoes(model, tmp_path: Path) -> None:
    watch = Odd(float("nan"), after=2)
    result = trainer(model, tmp_path, replace(QUICK, watch_drop=9.0), watch=watch).run()
    assert result.best_step == 0
    assert [record["watch"] is None for record in records(tmp_path, "validation")] == [False, True, True, True]
    with pytest.raises(FloatingPointError, match=r"The watched reward is nan at the start\. Expected a finite number"):
        trainer(model, tmp_path / "other", watch=Odd(float("nan"), after=0)).run()


class NeverFinite(Curved):
    def _score(self, images, prompts):
        return super()._score(images, prompts) * (float("nan") if images.requires_grad else 1.0)


def test_hopeless_gradients_name_the_best_only_if_there_is_one(model, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"5 steps in a row at step 5\. The best so far is in .*best\.safeten"):
        trainer(model, tmp_path, reward=NeverFinite()).run()
    assert "Nothing has been learned yet" in RunFolder(tmp_path / "empty").best_so_far()


# divergence and settings


def test_a_learning_rate_that_is_too_high_is_blamed_itself(stable_diffusion, tmp_path: Path) -> None:
    words = (
        r"NaN or infinite pixels at step 1\. After 1 steps at learning_rate 1e\+30 the embedding has moved .*best\.safe"
    )
    with pytest.raises(FloatingPointError, match=words):
        trainer(stable_diffusion, tmp_path, replace(QUICK, learning_rate=1e30)).run()
    assert torch.equal(load_embedding(tmp_path / "best.safetensors").tokens, stable_diffusion.encode([""]).tokens)


def test_a_model_that_makes_no_pictures_is_blamed_itself(model, tmp_path: Path) -> None:
    class Overflowing(Wrapped):
        def decode(self, latents, frames=0):
            return self._model.decode(latents, frames) * float("nan")

    with pytest.raises(FloatingPointError, match=r"at step 0\. The model makes them before anything was learned; try"):
        trainer(Overflowing(model), tmp_path).run()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_settings_that_are_no_numbers_are_refused(value: float) -> None:
    names = ["learning_rate", "weight_decay", "gradient_clip", "norm_limit", "watch_drop", "checkpoint_minutes"]
    for name in names:
        with pytest.raises(ConfigError, match=f"- {name}: got {value}, expected"):
            TrainConfig(**{name: value})
    for name in ("guidance_scale", "guidance_start", "guidance_end", "guidance_rescale", "guidance_attention"):
        with pytest.raises(ValueError, match=f"{value}"):
            TrainConfig.from_mapping({"sampling": {name: value}})
    for settings in ({"betas": [0.9, value]}, {"jitter": {"guidance_scale": [2.0, value]}}):
        with pytest.raises(ConfigError, match=f"{value}"):
            TrainConfig.from_mapping(settings)


# full disks


@pytest.mark.parametrize("call", [0, 1, 2, 3, 4, 5, 6, 7])
def test_a_full_disk_ends_a_run_that_resumes_to_the_same_end(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Each of the first eight files that a run writes, refused in turn: what was there stays good."""
    whole = trainer(model, tmp_path / "whole").run()
    calls, fsync = iter(range(1000)), os.fsync

    def full(handle: int) -> None:
        if next(calls) == 2 * call:  # a file, then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        trainer(model, tmp_path / "run").run()
    monkeypatch.setattr(os, "fsync", fsync)
    resumed = trainer(model, tmp_path / "run", resume=True).run()
    assert torch.equal(resumed.embedding.tokens, whole.embedding.tokens)
    assert not list((tmp_path / "run").rglob("*.part"))
    assert [r["step"] for r in records(tmp_path / "run", "step")] == [*range(1, 7)]


def test_metrics_that_cannot_be_written_name_the_file_and_what_to_do(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"Could not write the metrics \(No space left on device\)\. Make room") as error:
        folder.record({"event": "step", "step": 1})
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(folder.metrics))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            torch.full((2, 3, 4, 6), math.inf),
            "Got pictures with NaN or infinite pixels, expected finite ones. Try fp32 instead of half precision, or a "
            "lower learning rate.",
        ),
        (
            torch.rand(2, 3, 4, 6),
            "The reward 'raising' failed on 2 pictures of 6x4 pixels (KeyError: 'no such prompt'). Expected one number "
            "per picture; try `reneg score` with it on a picture.",
        ),
    ],
)
def test_what_a_reward_cannot_judge_is_said(images: torch.Tensor, words: str) -> None:
    reward = Raising()
    reward.side = 6
    with pytest.raises((FloatingPointError, ValueError)) as error:
        score(reward, images, ["a", "b"])
    assert str(error.value) == words


def test_a_reward_that_says_it_has_no_gradient_is_not_asked() -> None:
    class Counted(Curved):
        name, differentiable = "counted", False

        def _score(self, images, prompts):
            asked.append(images.requires_grad)
            return super()._score(images, prompts)

    asked: list[bool] = []
    with pytest.raises(ValueError, match=r"^The reward 'counted' carries no gradient with respect to the pictures"):
        check_reward(Counted(), "a", torch.device("cpu"))
    assert asked == []
    check_reward(Counted(), "a", torch.device("cpu"), gradient=False)
    assert asked == [False]


def test_a_reward_is_tried_on_the_same_picture_every_time() -> None:
    """Also one that does not say whether it has a gradient."""
    seen: list[torch.Tensor] = []

    class Plain:
        name = "plain"

        def score(self, images, prompts):
            seen.append(images.detach())
            return images.mean((1, 2, 3))

    check_reward(Plain(), "a", torch.device("cpu"))
    assert torch.equal(seen[0], torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


def test_what_changed_in_a_reward_is_named() -> None:
    old, new = ({"name": "judge", "version": version, "weights": f"sha256:{version}"} for version in "12")
    assert _changed_reward("watch", old, new) == [
        "watch: the version was 1, now it is 2.",
        "watch: the weights are not what the run was started with.",
    ]


def test_settings_that_did_not_exist_yet_have_their_defaults() -> None:
    found = _renewed({"settings": {"steps": 3}, "start": {"file": "x"}}, TrainConfig)
    assert (found["settings"]["steps"], found["settings"]["micro_batch"], found["start"]) == (3, 8, {"file": "x"})


def test_a_step_says_its_seconds(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four decimals, and the run's own from its beginning."""

    class Third(Wrapped):
        def denoise(self, x, sigma, conditioning, branches):
            clock[0] += 1 / 3
            return self._model.denoise(x, sigma, conditioning, branches)

    clock = turned(monkeypatch)
    clock[0] = 5000.0
    run = trainer(Third(model), tmp_path, replace(QUICK, steps=2, validate_every=9, window=(2, 3)))
    run.run()
    found = [record["seconds"] for record in records(tmp_path, "step")]
    assert found == [1.6667, 1.6667]
    assert run.progress.seconds == pytest.approx(clock[0] - 5000, abs=2) and 0 < run.progress.seconds < 100


# rehearsal


class Clocked(Wrapped):
    """A model each of whose passes takes a second a row, and nothing else any time."""

    def __init__(self, model, clock: list[float]) -> None:
        super().__init__(model)
        self.clock = clock

    def denoise(self, x, sigma, conditioning, branches):
        self.clock[0] += len(x)
        return self._model.denoise(x, sigma, conditioning, branches)


def turned(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    return clock


def test_a_rehearsal_takes_what_the_run_takes(
    stable_diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient point at every step index in turn, so that steps take 2 to 6 seconds a sample."""
    clock = turned(monkeypatch)
    config = replace(QUICK, steps=8, validate_every=3, jitter=Jitter(solver=("euler", "dpmpp_2m")))
    run = trainer(Clocked(stable_diffusion, clock), tmp_path / "run", config)
    found = rehearse(run, list(stable_diffusion.pipeline.unet.parameters()))
    assert not (tmp_path / "run").exists()
    assert found.validation == 3 * 2 * 3 and found.micro_batch == 2 and found.parts >= 2
    assert found.total == pytest.approx(8 * found.step + 4 * found.validation)
    clock[0] = 0.0
    run.run()
    assert clock[0] == pytest.approx(found.total, rel=0.25)


def test_what_is_timed_first_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    assert rehearsal._mean(seen.append, 3)[1] == 3 and seen == [0, 0, 1, 2]
    monkeypatch.setattr(rehearsal, "SECONDS", 0.0)
    seen.clear()
    assert rehearsal._mean(seen.append, 3)[1] == 1 and seen == [0, 0], "at least one"


def test_a_rehearsal_tries_the_steps_that_come_next(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    class Noted(Trainer):
        def trial(self, step: int, rows: range) -> None:
            tried.append(step)
            super().trial(step, rows)

    count = Steps(2)
    trainer(model, tmp_path, observer=count, should_stop=count.enough).run()
    run = Noted(model, Curved(), Prompts(PROMPTS, PROMPTS[:2]), QUICK, tmp_path, session=Session(resume=True))
    found = rehearse(run, [])
    assert tried[-8:] == [*range(2, 10)] and (found.parts, found.checks, found.peak) == (8, 8, 0)


def test_a_rehearsal_of_a_resumed_run_counts_what_is_left(model, tmp_path: Path, monkeypatch) -> None:
    count = Steps(4)
    trainer(model, tmp_path, observer=count, should_stop=count.enough).run()
    clock = turned(monkeypatch)
    found = rehearse(trainer(Clocked(model, clock), tmp_path, resume=True), [])
    assert found.total == pytest.approx(2 * found.step + 2 * found.validation)


def test_a_trial_finds_what_fits_of_the_gradient(model, tmp_path: Path) -> None:
    """Less than of the rollout; the run's own number is what is left to begin with."""

    class Small(Wrapped):
        def denoise(self, x, sigma, conditioning, branches):
            if conditioning.tokens.requires_grad and len(x) > 2:
                refused.append(len(x))
                raise torch.OutOfMemoryError("out of memory")
            return self._model.denoise(x, sigma, conditioning, branches)

    refused: list[int] = []
    config = replace(QUICK, batch_size=8, micro_batch=6, window=(2, 3))
    run = trainer(Small(model), tmp_path, config)
    found = rehearse(run, [])
    assert found.micro_batch == 1 and run.progress.micro_batch == 6
    refused.clear()
    run.progress.micro_batch = 4
    run.inside(lambda: run.trial(0, range(6)))
    assert refused == [4] and run.progress.micro_batch == 2


def test_an_adaptation_takes_what_its_first_step_does(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three batches of two, one and no more, six visits each; the last one of each needs no gradient."""
    clock = turned(monkeypatch)
    clock[0] = began = 50.0
    config = AdaptConfig(steps=5, patience=9, points=1, micro_batch=2, window=(2, 3), sampling=THREE)
    pairs = PROMPTS[:5], [*range(5)], start_of(model)
    clocked = Clocked(model, clock)
    seconds, kept = rehearse_adaptation(clocked, Curved(), *pairs, config, [])
    visit = clock[0] - began
    assert visit == 3 * 2 * 2, "two branches of two pictures"
    assert seconds == 3 * 6 * visit and kept > 0
    adapt(clocked, Curved(), *pairs, config)
    assert 0.7 * seconds < clock[0] - began - visit < seconds
    [small, *_] = model.encode(["a"]).tokens
    assert rehearse_adaptation(model, Curved(), *pairs, config, [small])[1] <= kept


def test_pictures_take_what_one_pass_does(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each row of a pass, a tenth for each pixel of a latent that is decoded."""
    clock = turned(monkeypatch)
    clock[0] = 70.0
    seen: list[tuple[int, str]] = []

    class Decoded(Clocked):
        def encode(self, prompts):
            seen.append((len(prompts), prompts[0]))
            return self._model.encode(prompts)

        def decode(self, latents, frames=0):
            assert frames == FRAMES
            clock[0] += 0.1 * latents[:, 0].numel()
            return self._model.decode(latents)

    found = rehearse_sampling(Decoded(model, clock), THREE, PROMPTS[:2])
    assert found == pytest.approx(3 * 2 * 2 + 0.1 * 2 * 4) and seen == [(2, PROMPTS[0]), (1, "")]
    assert clock[0] == pytest.approx(70 + 2 * (2 * 2 + 0.1 * 2 * 4)), "each twice, the first one is not counted"
    wide = replace(THREE, guidance=Guidance(3.0, start=0.5, end=1.0), size=Size(8, 12))
    found = rehearse_sampling(Decoded(model, clock), wide, PROMPTS[:2])
    assert found == pytest.approx(3 * 2 * 2 + 0.1 * 2 * 24), "guided"


def test_a_rehearsal_halves_what_does_not_fit_and_counts_no_weights(
    stable_diffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "SECONDS", 0.0)

    class Small(Wrapped):
        def denoise(self, x, sigma, conditioning, branches):
            if len(x) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return self._model.denoise(x, sigma, conditioning, branches)

    config = replace(QUICK, micro_batch=4, window=(2, 3))
    weights = [p for part in (stable_diffusion.pipeline.unet, stable_diffusion.pipeline.vae) for p in part.parameters()]
    found = rehearse(trainer(Small(stable_diffusion), tmp_path, config), weights)
    assert found.micro_batch == 1
    once, twice = (
        rehearse(trainer(stable_diffusion, tmp_path, replace(config, window=(0, 3), points=n)), weights).kept
        for n in (1, 3)
    )
    assert once == pytest.approx(twice, rel=0.02)
    assert rehearse(trainer(stable_diffusion, tmp_path, config), []).kept > found.kept


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("absent.safetensors", "No embedding file at absent"),
        ("narrow.safetensors", "Got an embedding for the text encoder width-8"),
    ],
)
def test_a_rehearsal_finds_what_a_run_would_stumble_over(
    model, tmp_path: Path, init: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    NegativeEmbedding(torch.ones(1, 4, 8)).save("narrow.safetensors")
    with pytest.raises((ValueError, OSError), match=words):
        rehearse(trainer(model, tmp_path / "run", replace(QUICK, init=init)), [])
    with pytest.raises(ValueError, match="carries no gradient"):
        rehearse(trainer(model, tmp_path / "run", reward=Detached()), [])
    assert not (tmp_path / "run").exists()


def test_constant_rewards_are_no_fault(model, tmp_path: Path) -> None:
    assert trainer(model, tmp_path, replace(QUICK, steps=1), reward=Constant()).run().reason == "done"


def test_a_rehearsal_counts_the_steps_that_the_gradient_passes_through_from_its_earliest_point():
    sampling = Sampling("euler", 8, "karras").at_scale(3.0)
    for through, steps in ((1, 1), (3, 3), (0, None)):
        config = TrainConfig(sampling=sampling, window=(0, 8), points=2, through=through)
        first = min(schedule.gradient_points((0, 8), 2, config.seed, 5))
        assert first < 4 and recorded_steps(config, 5) == (steps or 8 - first)
