"""The independent measure: near 1 for flawless pictures, falling with everything that is wrong."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from reneg_core.tiny import measure, measure_parts, prompts, train_prompts, world
from reneg_core.tiny.train_reward import blur

COMBINATIONS = prompts.combinations("train")[::2]
PROMPTS = train_prompts()[::2]
# What each flaw at full strength costs at least, and the part that it costs most.
COSTS = {
    "ghost": (0.3, "sharpness"), "debris": (0.12, "cleanness"), "stripes": (0.3, "cleanness"),
    "specks": (0.12, "cleanness"), "scratch": (0.1, "cleanness"), "band": (0.25, "cleanness"),
    "mark": (0.1, "cleanness"), "frame": (0.3, "cleanness"),
}  # fmt: skip


def _scenes(combinations: Tensor = COMBINATIONS) -> world.Scenes:
    return world.place(combinations, torch.Generator().manual_seed(0))


def _spoilt(flaw: str, value: float) -> Tensor:
    strength = torch.zeros(len(COMBINATIONS), len(world.FLAWS))
    strength[:, list(world.FLAWS).index(flaw)] = value
    return world.spoil(world.render(_scenes()), strength, torch.Generator().manual_seed(1))


def _parts(images: Tensor) -> dict[str, float]:
    return {name: part.mean().item() for name, part in measure_parts(images, PROMPTS).items()}


def test_flawless_pictures_score_near_one():
    scores = measure(world.render(_scenes()), PROMPTS)
    assert scores.shape == (120,) and scores.dtype == torch.float32
    assert scores.mean() > 0.99 and scores.min() > 0.97 and scores.max() <= 1


@pytest.mark.parametrize("flaw", world.FLAWS)
def test_it_falls_with_every_flaw_in_the_part_that_sees_it(flaw: str):
    least, part = COSTS[flaw]
    means = [measure(_spoilt(flaw, value), PROMPTS).mean().item() for value in (0.0, 0.4, 0.7, 1.0)]
    assert all(later < earlier - 0.015 for earlier, later in pairwise(means))
    assert means[0] - means[-1] > least
    clean, spoilt = _parts(world.render(_scenes())), _parts(_spoilt(flaw, 1.0))
    assert max(clean, key=lambda name: clean[name] - spoilt[name]) == part


def test_pictures_from_careless_sources_are_visibly_lower():
    strength = world.sample_strength(120, 1.0, torch.Generator().manual_seed(2))
    images = world.spoil(world.render(_scenes()), strength, torch.Generator().manual_seed(1))
    assert 0.6 < measure(images, PROMPTS).mean() < 0.78


@pytest.mark.parametrize(("column", "most"), [(0, 0.92), (1, 0.9), (2, 0.9)], ids=["shape", "colour", "background"])
def test_a_wrong_attribute_costs(column: int, most: float):
    wrong = COMBINATIONS.clone()
    kinds = len(world.SHAPES) if column == 0 else len(world.COLOURS)
    wrong[:, column] = (wrong[:, column] + 1) % kinds
    kept = wrong[:, 1] != wrong[:, 2]
    images = world.render(_scenes(wrong))[kept]
    texts = [text for text, keep in zip(PROMPTS, kept.tolist(), strict=True) if keep]
    right = measure(world.render(_scenes())[kept], texts)
    assert measure(images, texts).mean() < most
    assert (measure(images, texts) < right).float().mean() > 0.95


def test_each_part_answers_to_its_own_fault():
    clean = world.render(_scenes())
    flawless, half = _parts(clean), torch.full((len(clean),), 1.0)
    soft, faded = _parts(blur(clean, half)), _parts(0.6 * clean + 0.2)
    noisy = _parts((clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1))
    assert soft["sharpness"] < 0.7 * flawless["sharpness"] and soft["cleanness"] > 0.97
    assert noisy["cleanness"] < 0.85 * flawless["cleanness"]
    assert faded["colour"] < 0.7 * flawless["colour"] and faded["cleanness"] > 0.99


def test_what_nobody_sees_costs_nothing():
    clean = world.render(_scenes())
    faint = (clean + 0.015 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert _parts(faint)["cleanness"] > 0.99


def test_an_empty_or_grey_picture_is_bad():
    assert measure(torch.full((1, 3, 32, 32), 0.5), ["a red circle on a blue background"]).item() < 0.45


def test_one_prompt_serves_all_and_other_sizes_are_resized():
    image = world.render(_scenes(COMBINATIONS[:1]))
    assert torch.equal(measure(image.repeat(3, 1, 1, 1), PROMPTS[:1]), measure(image, PROMPTS[:1]).repeat(3))
    large = torch.nn.functional.interpolate(image, scale_factor=4, mode="nearest")
    assert abs(measure(large, PROMPTS[:1]) - measure(image, PROMPTS[:1])).item() < 0.01


def test_a_picture_is_judged_the_same_in_any_batch():
    images = _spoilt("band", 0.8)[:12]
    together, alone = measure(images, PROMPTS[:12]), [measure(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(12)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_wrong_arguments_are_named():
    image = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"prompt 'a circle' names no complete picture; expected a shape"):
        measure(image, ["a circle"])
    with pytest.raises(ValueError, match="got 3 prompts for 2 images"):
        measure(image, ["a red circle on blue"] * 3)
    with pytest.raises(ValueError, match=r"images have shape \(3, 32, 32\); expected \[B, 3, H, W\]"):
        measure(image[0], ["a red circle on blue"])
