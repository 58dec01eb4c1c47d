"""Per-sample adaptation: never below its start, early stop per pair, batched equals single."""

import pytest
import torch
from doubles import Constant, Curved

from reneg_core import NegativeEmbedding
from reneg_core.model import Conditioning
from reneg_core.sampling import sample
from reneg_core.training import AdaptConfig, Rollout, adapt

PROMPTS, SEEDS = ["a red fox", "blue", "sun over sea"], [1, 2, 3]
CONFIG = AdaptConfig(steps=4, sampling_steps=4, learning_rate=0.05, window=(0, 4), points=2, guidance_scale=4.0)


@pytest.fixture
def start(model) -> NegativeEmbedding:
    return NegativeEmbedding(model.encode([""]).tokens, model.family)


def test_improves_and_never_falls_below_the_start(model, start) -> None:
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    assert (result.rewards >= result.start_rewards).all() and (result.rewards > result.start_rewards).any()
    assert result.negatives.tokens.shape == (3, 16, 32)
    wild = adapt(model, Curved(), PROMPTS, SEEDS, start, AdaptConfig(**{**vars(CONFIG), "learning_rate": 100.0}))
    assert (wild.rewards >= wild.start_rewards).all()


def test_rewards_are_those_of_the_finished_pictures(model, start) -> None:
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    rollout = Rollout(model.sigmas(4), CONFIG.guidance())
    latents = sample(
        model, model.encode(PROMPTS), result.negatives, model.noise(SEEDS), rollout.sigmas, rollout.guidance
    )
    images = model.decode(latents)
    assert torch.allclose(Curved().score(images, PROMPTS), result.rewards, atol=1e-4)
    assert torch.allclose(images, result.images, atol=1e-4)


def test_batched_equals_one_at_a_time(model, start) -> None:
    together = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    for row in range(3):
        alone = adapt(model, Curved(), [PROMPTS[row]], [SEEDS[row]], start, CONFIG)
        assert torch.allclose(alone.rewards[0], together.rewards[row], atol=1e-3)


def test_patience_ends_pairs_that_do_not_improve(model, start) -> None:
    calls = []
    config = AdaptConfig(**{**vars(CONFIG), "steps": 10, "patience": 2})

    class Counting(Constant):
        def _score(self, images, prompts):
            calls.append(len(images))
            return super()._score(images, prompts)

    result = adapt(model, Counting(), PROMPTS, SEEDS, start, config)
    assert result.steps.tolist() == [0, 0, 0]
    assert len(calls) == 3 * (config.points + 1)


def test_row_becomes_a_file_ready_embedding(model, start) -> None:
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    assert torch.equal(result.embedding(1, start).tokens[0], result.negatives.tokens[1])


def test_bad_input(model, start) -> None:
    with pytest.raises(ValueError, match="Got 3 prompts and 1 seeds, expected equal numbers"):
        adapt(model, Curved(), PROMPTS, [1], start, CONFIG)
    with pytest.raises(ValueError, match="Got an embedding for the text encoder clip-l"):
        adapt(model, Curved(), PROMPTS, SEEDS, NegativeEmbedding(torch.zeros(1, 77, 768)), CONFIG)


def test_all_positions_of_a_mask_are_kept(model) -> None:
    masked = NegativeEmbedding(model.encode([""]).tokens, model.family, torch.ones(1, 16))
    result = adapt(model, Curved(), PROMPTS, SEEDS, masked, AdaptConfig(**{**vars(CONFIG), "steps": 1}))
    assert isinstance(result.negatives, Conditioning) and result.negatives.mask.shape == (3, 16)
