"""What is saved and returned is what was measured: scored again, it gives its reward again. On a model of a few
numbers, so that whole runs take milliseconds."""

import hashlib
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import Constant, Curved, Recorder
from small import SmallModel, start_of
from torch import Tensor

from reneg_core import NegativeEmbedding, __version__, load_embedding
from reneg_core.digests import DIGEST
from reneg_core.embedding import Provenance
from reneg_core.guidance import Guidance
from reneg_core.model import Conditioning
from reneg_core.rewards import Reward
from reneg_core.sampling import Jitter, Sampling, sample
from reneg_core.seeds import derive_seed
from reneg_core.training import (
    AdaptConfig,
    Prompts,
    Reach,
    Session,
    Stopped,
    TrainConfig,
    Trainer,
    TrainResult,
    adapt,
    adapt_table,
    reward_gradient,
    schedule,
)
from reneg_core.training.loss_scale import FP16_LOSS_SCALE
from reneg_core.training.memory import peak_memory_mib
from reneg_core.training.state import load_state

PROMPTS, HELD = ["a red fox", "blue", "sun over sea", "an old door", "ice"], ["moon", "grass"]
SAMPLING = Sampling("dpmpp_2m", 5, "trailing", Guidance(3.0))
WILD = TrainConfig(
    steps=12, batch_size=3, micro_batch=2, sampling=SAMPLING, learning_rate=0.5, window=(1, 5), seed=1,
    validate_every=3, validation_pairs=5, checkpoint_every=4, checkpoint_minutes=0,
)  # fmt: skip
"""A rate so high that the best comes early and later iterates are worse."""


class Watch:
    """Keeps every record with the embedding as it then was."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self.validations: list[tuple[dict, Tensor, list[str]]] = []

    def on_step(self, record: dict) -> None:
        self.steps.append(record)

    def on_validation(self, record: dict, images: Tensor, prompts: list[str]) -> None:
        self.validations.append((record, images, prompts))


class Told(Reward):
    """Says one value after the other of a validation's pictures, and nothing of others."""

    name = "told"

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        validation = not images.requires_grad and images.shape[-2:] == (2, 2)
        return images.mean((1, 2, 3)) * 0 + (next(self.values) if validation else 0.0)


def run(
    folder: Path, config: TrainConfig = WILD, model: Any = None, reward: Reward | None = None, **options: Any
) -> tuple[TrainResult, Watch]:
    watching, watch = Watch(), options.pop("watch", None)
    session = Session(observer=watching, **options)
    model, reward = model or SmallModel(), reward or Curved()
    return Trainer(model, reward, Prompts(PROMPTS, HELD), config, folder, watch=watch, session=session).run(), watching


def scored(model: Any, negative: Conditioning, config: TrainConfig = WILD) -> tuple[float, Tensor, list[str]]:
    """The validation by hand: pair i is the i-th prompt, again from the first, with a noise of its own."""
    prompts = [HELD[i % 2] for i in range(config.validation_pairs)]
    noise = model.noise([derive_seed("validation", config.seed, i) for i in range(config.validation_pairs)])
    images = model.decode(sample(model, model.encode(prompts), negative, noise, config.sampling))
    return Curved().score(images, prompts).mean().item(), images, prompts


@pytest.mark.parametrize("kind", ["plain", "pooled", "masked"])
def test_the_saved_file_scored_again_gives_the_best_reward(tmp_path: Path, kind: str) -> None:
    model = SmallModel(pooled=kind == "pooled")
    start, config = start_of(model, masked=kind == "masked"), WILD
    if kind != "plain":
        config = replace(WILD, init=str(start.save(tmp_path / "start.safetensors")))
    result, watching = run(tmp_path / "run", config, model)
    rewards = [record["reward"] for record, _, _ in watching.validations]
    assert result.best_reward == max(rewards) > rewards[-1] + 0.01, "the last iterate is worse than the best"
    assert result.start_reward == rewards[0] == pytest.approx(scored(model, start.conditioning(), config)[0], abs=1e-5)
    assert result.best_step == 3 * rewards.index(max(rewards)) < result.steps == 12
    for name in ("negative", "best"):
        found = load_embedding(tmp_path / "run" / f"{name}.safetensors")
        assert scored(model, found.conditioning(), config)[0] == pytest.approx(result.best_reward, abs=1e-5)
        assert (found.pooled is None, found.mask is None) == (kind != "pooled", kind != "masked")
        assert found.provenance.notes["validation_reward"] == result.best_reward
        assert found.provenance.notes["start_reward"] == result.start_reward
        assert found.provenance.steps == result.best_step
    if kind == "pooled":
        assert (result.embedding.pooled - start.pooled).abs().max() > 0.1
    if kind == "masked":
        assert torch.equal(result.embedding.mask, torch.tensor([[1, 0]]))
        assert torch.equal(result.embedding.tokens[0, 1], start.tokens[0, 1])


