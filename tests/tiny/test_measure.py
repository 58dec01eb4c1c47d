"""The independent measure: near 1 for flawless pictures, falling with everything that is wrong."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from reneg_core.tiny import measure, measure_parts, prompts, train_prompts, world

COMBINATIONS = prompts.combinations("train")


def _scenes(combinations: Tensor = COMBINATIONS) -> world.Scenes:
    return world.place(combinations, torch.Generator().manual_seed(0))


def _spoilt(column: int, value: float) -> Tensor:
    strength = torch.zeros(len(COMBINATIONS), 3)
    strength[:, column] = value
    return world.degrade(world.render(_scenes()), strength, torch.Generator().manual_seed(1))


def test_flawless_pictures_score_near_one():
    scores = measure(world.render(_scenes()), train_prompts())
    assert scores.shape == (240,) and scores.dtype == torch.float32
    assert scores.mean() > 0.98 and scores.min() > 0.95 and scores.max() <= 1


@pytest.mark.parametrize("column", range(3), ids=world.DEGRADATIONS)
def test_it_falls_with_every_degradation(column: int):
    means = [measure(_spoilt(column, value), train_prompts()).mean().item() for value in (0.0, 0.3, 0.5, 0.75, 1.0)]
    steps = [before - after for before, after in pairwise(means)]
    assert min(steps) > 0.02
    assert 0.3 < means[-1] < 0.65


def test_spoilt_pictures_as_the_world_spoils_them_are_visibly_lower():
    strength = world.sample_strength(240, 1.0, torch.Generator().manual_seed(2))
    images = world.degrade(world.render(_scenes()), strength, torch.Generator().manual_seed(1))
    assert 0.4 < measure(images, train_prompts()).mean() < 0.7


@pytest.mark.parametrize(("column", "most"), [(0, 0.87), (1, 0.75), (2, 0.75)], ids=["shape", "colour", "background"])
def test_a_wrong_attribute_costs(column: int, most: float):
    wrong = COMBINATIONS.clone()
    kinds = len(world.SHAPES) if column == 0 else len(world.COLOURS)
    wrong[:, column] = (wrong[:, column] + 1) % kinds
    kept = wrong[:, 1] != wrong[:, 2]
    images = world.render(_scenes(wrong))[kept]
    texts = [text for text, keep in zip(train_prompts(), kept.tolist(), strict=True) if keep]
    right = measure(world.render(_scenes())[kept], texts)
    assert measure(images, texts).mean() < most
    assert (measure(images, texts) < right).float().mean() > 0.9


def test_each_part_answers_to_its_own_flaw():
    clean = {name: part.mean().item() for name, part in measure_parts(_spoilt(0, 0.0), train_prompts()).items()}
    blurred, noisy, faded = ({k: v.mean().item() for k, v in measure_parts(_spoilt(i, 0.5), train_prompts()).items()}
                             for i in range(3))  # fmt: skip
    assert blurred["sharpness"] < 0.5 * clean["sharpness"]
    assert noisy["flatness"] < 0.5 * clean["flatness"]
    assert faded["colour"] < 0.7 * clean["colour"] and faded["flatness"] > 0.99


def test_an_empty_or_grey_picture_is_bad():
    assert measure(torch.full((1, 3, 32, 32), 0.5), ["a red circle on a blue background"]).item() < 0.4


def test_one_prompt_serves_all_and_other_sizes_are_resized():
    image = world.render(_scenes(COMBINATIONS[:1]))
    prompt = train_prompts()[0]
    assert torch.equal(measure(image.repeat(3, 1, 1, 1), [prompt]), measure(image, [prompt]).repeat(3))
    large = torch.nn.functional.interpolate(image, scale_factor=4, mode="nearest")
    assert abs(measure(large, [prompt]) - measure(image, [prompt])).item() < 0.05


def test_wrong_arguments_are_named():
    image = torch.zeros(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"prompt 'a circle' names no complete picture; expected a shape"):
        measure(image, ["a circle"])
    with pytest.raises(ValueError, match="got 3 prompts for 2 images"):
        measure(image, ["a red circle on blue"] * 3)
    with pytest.raises(ValueError, match=r"images have shape \(3, 32, 32\); expected \[B, 3, H, W\]"):
        measure(image[0], ["a red circle on blue"])
