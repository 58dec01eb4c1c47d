"""Trainings on a video: the reward is the mean over a few frames, wherever it is asked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import Curved
from runs import PROMPTS, QUICK, trainer
from small import SmallVideo, start_of

from reneg_core.clips import evenly
from reneg_core.evaluation import Mode, Pairs, evaluate
from reneg_core.evaluation.compare import Keep
from reneg_core.sampling import Sampling, Size, sample
from reneg_core.training import AdaptConfig, Batch, Reach, TrainConfig, adapt, reward_gradient

SAMPLING = Sampling(steps=3, size=Size(frames=7)).at_scale(4.0)


@pytest.mark.parametrize(("frames", "chosen"), [(0, range(7)), (2, [1, 5])])
def test_the_gradient_is_that_of_the_mean_over_the_chosen_frames(frames: int, chosen: list[int]) -> None:
    model = SmallVideo()
    batch = Batch(PROMPTS[:2], model.encode(PROMPTS[:2]), model.noise([1, 2], SAMPLING.size))
    negative = model.encode([""])
    found = reward_gradient(model, Curved(), batch, negative, SAMPLING, Reach([0], 0, complete=True, frames=frames))
    leaf = negative.tokens.clone().requires_grad_()
    latents = sample(model, batch.positive, replace(negative, tokens=leaf), batch.noise, SAMPLING, gradient=True)
    clips = model.decode(latents)
    scores = torch.stack([Curved().score(clips[:, frame], PROMPTS[:2]) for frame in chosen]).mean(0)
    assert torch.allclose(found.tokens, torch.autograd.grad(scores.sum(), leaf)[0], atol=1e-6)
    assert torch.allclose(found.final_rewards, scores, atol=1e-6)
    assert torch.allclose(found.images, clips[:, list(chosen)], atol=1e-6)


def test_a_training_judges_by_the_frames_that_it_is_told(tmp_path: Path) -> None:
    few = replace(QUICK, sampling=SAMPLING, judged_frames=2)
    runs = {n: trainer(SmallVideo(), tmp_path / str(n), replace(few, judged_frames=n)).run() for n in (2, 3)}
    assert runs[2].best_reward > runs[2].start_reward + 1e-3
    assert (runs[2].embedding.tokens - runs[3].embedding.tokens).abs().max() > 1e-3
    model, validator = SmallVideo(), trainer(SmallVideo(), tmp_path / "other", few).validator
    prompts, seeds = validator.pairs(range(few.validation_pairs))
    noise = model.noise(seeds, SAMPLING.size)
    clips = model.decode(sample(model, model.encode(prompts), model.encode([""]), noise, SAMPLING))
    scores = [Curved().score(clips[:, frame], prompts) for frame in evenly(7, 2)]
    assert runs[2].start_reward == pytest.approx(torch.stack(scores).mean().item(), abs=1e-6)


def test_adaptation_and_comparison_take_the_same_frames() -> None:
    model, config = SmallVideo(), AdaptConfig(steps=3, sampling=SAMPLING, learning_rate=0.05, points=1)
    start, pairs = start_of(model), Pairs.own(PROMPTS[:3], 1)
    prompts, seeds = zip(*pairs, strict=True)
    found = adapt(model, Curved(), prompts, seeds, start, config)
    assert found.images.shape == (3, 4, 3, 2, 2) and (found.rewards >= found.start_rewards).all()
    assert (found.rewards > found.start_rewards).any()
    modes = {"embedding": Mode(start.conditioning()), "adapted": Mode(found.negatives)}
    compared = evaluate(model, pairs, modes, {"reward": Curved().score}, SAMPLING, keep=Keep(2, 2), batch_size=2)
    for mode, expected in (("embedding", found.start_rewards), ("adapted", found.rewards)):
        assert torch.tensor(compared.table("reward", mode)).flatten() == pytest.approx(expected, abs=1e-5)
    assert compared.pictures.images["adapted"].shape == (2, 4, 3, 2, 2)


def test_fewer_than_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="judged_frames: got -1, expected 0 or more"):
        TrainConfig(judged_frames=-1)
