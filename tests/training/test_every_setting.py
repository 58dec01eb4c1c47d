"""Every setting of a training and of an adaptation does what it says: each is changed alone, in milliseconds."""

import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import Curved, Recorder
from small import SmallModel, start_of

from reneg_core import load_embedding
from reneg_core.guidance import Guidance
from reneg_core.sampling import Jitter, Sampling, Size
from reneg_core.training import AdaptConfig, Prompts, Session, TrainConfig, Trainer, adapt

PROMPTS, HELD = ["a red fox", "blue", "sun over sea", "an old door", "ice"], ["moon", "grass"]
SAMPLING = Sampling("dpmpp_2m", 6, "trailing", Guidance(3.0))
BASE = TrainConfig(
    steps=6, batch_size=4, micro_batch=3, sampling=SAMPLING, learning_rate=0.05, window=(2, 6), points=2, through=2,
    validate_every=2, validation_pairs=3, checkpoint_every=2, checkpoint_minutes=0,
)  # fmt: skip


def trainer(folder: Path, config: TrainConfig = BASE, model: Any = None, **session: Any) -> Trainer:
    prompts = Prompts(PROMPTS, HELD)
    return Trainer(model or SmallModel(), Curved(), prompts, config, folder, session=Session(**session))


def last(folder: Path, config: TrainConfig = BASE) -> torch.Tensor:
    """The last iterate: a setting that acts at all moves it."""
    run = trainer(folder, config)
    run.run()
    return run.learner.negative(torch.device("cpu")).tokens


MOVES = {
    "learning_rate": 0.04, "betas": (0.8, 0.999), "sampling": replace(SAMPLING, solver="euler"), "window": (3, 6),
    "points": 1, "through": 1, "jitter": Jitter(steps=(4, 8)), "steps": 5, "batch_size": 5, "warmup": 2,
    "weight_decay": 0.5, "gradient_clip": 1e-3, "init": "ugly", "norm_limit": 0.05, "seed": 1,
    "draws": 2,
}  # fmt: skip
"""Settings that change what is learned, each with another value."""

SAME = {
    "micro_batch": 1, "checkpointing": True, "checkpoint_every": 5, "checkpoint_minutes": 1e-6, "keep_checkpoints": 1,
    "judged_frames": 1, "rollout_batch": 1, "decoder": "recomputed",
}  # fmt: skip
"""Settings that change memory and files only, or videos only."""

JUDGING = {"validate_every", "validation_pairs", "patience", "watch_drop"}
"""Settings of what is taken as the best; they have tests of their own."""


def test_the_tables_name_every_setting() -> None:
    assert {*MOVES, *SAME, *JUDGING} == {field.name for field in fields(TrainConfig)}
    assert all(getattr(BASE, name) != value for name, value in {**MOVES, **SAME}.items())


