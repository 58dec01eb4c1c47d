"""The trained reward `tiny`."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from reneg_core import tiny
from reneg_core.rewards import Reward, load_reward
from reneg_core.tiny import prompts, world
from reneg_core.tiny.train_reward import blur, worn

COMBINATIONS = prompts.combinations("test")


@pytest.fixture(scope="module")
def reward() -> Reward:
    return load_reward("tiny")


def _images(flaw: str = "mark", value: float = 0.0) -> Tensor:
    strength = torch.zeros(len(COMBINATIONS), len(world.FLAWS))
    strength[:, list(world.FLAWS).index(flaw)] = value
    clean = world.render(world.place(COMBINATIONS, torch.Generator().manual_seed(0)))
    return world.spoil(clean, strength, torch.Generator().manual_seed(1))


def _mean(reward: Reward, images: Tensor, texts: list[str] | None = None) -> float:
    with torch.no_grad():
        return reward.score(images, texts or tiny.test_prompts()).mean().item()


@pytest.mark.parametrize("flaw", world.FLAWS)
def test_it_falls_with_every_flaw(reward: Reward, flaw: str):
    """By more the stronger the flaw; only a stray object is as bad when it is translucent."""
    scores = [_mean(reward, _images(flaw, value)) for value in (0.0, 0.4, 0.7, 1.0)]
    slack = 0.12 if flaw == "debris" else 0.0
    assert all(later < earlier + slack for earlier, later in pairwise(scores))
    assert scores[0] - max(scores[1:]) > 0.4 and scores[0] - scores[-1] > 0.6


@pytest.mark.parametrize("column", range(3), ids=["warped", "soft", "grainy"])
def test_it_falls_with_wear_that_the_world_does_not_have(reward: Reward, column: int):
    wear = torch.eye(3)[column].expand(len(COMBINATIONS), 3)
    worse = worn(_images(), wear, torch.Generator().manual_seed(0))
    assert _mean(reward, _images()) - _mean(reward, worse) > 0.5


def test_half_a_pixel_of_softness_costs_a_good_part_of_a_flaw(reward: Reward):
    soft = blur(_images(), torch.full((len(COMBINATIONS),), 0.5))
    assert 0.2 < _mean(reward, _images()) - _mean(reward, soft) < 0.8


@pytest.mark.parametrize(("column", "least"), [(0, 0.15), (1, 0.15), (2, 0.15)], ids=["shape", "colour", "background"])
def test_it_wants_what_the_prompt_names(reward: Reward, column: int, least: float):
    kinds = len(world.SHAPES) if column == 0 else len(world.COLOURS)
    other = COMBINATIONS.clone()
    other[:, column] = (other[:, column] + 1) % kinds
    wrong = [prompts.PLAIN_TEMPLATES[0].format(**prompts.words(tuple(row))) for row in other.tolist()]
    assert _mean(reward, _images()) - _mean(reward, _images(), wrong) > least


def test_scores_of_the_worlds_pictures_have_about_unit_variance(reward: Reward):
    generator = torch.Generator().manual_seed(3)
    combinations = COMBINATIONS.repeat(4, 1)
    clean = world.render(world.place(combinations, generator))
    images = world.spoil(clean, world.sample_strength(len(clean), world.CARELESS_SHARE, generator), generator)
    with torch.no_grad():
        scores = reward.score(images, tiny.test_prompts() * 4)
    assert abs(scores.mean().item()) < 0.35 and 0.7 < scores.std().item() < 1.4


def test_unknown_words_change_nothing_and_no_words_leave_quality(reward: Reward):
    images = _images()[:1]
    score = reward.score(images, ["a red circle on a blue background"])
    assert torch.equal(score, reward.score(images, ["Gorgeous a red circle, on a blue background!!"]))
    free = reward.score(images, ["something beautiful"])
    assert torch.equal(free, reward.score(images, [""])) and torch.isfinite(free).all()


def test_the_gradient_reaches_the_picture_and_following_it_raises_the_score(reward: Reward):
    images = _images("stripes", 0.7)[:4].requires_grad_(True)
    before = reward.score(images, tiny.test_prompts()[:4])
    (gradient,) = torch.autograd.grad(before.sum(), images)
    assert gradient.shape == images.shape and (gradient.abs().amax((1, 2, 3)) > 0).all()
    step = 0.01 * gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    after = reward.score((images + step).detach().clamp(0, 1), tiny.test_prompts()[:4])
    assert (after > before.detach()).all()


def test_other_sizes_are_resized(reward: Reward):
    images = _images()
    large = torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    assert abs(_mean(reward, large) - _mean(reward, images)) < 0.01


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no reward weights at .*absent\.safetensors; expected reward"):
        load_reward("tiny", weights=tmp_path / "absent.safetensors")
