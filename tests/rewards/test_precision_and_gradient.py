"""Reduced precision within stated bounds, checkpointing, and gradients checked by finite differences."""

import pytest
import torch
import torch.nn.functional as F

from reneg_core.rewards import load_reward

REWARDS = ("image_reward", "pickscore")


@pytest.fixture
def load(small_blip, small_clip):
    folders = {"image_reward": small_blip.folder, "pickscore": small_clip.folder}
    return lambda name, **options: load_reward(name, weights=folders[name], **options)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize(
    ("dtype", "score_bound", "least_cosine"), [(torch.float16, 0.01, 0.999), (torch.bfloat16, 0.06, 0.98)]
)
def test_reduced_precision_stays_within_its_bound(load, images, prompts, name, dtype, score_bound, least_cosine):
    """Score error relative to the spread of scores over pictures and prompts; direction of the gradient."""
    full, reduced = load(name), load(name, dtype=dtype)
    pictures = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = (prompts * 8)[:24]
    spread = full.score(pictures, texts).std()
    error = (reduced.score(pictures, texts) - full.score(pictures, texts)).abs().mean() / spread
    assert error < score_bound
    gradients = [gradient(reward, images, prompts) for reward in (full, reduced)]
    assert F.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > least_cosine
    assert reduced.score(images, prompts).dtype == torch.float32


@pytest.mark.parametrize("name", REWARDS)
def test_a_tiny_loss_weight_does_not_underflow_in_float16(load, images, prompts, name):
    full, half = load(name), load(name, dtype=torch.float16)
    expected, got = gradient(full, images, prompts) * 1e-8, gradient(half, images, prompts, scale=1e-8)
    assert F.cosine_similarity(expected.flatten(), got.flatten(), dim=0) > 0.999
    assert got.norm().item() == pytest.approx(expected.norm().item(), rel=0.02)


@pytest.mark.parametrize("name", REWARDS)
def test_checkpointing_keeps_less_and_changes_nothing(load, images, prompts, name):
    plain, saving = load(name), load(name, checkpointing=True)
    assert torch.allclose(gradient(plain, images, prompts), gradient(saving, images, prompts), atol=1e-7)
    assert kept_bytes(saving, images, prompts) < 0.5 * kept_bytes(plain, images, prompts)


@pytest.mark.parametrize("name", REWARDS)
def test_frozen_parameters_keep_no_graph_without_a_picture_gradient(load, images, prompts, name):
    assert not load(name).score(images, prompts).requires_grad


@pytest.mark.parametrize("name", [*REWARDS, "mix"])
@pytest.mark.parametrize("mode", ["smooth", "exact"])
def test_gradient_reaches_an_embedding_as_finite_differences_say(load, small_blip, small_clip, name, mode):
    """embedding -> differentiable stand-in for a generator -> reward, in double precision.

    The exact mode rounds to 8 bits: its gradient is checked against the differences of the smooth mode.
    """
    options = {"dtype": torch.float64, "preprocess": mode}
    if name == "mix":
        folders = {"image_reward": small_blip.folder, "pickscore": small_clip.folder}
        reward = load_reward("image_reward*0.5 + pickscore*2", weights=folders, **options)
        smooth = load_reward(
            "image_reward*0.5 + pickscore*2", weights=folders, dtype=torch.float64, preprocess="smooth"
        )
    else:
        reward, smooth = load(name, **options), load(name, dtype=torch.float64, preprocess="smooth")
    generate, prompts = stand_in_generator(), ["a red fox", "snow at night"]
    embedding = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    (found,) = torch.autograd.grad(reward.score(generate(embedding), prompts).sum(), embedding)
    step, base = 1e-5, embedding.detach()
    for i in range(5):
        shift = step * F.one_hot(torch.tensor(i), 5)
        with torch.no_grad():
            up, down = (smooth.score(generate(base + sign * shift), prompts).sum() for sign in (1, -1))
        slope = ((up - down) / (2 * step)).item()
        assert found[i].item() == pytest.approx(slope, rel=1e-5 if mode == "smooth" else 0.2)


def stand_in_generator():
    """embedding [5] -> two pictures [2,3,40,56] in (0,1)."""
    generator = torch.Generator().manual_seed(7)
    basis = torch.randn(5, 2 * 3 * 10 * 14, dtype=torch.float64, generator=generator)

    def generate(embedding):
        coarse = (embedding @ basis).view(2, 3, 10, 14)
        return torch.sigmoid(F.interpolate(coarse, (40, 56), mode="bilinear"))

    return generate


def gradient(reward, images, prompts, scale=1.0):
    x = images.clone().requires_grad_()
    (reward.score(x, prompts) * scale).sum().backward()
    return x.grad


def kept_bytes(reward, images, prompts):
    """Bytes of activations that one pass of the network keeps for backward, parameters not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in reward.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scores = reward.score_pixels(reward.preprocess(images).requires_grad_(), prompts)
    assert scores.requires_grad
    return sum(kept.values())