@pytest.mark.parametrize("name", MOVES)
def test_a_setting_of_learning_changes_what_is_learned(tmp_path: Path, name: str) -> None:
    plain = last(tmp_path / "plain")
    assert torch.equal(plain, last(tmp_path / "again"))
    other = last(tmp_path / "other", replace(BASE, **{name: MOVES[name]}))
    assert (other - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", SAME)
def test_a_setting_of_memory_changes_nothing_that_is_learned(tmp_path: Path, name: str) -> None:
    other = last(tmp_path / "other", replace(BASE, **{name: SAME[name]}))
    assert torch.allclose(other, last(tmp_path / "plain"), atol=2e-5)


SAMPLINGS = {
    "solver": "euler", "steps": 8, "spacing": "karras", "guidance_scale": 4.0, "guidance_start": 0.5,
    "guidance_end": 0.75, "guidance_rescale": 0.7, "height": 8, "width": 8,
}  # fmt: skip


def test_the_table_names_every_part_of_the_sampling() -> None:
    """But a video's frames and guidance in the attention: the model of these tests has neither."""
    assert {*SAMPLINGS, "frames", "guidance_attention"} == set(SAMPLING.to_mapping())


@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_part_of_the_sampling_changes_training_validation_and_adaptation(tmp_path: Path, name: str) -> None:
    config = replace(BASE, sampling=SAMPLING.changed(**{name: SAMPLINGS[name]}), window=None, points=1)
    plain = replace(BASE, window=None, points=1)
    model, pairs = SmallModel(), (PROMPTS[:2], [1, 2])
    runs = [trainer(tmp_path / str(i), one).run() for i, one in enumerate((plain, config))]
    assert abs(runs[0].start_reward - runs[1].start_reward) > 1e-5
    assert not torch.allclose(runs[0].embedding.tokens, runs[1].embedding.tokens, atol=1e-5)
    found = [
        adapt(model, Curved(), *pairs, start_of(model), AdaptConfig.for_sampling(c.sampling)) for c in (plain, config)
    ]
    assert (found[0].start_rewards - found[1].start_rewards).abs().min() > 1e-5
    assert not torch.allclose(found[0].negatives.tokens, found[1].negatives.tokens, atol=1e-5)


JITTERS = {"solver": ("euler",), "steps": (9,), "spacing": ("karras",), "guidance_scale": (6.0,)}


@pytest.mark.parametrize("name", JITTERS)
def test_every_set_of_the_jitter_is_drawn_from_in_training_only(tmp_path: Path, name: str) -> None:
    recorder, config = Recorder(SmallModel()), replace(BASE, jitter=Jitter(**{name: JITTERS[name]}))
    trainer(tmp_path, config, recorder).run()
    drawn = SAMPLING.changed(**{name: JITTERS[name][0]})
    assert {*recorder.samplings} == {SAMPLING, drawn} and set(JITTERS) == set(Jitter().to_mapping())


def test_the_rate_is_the_schedules_and_the_clip_the_norms(tmp_path: Path) -> None:
    """With betas of 0 a step of AdamW is rate * sign(gradient): it shows the rate alone."""
    path: list[torch.Tensor] = []
    config = replace(BASE, betas=(0.0, 0.0), learning_rate=0.08, warmup=2, steps=6)

    class Watching:
        on_validation = staticmethod(lambda *_: None)

        @staticmethod
        def on_step(record: dict) -> None:
            path.append(run.learner.negative(torch.device("cpu")).tokens.clone())

    run = trainer(tmp_path, config, observer=Watching)
    run.run()
    path.insert(0, SmallModel().encode([""]).tokens)
    moved = [(after - before).abs() for before, after in itertools.pairwise(path)]
    rates = [0.04, 0.08, 0.08, 0.08 * (1 + 2**-0.5) / 2, 0.04, 0.08 * (1 - 2**-0.5) / 2]
    for one, rate in zip(moved, rates, strict=True):
        assert torch.allclose(one, torch.full_like(one, rate), rtol=1e-3)


ADAPT = AdaptConfig(steps=4, sampling=SAMPLING, learning_rate=0.05, window=(2, 6), points=2, through=2, patience=4)
ADAPT_MOVES = {
    "learning_rate": 0.04, "betas": (0.5, 0.9), "sampling": replace(SAMPLING, solver="euler"), "window": (3, 6),
    "points": 1, "through": 1, "steps": 2,
}  # fmt: skip
ADAPT_SAME = {"micro_batch": 1, "checkpointing": True, "judged_frames": 1, "decoder": "recomputed"}


def test_the_tables_name_every_setting_of_the_adaptation() -> None:
    names = {field.name for field in fields(AdaptConfig)}
    assert {*ADAPT_MOVES, *ADAPT_SAME, "patience"} == names


@pytest.mark.parametrize("name", [*ADAPT_MOVES, *ADAPT_SAME])
def test_every_setting_of_the_adaptation(name: str) -> None:
    model, pairs = SmallModel(), (PROMPTS, [1, 2, 3, 4, 5])
    config = replace(ADAPT, **{name: {**ADAPT_MOVES, **ADAPT_SAME}[name]})
    plain, other = (adapt(model, Curved(), *pairs, start_of(model), c).negatives.tokens for c in (ADAPT, config))
    assert plain.shape == (5, 2, 3) and (plain - start_of(model).tokens).abs().amax((1, 2)).min() > 1e-3
    assert torch.allclose(plain, other, atol=2e-5) is (name in ADAPT_SAME)


def test_checkpointing_is_on_for_the_work_and_off_after_it(tmp_path: Path) -> None:
    for wanted in (False, True):
        model = SmallModel()
        trainer(tmp_path / str(wanted), replace(BASE, checkpointing=wanted), model).run()
        adapt(model, Curved(), ["ice"], [1], start_of(model), replace(ADAPT, checkpointing=wanted))
        assert model.checkpointed == [(wanted, wanted), (False, False)] * 2


def test_the_size_reaches_the_pictures(tmp_path: Path) -> None:
    sizes = []

    class Seen(Curved):
        def _score(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            sizes.append(tuple(images.shape[-2:]))
            return super()._score(images, prompts)

    config = replace(BASE, sampling=replace(SAMPLING, size=Size(8, 12)))
    Trainer(SmallModel(), Seen(), Prompts(PROMPTS, HELD), config, tmp_path).run()
    assert (4, 6) in sizes and (2, 2) not in sizes
    assert load_embedding(tmp_path / "negative.safetensors").sampling == config.sampling
