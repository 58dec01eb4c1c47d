"""Global training: it climbs, resumes bit for bit, stops cleanly, survives memory faults and refuses bad input."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import Constant, Curved, Recorder, Wrapped
from runs import PROMPTS, QUICK, SAMPLING, records, trainer

from reneg_core import NegativeEmbedding, load_embedding
from reneg_core.files import write_tensors
from reneg_core.model import Conditioning
from reneg_core.sampling import Jitter, Sampling, sample
from reneg_core.training import Batch, Prompts, Reach, Trainer, reward_gradient, schedule
from reneg_core.training.state import load_state
from reneg_core.training.workers import Workers


def test_reward_rises_and_files_are_there(model, tmp_path: Path) -> None:
    result = trainer(model, tmp_path, replace(QUICK, steps=20, validate_every=10)).run()
    assert result.reason == "done" and result.steps == 20
    assert result.best_reward > result.start_reward + 0.02
    saved = load_embedding(tmp_path / "negative.safetensors")
    assert torch.equal(saved.tokens, result.embedding.tokens)
    assert saved.provenance.steps == result.best_step and saved.provenance.rewards == "curved"
    assert saved.provenance.base_digest == model.digest() and len(saved.provenance.prompts_digest) == 64
    assert [r["step"] for r in records(tmp_path, "validation")] == [0, 10, 20]
    assert len(records(tmp_path, "step")) == 20


def test_the_best_is_never_below_the_start(model, tmp_path: Path) -> None:
    result = trainer(model, tmp_path, replace(QUICK, learning_rate=50.0)).run()
    assert result.best_reward >= result.start_reward
    validations = records(tmp_path, "validation")
    assert result.best_reward == max(record["reward"] for record in validations)


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_resume_equals_an_unbroken_run(model, tmp_path: Path, stop_after: int) -> None:
    whole = trainer(model, tmp_path / "whole").run()
    calls = {"steps": 0}

    class Count:
        on_validation = staticmethod(lambda *_: None)

        @staticmethod
        def on_step(record: dict) -> None:
            calls["steps"] += 1

    broken = trainer(model, tmp_path / "broken", observer=Count, should_stop=lambda: calls["steps"] >= stop_after).run()
    assert broken.reason == "stopped" and broken.steps == stop_after
    resumed = trainer(model, tmp_path / "broken", resume=True).run()
    assert torch.equal(resumed.embedding.tokens, whole.embedding.tokens)
    for event, fields in (("step", ("step", "reward", "gradient_norm")), ("validation", ("step", "reward", "best"))):
        pick = [[[r[f] for f in fields] for r in records(tmp_path / run, event)] for run in ("whole", "broken")]
        assert pick[0] == pick[1]
    states = [load_state(tmp_path / run / "checkpoints/step-00000006.safetensors")[0] for run in ("whole", "broken")]
    for group in ("tensors", "first", "second"):
        assert torch.equal(*(getattr(state.learner, group)["tokens"] for state in states))
    assert vars(states[0].scale) == vars(states[1].scale)


def test_a_killed_run_resumes_from_its_last_checkpoint(model, tmp_path: Path) -> None:
    whole = trainer(model, tmp_path / "whole").run()

    class Killed(BaseException):
        pass

    class Kill:
        on_validation = staticmethod(lambda *_: None)

        @staticmethod
        def on_step(record: dict) -> None:
            if record["step"] == 5:
                raise Killed

    with pytest.raises(Killed):
        trainer(model, tmp_path / "killed", observer=Kill).run()
    (tmp_path / "killed/checkpoints/step-00000005.safetensors").write_bytes(b"half a file")
    resumed = trainer(model, tmp_path / "killed", resume=True).run()
    assert torch.equal(resumed.embedding.tokens, whole.embedding.tokens)
    assert [r["step"] for r in records(tmp_path / "killed", "step")] == [1, 2, 3, 4, 5, 6]


class Fragile(Wrapped):
    """A model that has memory for only ``limit`` rows."""

    def __init__(self, model, limit: int) -> None:
        super().__init__(model)
        self._limit = limit

    def denoise(self, x, sigma, conditioning, branches):
        if x.shape[0] > self._limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self._model.denoise(x, sigma, conditioning, branches)


def test_out_of_memory_halves_what_does_not_fit(model, tmp_path: Path) -> None:
    """A pass of the validation's three pictures has six rows, one of the rollout's four has eight."""
    config = replace(QUICK, micro_batch=4)
    result = trainer(Fragile(model, 2), tmp_path / "fragile", config).run()
    noted = [(r.get("micro_batch"), r.get("rollout_batch")) for r in records(tmp_path / "fragile", "out_of_memory")]
    assert noted == [(1, None), (None, 2), (None, 1)]
    roomy = trainer(model, tmp_path / "roomy", config).run()
    assert torch.allclose(result.embedding.tokens, roomy.embedding.tokens, atol=1e-3)


def test_out_of_memory_with_one_row_is_reported(model, tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trainer(Fragile(model, 0), tmp_path).run()


def test_shares_cover_a_batch_without_overlap() -> None:
    workers = Workers()
    shares = []
    for workers.rank in range(3):
        workers.count = 3
        shares.append(workers.share(range(8)))
    assert [row for share in shares for row in share] == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_patience_stops_early(model, tmp_path: Path) -> None:
    config = replace(QUICK, patience=2, validate_every=1)
    result = trainer(model, tmp_path, config, reward=Constant()).run()
    assert (result.reason, result.steps, result.best_step) == ("patience", 2, 0)
    again = trainer(model, tmp_path, config, reward=Constant(), resume=True).run()
    assert (again.reason, again.steps) == ("patience", 2)


def test_watched_reward_vetoes_the_best(model, tmp_path: Path) -> None:
    class Opposite(Curved):
        name = "opposite"

        def _score(self, images, prompts):
            return -super()._score(images, prompts)

    config = replace(QUICK, steps=10, watch_drop=0.001)
    result = trainer(model, tmp_path, config, watch=Opposite()).run()
    validations = records(tmp_path, "validation")
    assert validations[-1]["reward"] > validations[0]["reward"] and not validations[-1]["best"]
    assert validations[-1]["watch"] < validations[0]["watch"]
    assert result.best_step == 0


def test_norm_limit_bounds_every_token(model, tmp_path: Path) -> None:
    result = trainer(model, tmp_path, replace(QUICK, learning_rate=1.0, norm_limit=0.1)).run()
    origin = model.encode([""]).tokens
    state, _ = load_state(result.directory / "checkpoints/step-00000006.safetensors")
    distance = (state.learner.tensors["tokens"] - origin).norm(dim=-1)
    assert distance.max() <= 0.1 * origin.norm(dim=-1).mean() * 1.001
    assert distance.max() > 0


def test_gradients_that_are_not_finite_stop_the_run_with_the_best_saved(model, tmp_path: Path) -> None:
    class Broken(Curved):
        def _score(self, images, prompts):
            return super()._score(images, prompts) * (float("nan") if images.requires_grad else 1.0)

    with pytest.raises(FloatingPointError, match=r"5 steps in a row at step 5.*Try bf16 or fp32 instead"):
        trainer(model, tmp_path, reward=Broken()).run()
    assert torch.equal(load_embedding(tmp_path / "best.safetensors").tokens, model.encode([""]).tokens)


def test_starts_from_a_prompt_or_an_embedding(model, tmp_path: Path) -> None:
    config = replace(QUICK, steps=1, learning_rate=1e-9)
    text = trainer(model, tmp_path / "text", replace(config, init="ugly blur")).run()
    assert torch.allclose(text.embedding.tokens, model.encode(["ugly blur"]).tokens, atol=1e-6)
    path = str(tmp_path / "text/negative.safetensors")
    again = trainer(model, tmp_path / "file", replace(config, init=path)).run()
    assert torch.allclose(again.embedding.tokens, text.embedding.tokens, atol=1e-6)


def test_another_run_in_the_folder_is_not_overwritten(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, replace(QUICK, steps=1)).run()
    with pytest.raises(ValueError, match=r"holds a run at step 1 already\. Try resuming it, or another output folder"):
        trainer(model, tmp_path)


def test_resuming_with_other_settings_names_them(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, replace(QUICK, steps=1)).run()
    with pytest.raises(ValueError, match=r"learning_rate: the run was started with 0\.05, now it is 0\.1"):
        trainer(model, tmp_path, replace(QUICK, steps=1, learning_rate=0.1), resume=True).run()


def test_empty_prompts_are_refused_before_work(model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got no training prompts, expected at least one non-empty line"):
        Trainer(model, Curved(), Prompts(["", "  "], PROMPTS), QUICK, tmp_path / "none")
    assert not (tmp_path / "none").exists()


JITTER = Jitter(("euler", "dpmpp_2m"), (3, 6), ("trailing", "karras"), (2.0, 5.0))


def test_every_step_has_noise_prompts_points_and_sampling_of_its_own(model, tmp_path: Path, monkeypatch) -> None:
    recorder, seen = Recorder(model), []

    def noted(model, reward, batch, negative, sampling, reach, parts):
        [point] = {tuple(row) for row in reach.points}
        seen.append((tuple(batch.prompts), point, sampling))
        return reward_gradient(model, reward, batch, negative, sampling, reach, parts)

    monkeypatch.setattr("reneg_core.training.trainer.reward_gradient", noted)
    config = replace(QUICK, steps=12, micro_batch=4, validate_every=100, jitter=JITTER, window=(0, 2))
    trainer(recorder, tmp_path, config).run()
    validation = {*trainer(model, tmp_path, config, resume=True).validator.pairs(range(3))[1]}
    drawn = [seed for seed in recorder.seeds if seed not in validation]
    assert len(set(drawn)) == len(drawn) == 12 * 4 and validation < set(recorder.seeds)
    prompts, points, samplings = zip(*seen, strict=True)
    assert len(set(prompts)) > 5 and {len(p) for p in prompts} == {4}
    assert sorted(itertools.chain(*prompts[:5])) == sorted(PROMPTS * 4)
    assert list(samplings) == [JITTER.draw(SAMPLING, config.seed, step) for step in range(12)]
    assert len({(s.solver, s.steps, s.spacing, s.guidance.scale) for s in samplings}) > 6
    for [point], sampling in zip(points, samplings, strict=True):
        first, last = config.window_of(sampling)
        assert (first, last) == (0, 2 * sampling.steps // 3) and first <= point < last
    assert {point for [point], s in zip(points, samplings, strict=True) if s.steps == 6} > {0, 1} - {None}


def test_validation_uses_the_sampling_itself_and_not_a_drawn_one(model, tmp_path: Path) -> None:
    config = replace(QUICK, steps=1, jitter=JITTER)
    plain, jittered = (
        trainer(model, tmp_path / name, c).run() for name, c in (("a", replace(QUICK, steps=1)), ("b", config))
    )
    assert plain.start_reward == jittered.start_reward
    own = trainer(model, tmp_path / "b", config, resume=True)
    prompts, seeds = own.validator.pairs(range(3))
    negative = model.encode([""])
    images = model.decode(sample(model, model.encode(prompts), negative, model.noise(seeds), SAMPLING))
    assert Curved().score(images, prompts).mean().item() == pytest.approx(plain.start_reward, abs=1e-5)


def test_a_step_is_adamw_on_the_batch_mean(model, tmp_path: Path) -> None:
    """One step by hand: the gradient of all four samples over four, AdamW upwards, its rate on the cosine."""
    config = replace(QUICK, steps=2, betas=(0.5, 0.6), weight_decay=0.1, validate_every=100, checkpoint_every=1)
    trainer(model, tmp_path, config).run()
    tokens = model.encode([""]).tokens.clone()
    leaf = tokens.clone().requires_grad_()
    optimizer = torch.optim.AdamW([leaf], betas=(0.5, 0.6), weight_decay=0.1, maximize=True)
    for step in range(2):
        points = schedule.gradient_points((0, 3), 1, 0, step)
        prompts = schedule.batch_prompts(PROMPTS, 0, step, 4, range(4))
        batch = Batch(prompts, model.encode(prompts), model.noise(schedule.noise_seeds(0, step, range(4))))
        found = reward_gradient(model, Curved(), batch, Conditioning(leaf.detach()), SAMPLING, Reach(points))
        leaf.grad = found.tokens / 4
        optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 2))
        optimizer.step()
    state, _ = load_state(tmp_path / "checkpoints/step-00000002.safetensors")
    assert torch.allclose(state.learner.tensors["tokens"], leaf, atol=2e-4)
    assert [r["learning_rate"] for r in records(tmp_path, "step")] == pytest.approx([0.05, 0.025])


def test_the_final_file_is_the_best_and_not_the_last(model, tmp_path: Path) -> None:
    result = trainer(model, tmp_path, replace(QUICK, learning_rate=3.0, steps=8, validate_every=1)).run()
    state, _ = load_state(tmp_path / "checkpoints/step-00000008.safetensors")
    assert result.best_step < 8
    final, best = (load_embedding(tmp_path / f"{name}.safetensors").tokens for name in ("negative", "best"))
    assert torch.equal(final, best) and torch.equal(final, state.progress.best["tokens"])
    assert not torch.equal(final, state.learner.tensors["tokens"])


def test_the_embedding_says_what_it_was_learned_for(model, tmp_path: Path) -> None:
    config = replace(QUICK, steps=1, sampling=Sampling("dpmpp_2m", 3, "karras").at_scale(4.0), jitter=JITTER, through=0)
    trainer(model, tmp_path, replace(config, draws=2)).run()
    saved = load_embedding(tmp_path / "negative.safetensors")
    assert saved.sampling == config.sampling and saved.provenance.guidance_scale == 4.0
    assert saved.provenance.notes["training"] == {
        "window": [0, 3], "points": 1, "through": 0, "draws": 2, "jitter": JITTER.to_mapping()
    }  # fmt: skip


def test_a_start_with_a_mask_keeps_it(model, tmp_path: Path) -> None:
    mask = torch.ones(1, 16, dtype=torch.int64)
    mask[:, 4:] = 0
    path = tmp_path / "masked.safetensors"
    NegativeEmbedding(model.encode([""]).tokens, model.family, mask).save(path)
    result = trainer(model, tmp_path / "run", replace(QUICK, init=str(path))).run()
    assert torch.equal(result.embedding.mask, mask)
    state, _ = load_state(tmp_path / "run/checkpoints/step-00000006.safetensors")
    moved = (state.learner.tensors["tokens"] - model.encode([""]).tokens).abs().amax(-1)[0]
    assert moved[:4].min() > 0 and moved[4:].max() == 0


def test_resuming_a_run_of_an_older_version(model, tmp_path: Path) -> None:
    """Its checkpoint names the sampling's parts one by one and its loss scale as two numbers."""
    trainer(model, tmp_path, replace(QUICK, steps=1)).run()
    path = max((tmp_path / "checkpoints").iterdir())
    state, context = load_state(path)
    older = {name: value for name, value in context.items() if name not in ("sampling", "jitter")}
    older |= {"sampling_steps": 3, "solver": "euler", "guidance_scale": 4.0, "height": None, "width": None}
    tensors = {f"tensors.{k}": v for k, v in state.learner.tensors.items()}
    tensors |= {f"{g}.{k}": v for g in ("first", "second") for k, v in getattr(state.learner, g).items()}
    tensors |= {f"best.{k}": v for k, v in state.progress.best.items()}
    numbers = {k: v for k, v in vars(state.progress).items() if k != "best"}
    numbers |= {"updates": state.learner.updates, "loss_scale": 1.0, "skipped_in_a_row": 0}
    metadata = {"format": "reneg-checkpoint-1", "state": json.dumps(numbers), "context": json.dumps(older)}
    write_tensors(path, tensors, metadata)
    again = trainer(model, tmp_path, replace(QUICK, steps=1), resume=True).run()
    assert again.steps == 1
    other = replace(QUICK, steps=1, sampling=SAMPLING.changed(steps=4))
    with pytest.raises(ValueError, match=r"sampling\.steps: the run was started with 3, now it is 4"):
        trainer(model, tmp_path, other, resume=True).run()


def test_the_scale_of_a_half_precision_model_reaches_the_gradient(model, tmp_path: Path) -> None:
    """The gradient that enters the decoder's backward pass is 1024 times that of full precision."""

    class Watched(Wrapped):
        def __init__(self, model, dtype: torch.dtype) -> None:
            super().__init__(model)
            self.dtype, self.seen = dtype, []

        def decode(self, latents, frames=0):
            images = self._model.decode(latents, frames)
            if images.requires_grad:
                images.register_hook(lambda gradient: self.seen.append(gradient.norm().item()))
            return images

    whole, half = (Watched(model, dtype) for dtype in (torch.float32, torch.float16))
    results = [trainer(one, tmp_path / str(one.dtype), replace(QUICK, steps=2)).run() for one in (whole, half)]
    assert half.seen[0] == pytest.approx(1024 * whole.seen[0], rel=1e-4) and whole.seen[0] > 0
    assert torch.allclose(results[0].embedding.tokens, results[1].embedding.tokens, atol=1e-3)