def test_the_pictures_shown_are_the_validations_first(tmp_path: Path) -> None:
    config = replace(WILD, validation_pairs=11, micro_batch=2)
    result, watching = run(tmp_path, config)
    best = next(found for found in watching.validations if found[0]["step"] == result.best_step)
    _, images, prompts = scored(SmallModel(), result.embedding.conditioning(), config)
    assert best[2] == prompts[:8] and torch.allclose(best[1], images[:8], atol=1e-5)
    small = run(tmp_path / "small", replace(WILD, validation_pairs=3))[1].validations[0]
    assert small[1].shape == (3, 3, 2, 2) and small[2] == ["moon", "grass", "moon"]


def test_a_tie_is_no_new_best_and_counts_towards_patience(tmp_path: Path) -> None:
    config = replace(WILD, patience=2)
    result, watching = run(tmp_path, config, reward=Constant())
    assert [record["best"] for record, _, _ in watching.validations] == [True, False, False]
    assert (result.reason, result.steps, result.best_step, result.best_reward) == ("patience", 6, 0, 1.0)
    assert torch.equal(result.embedding.tokens, SmallModel().encode([""]).tokens)
    assert run(tmp_path / "0", reward=Constant())[0].reason == "done"


def test_a_new_best_starts_the_patience_anew(tmp_path: Path) -> None:
    """Rewards 1, 0, 2, 0, 0: with patience 2 the third validation saves the run from ending after the fourth."""
    config = replace(WILD, patience=2, validation_pairs=1, steps=20)
    result, watching = run(tmp_path, config, reward=Told([1.0, 0.0, 2.0, 0.0, 0.0, 9.0]))
    assert [record["best"] for record, _, _ in watching.validations] == [True, False, True, False, False]
    assert (result.best_step, result.best_reward, result.steps, result.reason) == (6, 2.0, 12, "patience")


@pytest.mark.parametrize(("drop", "best"), [(None, [True, True, True, True]), (0.25, [True, True, False, False])])
def test_the_watched_reward_vetoes_what_falls_too_far(tmp_path: Path, drop: float | None, best: list[bool]) -> None:
    """Watched 1, 0.75, 0.7, 0.6: a drop of 0.25 is allowed, of more it is not."""
    reward, watch = Told([1.0, 2.0, 3.0, 4.0]), Told([1.0, 0.75, 0.7, 0.6])
    config = replace(WILD, steps=9, validation_pairs=1, watch_drop=drop)
    result, watching = run(tmp_path, config, reward=reward, watch=watch)
    records = [record for record, _, _ in watching.validations]
    assert [record["best"] for record in records] == best
    assert [record["watch"] for record in records] == pytest.approx([1.0, 0.75, 0.7, 0.6])
    assert [record["reward"] for record in records] == [1.0, 2.0, 3.0, 4.0]
    assert result.best_step == 3 * (sum(best) - 1)


def test_validation_is_at_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    config = replace(WILD, steps=8, validate_every=3, checkpoint_every=5, keep_checkpoints=9)
    result, watching = run(tmp_path, config)
    assert [record["step"] for record, _, _ in watching.validations] == [0, 3, 6, 8]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.safetensors" for step in (0, 5, 8)]
    assert (result.reason, result.steps) == ("done", 8)
    assert [record["step"] for record in watching.steps] == list(range(1, 9))


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    run(tmp_path, replace(WILD, checkpoint_every=2, keep_checkpoints=3))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}.safetensors" for step in (8, 10, 12)]


