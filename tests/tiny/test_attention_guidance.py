"""Normalised attention guidance on the tiny world: what it computes, its gradient, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from reneg_core.backends import load_model
from reneg_core.backends.attention import GuidedProcessor, guide_attention
from reneg_core.guidance import Guidance
from reneg_core.model import Branch, Conditioning
from reneg_core.rewards import load_reward
from reneg_core.sampling import Jitter, Sampling, guided_denoise, sample
from reneg_core.training import Batch, ConfigError, Reach, TrainConfig, reward_gradient

PROMPTS = ["a red circle on a blue background", "a green ring on a white background"]
NAG = Sampling("euler", 3, "trailing", Guidance(1.0, attention=4.0))


@pytest.fixture(scope="module")
def world():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def words(world) -> Conditioning:
    return world.encode(["watermark, border, lines, double"])


def test_without_it_nothing_changes(world, words) -> None:
    """Processors stay around the network's own, whatever was asked of it before."""
    x, sigma, positive = world.noise([1, 2]), torch.tensor(2.0), world.encode(PROMPTS)
    plain = load_model("tiny", device="cpu").denoise(x, sigma, positive)
    guided = guided_denoise(world, x, sigma, positive, words, NAG.guidance)
    assert torch.equal(world.denoise(x, sigma, positive), plain)
    assert (guided - plain).abs().max() > 0.01
    same = guided_denoise(world, x, sigma, positive[:1], positive[:1], NAG.guidance)
    assert torch.allclose(same, world.denoise(x, sigma, positive[:1].expand(2)), atol=1e-5), "away from itself"
    late = replace(NAG.guidance, start=0.5)
    assert torch.equal(guided_denoise(world, x, sigma, positive, words, late, 0.2), plain), "outside the interval"


def test_processors_that_are_there_still_act(words) -> None:
    class Doubled(AttnProcessor):
        def __call__(self, *args, **options):
            return 2 * super().__call__(*args, **options)

    world = load_model("tiny", device="cpu")
    before = guided_denoise(world, world.noise([1]), torch.tensor(2.0), words, words, NAG.guidance)
    world = load_model("tiny", device="cpu")
    world.network.set_attn_processor(Doubled())
    after = guided_denoise(world, world.noise([1]), torch.tensor(2.0), words, words, NAG.guidance)
    assert (after - before).abs().max() > 0.01
    kinds = {type(p.inner) for p in world.network.attn_processors.values() if isinstance(p, GuidedProcessor)}
    guide_attention(world.network)
    assert kinds == {Doubled} and {type(p.inner) for p in world.network.attn_processors.values()} == {Doubled}


@pytest.mark.parametrize(("points", "through"), [([2], 1), ([0], 0)])
def test_the_gradient_is_that_of_the_finished_pictures(world, words, points: list[int], through: int) -> None:
    """From the last step, and from the first through all: against differences along the gradient."""
    reward, batch = load_reward("tiny"), Batch(PROMPTS, world.encode(PROMPTS), world.noise([3, 4]))

    def scores(tokens: torch.Tensor) -> torch.Tensor:
        return reward.score(
            world.decode(sample(world, batch.positive, Conditioning(tokens), batch.noise, NAG)), PROMPTS
        )

    found = reward_gradient(world, reward, batch, words, NAG, Reach(points, through))
    assert torch.allclose(found.rewards[-1], scores(words.tokens).detach(), atol=1e-4)
    if through == 0:
        direction = found.tokens / found.tokens.norm()
        sides = [scores(words.tokens + sign * 0.02 * direction).double().sum() for sign in (1, -1)]
        assert found.tokens.norm().item() == pytest.approx(((sides[0] - sides[1]) / 0.04).item(), rel=0.05)
    world.checkpointing(True)
    try:
        again = reward_gradient(world, reward, batch, words, NAG, Reach(points, through)).tokens
    finally:
        world.checkpointing(False)
    assert torch.allclose(again, found.tokens, rtol=1e-3, atol=1e-6) and found.tokens.abs().sum() > 0


def test_what_cannot_be_is_refused(world, words) -> None:
    with pytest.raises(ConfigError, match=r"jitter\.guidance_scale: expected none with attention guidance"):
        TrainConfig(sampling=NAG, window=(0, 1), jitter=Jitter(guidance_scale=(2.0,)))
    assert TrainConfig(sampling=NAG, window=(0, 1)).sampling.describe().endswith("scale 1, attention guidance 4")
    masked = replace(words, mask=torch.zeros(1, words.tokens.shape[1], dtype=torch.int64))
    with pytest.raises(ValueError, match="mask that hides tokens"):
        world.attended(world.noise([1]), torch.tensor(2.0), words, masked, 4.0)
    assert world.denoise(world.noise([1]), torch.tensor(2.0), words, (Branch.NEGATIVE,)).shape == (1, 12, 8, 8)
