"""A real training step on the embedded tiny world with published reward architectures: gradient to the embedding."""

import pytest
import torch

from reneg_core.backends import load_model
from reneg_core.model import Conditioning
from reneg_core.rewards import load_reward
from reneg_core.sampling import Sampling
from reneg_core.training.objective import Batch, Reach, reward_gradient

PROMPTS = ["a red circle on a blue background", "a green square on a white background"]


@pytest.fixture(scope="module")
def world():
    return load_model("tiny", device="cpu", dtype="fp32")


def step(model, reward, tokens, **options):
    """Gradient and summed reward of the clean estimate at the first step, where nothing is hidden from autograd."""
    batch = Batch(PROMPTS, model.encode(PROMPTS), model.noise([1, 2]))
    sampling = Sampling(steps=4).at_scale(3.0)
    return reward_gradient(model, reward, batch, Conditioning(tokens), sampling, Reach([0], **options))


@pytest.mark.parametrize("spec", ["image_reward", "hpsv2.1", "pickscore", "clip_score", "aesthetic", "mix", "fp16"])
def test_gradient_to_the_embedding_is_the_finite_difference(
    world, small_blip, small_clip, open_clip_file, aesthetic_folder, spec
):
    reward = {
        "image_reward": lambda: load_reward("image_reward", weights=small_blip.folder, preprocess="smooth"),
        "aesthetic": lambda: load_reward("aesthetic", weights=aesthetic_folder, preprocess="smooth"),
        "fp16": lambda: load_reward("image_reward", weights=small_blip.folder, dtype=torch.float16),
        "mix": lambda: load_reward(
            "image_reward*1 + pickscore*0.5",
            preprocess="smooth",
            weights={"image_reward": small_blip.folder, "pickscore": small_clip.folder},
        ),
    }.get(
        spec,
        lambda: load_reward(
            spec,
            weights=open_clip_file if spec == "hpsv2.1" else small_clip.folder,
            preprocess="smooth",
        ),
    )()
    smooth = load_reward("image_reward", weights=small_blip.folder, preprocess="smooth") if spec == "fp16" else reward
    tokens = world.encode([""]).tokens.detach()
    found = step(world, reward, tokens).tokens
    assert found.shape == tokens.shape and found.abs().sum() > 0
    direction = found / found.norm()  # the steepest one: the least noise in the difference
    size = 0.05
    up, down = (step(world, smooth, tokens + sign * size * direction).rewards.sum() for sign in (1, -1))
    slope = (up - down) / (2 * size)
    assert found.norm().item() == pytest.approx(slope.item(), rel=0.05)