def test_the_steps_of_a_run_by_hand(tmp_path: Path) -> None:
    """Three steps of AdamW on the batch's mean gradient, with clip, decay, warm-up and a pooled vector, against
    automatic differentiation of the whole rollout's late part."""
    model = SmallModel(pooled=True)
    config = replace(
        WILD, steps=3, learning_rate=0.3, points=1, through=0, window=(0, 1), warmup=2, weight_decay=0.2,
        gradient_clip=0.05, betas=(0.7, 0.8), validate_every=9,
    )  # fmt: skip
    _, watching = run(tmp_path, config, model)
    start = model.encode([""])
    leaves = [start.tokens.clone().requires_grad_(), start.pooled.clone().requires_grad_()]
    optimizer = torch.optim.AdamW(leaves, lr=1.0, betas=(0.7, 0.8), weight_decay=0.2, maximize=True)
    for step, rate in enumerate((0.15, 0.3, 0.3)):
        prompts = schedule.batch_prompts(PROMPTS, 1, step, 3, range(3))
        noise = model.noise(schedule.noise_seeds(1, step, range(3)))
        negative = Conditioning(leaves[0], None, leaves[1])
        latents = sample(model, model.encode(prompts), negative, noise, SAMPLING, gradient=True)
        rewards = Curved().score(model.decode(latents), prompts)
        gradients = torch.autograd.grad(rewards.mean(), leaves)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient * min(1.0, 0.05 / norm.item())
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        record = watching.steps[step]
        assert record["gradient_norm"] == pytest.approx(norm.item(), rel=1e-3) and norm > 0.05
        assert record["reward"] == pytest.approx(rewards.mean().item(), abs=1e-5)
        assert record["learning_rate"] == pytest.approx(rate)
        offset = (leaves[0].detach() - start.tokens).norm() / start.tokens.norm()
        assert record["distance"] == pytest.approx(offset.item(), rel=1e-3)
    best, _ = run(tmp_path / "best", replace(config, validate_every=3, patience=0), model)
    assert best.best_step in (0, 3)


ADAPT = AdaptConfig(steps=5, sampling=SAMPLING, learning_rate=1.0, window=(1, 5), points=2, patience=9, micro_batch=2)
PAIRS = ["ice", "moon", "an old door", "grass", "blue"]


def rewards_of(model: Any, negatives: Conditioning, prompts: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
    images = model.decode(sample(model, model.encode(prompts), negatives, model.noise(seeds), SAMPLING))
    return Curved().score(images, prompts), images


def test_the_file_says_how_it_was_made(tmp_path: Path) -> None:
    class Digested(SmallModel):
        def contents(self) -> dict[str, str]:
            return {"denoiser": DIGEST + "5" * 64}

    jitter = Jitter(guidance_scale=(2.0, 4.0))
    config = replace(WILD, steps=3, window=(2, 5), points=2, through=2, seed=7, jitter=jitter)
    result, _ = run(tmp_path, config, Digested())
    found = load_embedding(tmp_path / "negative.safetensors")
    training = {"window": [2, 5], "points": 2, "through": 2, "jitter": jitter.to_mapping()}
    rewards = {"validation_reward": result.best_reward, "start_reward": result.start_reward}
    expected = Provenance(
        base_model="small",
        base_digest="5" * 64,
        rewards="curved",
        steps=result.best_step,
        guidance_scale=3.0,
        seed=7,
        prompts_digest=hashlib.sha256("\n".join(PROMPTS).encode()).hexdigest(),
        version=__version__,
        notes=json.loads(json.dumps({**rewards, "training": training})),
        sampling=SAMPLING.to_mapping(),
    )
    assert replace(found.provenance, source="") == expected and found.family == result.embedding.family == "small"
    assert result.directory == tmp_path and result.embedding.provenance.notes["training"]["window"] == [2, 5]


def test_what_a_step_leaves_and_what_is_told_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on a second whenever it is looked at."""
    clock = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    parts: list[tuple] = []
    _, watching = run(tmp_path, replace(WILD, steps=1), progress=lambda *part: parts.append(part))
    [record] = watching.steps
    assert record["seconds"] == int(record["seconds"]) > 0 and 50 < record["memory_mib"] == int(record["memory_mib"])
    assert [part for part in parts if part[0] == "step"] == [("step", 2, 3), ("step", 3, 3)]
    assert [part for part in parts if part[0] == "validation"][:2] == [("validation", 2, 5), ("validation", 4, 5)]
    files = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [one["seconds"] for one in files if one["event"] == "step"] == [record["seconds"]]
    state, _ = load_state(next((tmp_path / "checkpoints").glob("*1.safetensors")))
    assert 0 < state.progress.seconds < next(clock), "seconds of the run, and not of the clock"


def test_memory_is_read_where_the_device_keeps_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    counted = lambda device: asked.append(device) or 3 * 2**20  # noqa: E731
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", counted)
    assert peak_memory_mib(torch.device("cuda:1")) == 3 and asked == [torch.device("cuda:1")]
    used = type("Used", (), {"ru_maxrss": 7 * 2**20})
    monkeypatch.setattr("resource.getrusage", lambda whose: used)
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory_mib(torch.device("cpu")) == 7 * 2**10, "KiB"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_mib(torch.device("cpu")) == 7, "bytes"
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mib(torch.device("cpu")) == 0 and len(asked) == 1


@pytest.mark.parametrize("kind", ["plain", "pooled", "masked"])
def test_adapted_tokens_give_their_rewards_again(kind: str) -> None:
    model = SmallModel(pooled=kind == "pooled")
    start, seeds = start_of(model, masked=kind == "masked"), [5, 4, 3, 2, 1]
    result = adapt(model, Curved(), PAIRS, seeds, start, ADAPT)
    rewards, images = rewards_of(model, result.negatives, PAIRS, seeds)
    assert torch.allclose(rewards, result.rewards, atol=1e-5) and torch.allclose(images, result.images, atol=1e-5)
    begun, _ = rewards_of(model, start.conditioning().expand(5), PAIRS, seeds)
    assert torch.allclose(begun, result.start_rewards, atol=1e-5) and result.sampling == ADAPT.sampling
    assert (result.rewards - result.start_rewards).max() > 0.05
    assert len({*result.steps.tolist()}) > 1 and result.steps.min() < 5, "pairs find their best at steps of their own"
    for i in range(5):
        row = result.embedding(i, start)
        alone, _ = rewards_of(model, row.conditioning(), PAIRS[i : i + 1], seeds[i : i + 1])
        assert alone.item() == pytest.approx(result.rewards[i].item(), abs=1e-5)
        assert row.provenance.guidance_scale == 3.0 and row.sampling == SAMPLING and row.family == "small"
    stays = [getattr(result.negatives, name) for name in ("mask", "pooled")]
    assert [part is not None for part in stays] == [kind == "masked", kind == "pooled"]
    if kind == "pooled":
        assert torch.equal(result.negatives.pooled, start.pooled.expand(5, 3))


def test_a_table_of_pairs_is_adapted_in_the_order_of_the_comparison() -> None:
    model, reported = SmallModel(), []
    start = start_of(model)
    result = adapt_table(model, Curved(), ["ice", "moon"], [[7, 8], [9, 1]], start, ADAPT, progress=reported.append)
    rewards, _ = rewards_of(model, result.negatives, ["ice", "ice", "moon", "moon"], [7, 8, 9, 1])
    assert torch.allclose(rewards, result.rewards, atol=1e-5) and reported == [2, 2]
    with pytest.raises(ValueError, match="zip"):
        adapt_table(model, Curved(), ["ice", "moon"], [[7, 8]], start, ADAPT)


def test_the_steps_of_an_adaptation_by_hand() -> None:
    """Two steps of AdamW for each of two pairs on the gradients at the points, then the best of three pictures."""
    model, prompts, seeds = SmallModel(), ["ice", "moon"], [3, 4]
    config = replace(ADAPT, steps=2, learning_rate=0.1, points=1, through=0, window=(0, 1), betas=(0.5, 0.6))
    leaf = start_of(model).tokens.repeat(2, 1, 1).requires_grad_()
    optimizer = torch.optim.AdamW([leaf], lr=0.1, betas=(0.5, 0.6), weight_decay=0, maximize=True)
    seen, iterates = [], []
    for _ in range(3):
        latents = sample(model, model.encode(prompts), Conditioning(leaf), model.noise(seeds), SAMPLING, gradient=True)
        rewards = Curved().score(model.decode(latents), prompts)
        seen.append(rewards.detach())
        iterates.append(leaf.detach().clone())
        (leaf.grad,) = torch.autograd.grad(rewards.sum(), leaf)
        optimizer.step()
    assert schedule.gradient_points((0, 1), 1, "adapt", 0) == [0]
    result = adapt(model, Curved(), prompts, seeds, start_of(model), config)
    best = torch.stack(seen).max(0)
    assert torch.allclose(result.rewards, best.values, atol=1e-5)
    assert torch.equal(result.steps, best.indices) and result.steps.dtype == torch.int64
    expected = torch.stack([iterates[step][row] for row, step in enumerate(best.indices.tolist())])
    assert torch.allclose(result.negatives.tokens, expected, atol=1e-4)
    assert torch.allclose(result.start_rewards, seen[0], atol=1e-5)


def test_the_points_of_an_adaptation_are_drawn_anew_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(model: Any, reward: Any, batch: Any, negative: Any, sampling: Any, reach: Any) -> Any:
        seen.append(replace(reach, decode=None))
        return reward_gradient(model, reward, batch, negative, sampling, reach)

    monkeypatch.setattr(sys.modules["reneg_core.training.adapt"], "reward_gradient", noted)
    model, config = SmallModel(), replace(ADAPT, steps=6, points=1, through=3, learning_rate=0.01, judged_frames=5)
    adapt(model, Curved(), ["ice"], [1], start_of(model), config)
    points = [schedule.gradient_points((1, 5), 1, "adapt", step) for step in range(6)]
    assert seen == [Reach(one, 3, True, 1.0, 5) for one in points] and len({*map(tuple, points)}) > 1


def test_an_adaptation_in_half_precision_scales_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halved after gradients that are no numbers, which are not taken."""
    scales = []

    def noted(model: Any, reward: Any, batch: Any, negative: Any, sampling: Any, reach: Any) -> Any:
        found = reward_gradient(model, reward, batch, negative, sampling, reach)
        scales.append(reach.loss_scale)
        return replace(found, tokens=found.tokens * float("nan")) if len(scales) == 2 else found

    class HalfPrecision(SmallModel):
        dtype = torch.float16

    monkeypatch.setattr(sys.modules["reneg_core.training.adapt"], "reward_gradient", noted)
    model, config = HalfPrecision(), replace(ADAPT, steps=4, points=1, patience=9)
    adapt(model, Curved(), ["ice"], [1], start_of(model), config)
    assert scales == [FP16_LOSS_SCALE] * 2 + [FP16_LOSS_SCALE / 2] * 2


def test_a_pair_out_of_patience_leaves_and_the_others_go_on() -> None:
    """Of two pairs one cannot improve: it is sampled for its start and two steps, the other to the end."""
    batches = []

    class Half(Curved):
        def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
            batches.append([*prompts])
            worth = torch.tensor([float(prompt == "moon") for prompt in prompts])
            return super()._score(images, prompts) * worth

    model, config = SmallModel(), replace(ADAPT, steps=5, patience=2, points=1, learning_rate=0.02)
    result = adapt(model, Half(), ["ice", "moon"], [1, 2], start_of(model), config)
    assert result.steps.tolist() == [0, 5]
    pictures = [*batches[1::2], batches[-1]]
    assert [len(batch) for batch in pictures] == [2, 2, 2, 1, 1, 1]
    rewards, _ = rewards_of(model, result.negatives, ["ice", "moon"], [1, 2])
    assert rewards[1].item() == pytest.approx(result.rewards[1].item(), abs=1e-5)
    assert torch.equal(result.negatives.tokens[0], start_of(model).tokens[0])


def test_stopping_an_adaptation_keeps_the_best_so_far() -> None:
    polls: list[int] = []

    def stop() -> bool:
        polls.append(1)
        return len(polls) == 2

    recorder, config = Recorder(SmallModel()), replace(ADAPT, steps=5, micro_batch=5, learning_rate=0.05)
    result = adapt(recorder, Curved(), PAIRS, [1, 2, 3, 4, 5], start_of(SmallModel()), config, should_stop=stop)
    assert len(polls) == 2 and result.steps.max() == 1
    rewards, _ = rewards_of(SmallModel(), result.negatives, PAIRS, [1, 2, 3, 4, 5])
    assert torch.allclose(rewards, result.rewards, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_neither_its_pair_nor_another(bad: float) -> None:
    class Broken(Curved):
        def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
            scores = super()._score(images, prompts)
            factor = [bad if images.requires_grad and prompt == "ice" else 1.0 for prompt in prompts]
            return scores * torch.tensor(factor)

    model, config = SmallModel(), replace(ADAPT, learning_rate=0.05)
    both = adapt(model, Broken(), ["ice", "moon"], [1, 2], start_of(model), config)
    alone = adapt(model, Curved(), ["moon"], [2], start_of(model), config)
    assert torch.equal(both.negatives.tokens[0], start_of(model).tokens[0])
    assert torch.allclose(both.negatives.tokens[1], alone.negatives.tokens[0], atol=1e-5)


def test_an_embedding_of_too_many_tokens_is_not_adapted() -> None:
    model = SmallModel()
    model.max_tokens = 1
    with pytest.raises(ValueError, match="Got an embedding of 2 tokens, this model takes at most 1"):
        adapt(model, Curved(), ["ice"], [1], start_of(model), ADAPT)


def test_wrong_inputs_of_an_adaptation() -> None:
    model = SmallModel()
    with pytest.raises(ValueError, match=r"^Got 0 prompts and 0 seeds, expected equal numbers, at least one\.$"):
        adapt(model, Curved(), [], [], start_of(model), ADAPT)
    other = NegativeEmbedding(torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="width 4; this model uses small, width 3"):
        adapt(model, Curved(), ["ice"], [1], other, ADAPT)
    with pytest.raises(ValueError, match=r"^Got no embedding to adapt, expected one\. Try a learned"):
        adapt_table(model, Curved(), ["ice"], [[1]], None, ADAPT)


def test_the_default_adaptation_is_the_papers() -> None:
    """At most 10 steps, patience 3, 30 steps at scale 7.5: what adapt() does without a configuration."""
    recorder = Recorder(SmallModel())
    result = adapt(recorder, Constant(), ["ice"], [1], start_of(SmallModel()))
    assert {*recorder.samplings} == {Sampling()} and result.sampling == Sampling()
    assert result.steps.tolist() == [0] and result.rewards.tolist() == [1.0]
    assert len([1 for branches, _ in recorder.passes if len(branches) == 1]) == 2 * 3 * 4, "3 points, patience 3"


def test_a_part_that_does_not_fit_is_halved_and_noted(tmp_path: Path) -> None:
    class Small(SmallModel):
        def denoise(self, x: Tensor, *rest: object) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return super().denoise(x, *rest)

    config = replace(WILD, steps=1, batch_size=4, micro_batch=4)
    run = Trainer(Small(), Curved(), Prompts(PROMPTS, HELD), config, tmp_path)
    run.run()
    noted = [entry for entry in run.files.records() if entry["event"] == "out_of_memory"]
    assert [(entry["step"], entry["micro_batch"]) for entry in noted[:2]] == [(0, 2), (0, 1)], "the validation"
    assert [(entry["step"], entry["rollout_batch"]) for entry in noted[2:]] == [(0, 2), (0, 1)]
    assert (run.progress.micro_batch, run.progress.rollout_batch) == (1, 1)


def test_an_adaptation_that_the_model_stops_before_its_gradient_is_finished_without_one() -> None:
    """A host that stops inside the first visit: the start is sampled and judged; inside a later one, the best stays."""
    for until in (0, 2 * (ADAPT.points + 1)):
        visits: list[int] = []

        class Host(SmallModel):
            def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
                visits.append(1)  # noqa: B023
                if latents.requires_grad and len(visits) > until:  # noqa: B023
                    raise Stopped
                return super().decode(latents, frames)

        config = replace(ADAPT, steps=5, micro_batch=5, learning_rate=0.05)
        result = adapt(Host(), Curved(), PAIRS, [1, 2, 3, 4, 5], start_of(SmallModel()), config)
        rewards, images = rewards_of(SmallModel(), result.negatives, PAIRS, [1, 2, 3, 4, 5])
        assert torch.allclose(rewards, result.rewards, atol=1e-5) and torch.allclose(images, result.images, atol=1e-5)
        assert result.steps.max().item() == (0 if until == 0 else 1) and result.sampling == config.sampling
