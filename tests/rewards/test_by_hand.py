"""Preprocessing, mixes and the contract in numbers worked out by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reneg_core.rewards import Reward, RewardMix, Statistics, measure_statistics
from reneg_core.rewards import preprocess as module
from reneg_core.rewards.base import _plain, check_images, check_prompts, device_of
from reneg_core.rewards.mix import statistics_of
from reneg_core.rewards.preprocess import (
    MEAN,
    STD,
    centre_crop,
    longest_edge_pad,
    normalise,
    shortest_edge_crop,
    to_8bit,
)


def test_pixels_are_rounded_to_8_bits_within_their_range() -> None:
    given_, levels = torch.tensor([-0.2, 0.0, 0.4991, 0.5, 0.9999, 1.0, 1.3]), [0, 0, 127, 128, 255, 255, 255]
    images = given_.reshape(1, 1, 1, 7).expand(1, 3, 1, 7).clone()
    assert (to_8bit(images)[0, 0, 0] * 255).tolist() == pytest.approx(levels)
    leaf = images.requires_grad_()
    rounded = to_8bit(leaf)
    assert (rounded[0, 0, 0] * 255).tolist() == pytest.approx(levels) and rounded.requires_grad
    (gradient,) = torch.autograd.grad((3 * rounded).sum(), leaf)
    assert torch.equal(gradient, torch.full_like(gradient, 3.0)), "as if nothing had happened"
    assert not to_8bit(images.detach()).requires_grad and to_8bit(images.detach().double()).dtype == torch.float64


def test_channels_are_normalised_by_clips_figures() -> None:
    assert pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4) == MEAN
    assert pytest.approx((0.2686, 0.2613, 0.2758), abs=1e-4) == STD
    found = normalise(torch.ones(1, 3, 1, 1, dtype=torch.float64))
    assert found.flatten().tolist() == pytest.approx([(1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])
    assert found.dtype == torch.float64


@given(st.integers(5, 30), st.integers(5, 30), st.sampled_from(["round", "floor"]))
def test_a_crop_is_the_middle(height: int, width: int, rounding: str) -> None:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found = centre_crop(torch.stack([rows, columns])[None], 5, rounding)
    assert found.shape == (1, 2, 5, 5)
    for channel, edge in enumerate((height, width)):
        exact = (edge - 5) / 2
        expected = (edge - 5) // 2 if rounding == "floor" else round(exact)
        assert found[0, channel, 0, 0] == expected and abs(found[0, channel, 2, 2] - 2 - exact) <= 0.5


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8), (12, 12), (7, 20), (33, 9)])
@pytest.mark.parametrize("mode", ["exact", "smooth"])
def test_pictures_of_every_shape_end_square(height: int, width: int, mode: str) -> None:
    """A picture of one colour stays one: cropped it fills the square, padded it has black beside it."""
    image = torch.full((2, 3, height, width), 0.6)
    cropped = shortest_edge_crop(image, 10, mode, "round")
    assert cropped.shape == (2, 3, 10, 10)
    assert torch.allclose(cropped, normalise(torch.full((2, 3, 10, 10), 0.6)), atol=1e-5)
    padded = longest_edge_pad(image, 10, mode, True)
    scale = 10 / max(height, width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    expected = torch.zeros(2, 3, 10, 10)
    top, left = (10 - tall) // 2, (10 - wide) // 2
    expected[..., top : top + tall, left : left + wide] = 0.6
    assert torch.allclose(padded, normalise(expected), atol=1e-5)


def test_a_sliver_keeps_a_pixel() -> None:
    found = longest_edge_pad(torch.ones(1, 3, 1, 64), 8, "smooth", True)
    lit = (found > normalise(torch.full((1, 3, 8, 8), 0.5))).all(1)[0]
    assert lit.sum() == 8 and lit[3].all()


def test_an_unknown_mode_is_refused() -> None:
    for mode in module.MODES:
        module.check_mode(mode)
    with pytest.raises(ValueError, match=r"^preprocess: got 'fast', expected one of exact, smooth$"):
        module.check_mode("fast")


def test_working_memory_is_four_pictures_of_float32() -> None:
    assert module.preprocessing_bytes(10, 7) == 3 * 10 * 7 * 4 * 4


class Length(Reward):
    """The prompt's length and the mean of the picture; prompts beyond two letters are cut."""

    name = "length"

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in prompts])

    def truncated(self, prompts: list[str]) -> list[bool]:
        return [len(prompt) > 2 for prompt in prompts]


class Blind(Length):
    name, needs_prompt = "blind", False

    def truncated(self, prompts: list[str]) -> list[bool]:
        return [False] * len(prompts)


IMAGES = torch.tensor([0.1, 0.5, 0.9]).reshape(3, 1, 1, 1).expand(3, 3, 2, 2)
STATISTICS = {"long": Statistics(2.0, 4.0, "here"), "blind": Statistics(1.0, 0.5, "there")}


def test_a_mix_in_numbers() -> None:
    mix = RewardMix({"long": Length(), "blind": Blind()}, {"long": 2, "blind": -0.5}, statistics=STATISTICS)
    found = mix.details(IMAGES, ["a", "bb", "ccc"])
    long = [1.1, 2.5, 3.9]
    assert found.parts["long"].tolist() == pytest.approx(long) and list(found.parts) == ["long", "blind"]
    assert found.scores.tolist() == pytest.approx([2 * (v - 2) / 4 - 0.5 * (v - 1) / 0.5 for v in long])
    assert torch.equal(found.scores, mix.score(IMAGES, ["a", "bb", "ccc"]))
    assert list(found.truncated) == [False, False, True] and mix.truncated(["aaa", "a"]) == [True, False]
    assert mix.name == "long*2 + blind*-0.5" and mix.needs_prompt
    assert not RewardMix({"blind": Blind()}, {"blind": 1.0}).needs_prompt
    plain = RewardMix({"long": Length()}, {"long": 3.0}, statistics={"long": STATISTICS["long"]}, normalise="none")
    assert plain.score(IMAGES, ["a"]).tolist() == pytest.approx([3.3, 4.5, 5.7])
    own = RewardMix({"long": Length()}, {"long": 1.0})
    assert own.score(IMAGES, ["a"]).tolist() == pytest.approx([1.1, 1.5, 1.9])
    assert own.named_parts()["long"].name == "length"


@pytest.mark.parametrize(
    ("parts", "weights", "options", "message"),
    [
        ({}, {}, {}, "a mix needs at least one part, e.g. 'hpsv2.1*1.0 + image_reward*0.5'"),
        ({"a": 1}, {"b": 1.0}, {}, "mix parts ['a'] and weights ['b'] name different rewards"),
        ({"a": 1}, {"a": float("nan")}, {}, "mix weight of 'a' is nan, expected a finite number"),
        ({"a": 1}, {"a": 1.0}, {"normalise": "max"}, "normalise: got 'max', expected one of zscore, none"),
        (
            {"a": 1}, {"a": 1.0}, {"statistics": {"z": STATISTICS["long"], "b": STATISTICS["long"]}},
            "statistics for 'b', which is not in the mix of a",
        ),
        (
            {"a": 1}, {"a": 1.0}, {"statistics": {"a": Statistics(0.0, -1.0, "")}},
            "statistics of 'a': std is -1.0, expected > 0",
        ),
    ],
)  # fmt: skip
def test_mixes_that_cannot_be(parts: dict, weights: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        RewardMix({name: Length() for name in parts}, weights, **options)
    assert str(caught.value) == message


def test_statistics_of_scores() -> None:
    assert statistics_of([1.0, 2.0, 6.0], "three") == Statistics(3.0, pytest.approx(7**0.5), "three")
    assert statistics_of([1.0, 1.0 + 1e-12], "close").std > 0, "in float64"
    assert statistics_of([0.0, 2.0], "two") == Statistics(1.0, pytest.approx(2**0.5), "two")
    for scores in ([1.0], [2.0, 2.0], []):
        told = f"^got {len(scores)} scores without spread; statistics need at least 2 different ones$"
        with pytest.raises(ValueError, match=told):
            statistics_of(scores, "")
    found = measure_statistics(Length(), IMAGES[:2], ["a", "bb"], "two pictures")
    assert found == Statistics(pytest.approx(1.8), pytest.approx(0.7 * 2**0.5), "two pictures")
    assert not isinstance(found.mean, Tensor)
    with pytest.raises(ValueError, match=r"^statistics need at least 2 images, got 1$"):
        measure_statistics(Length(), IMAGES[:1], ["a"], "")


def test_a_reward_tells_which_prompts_it_cut() -> None:
    assert Length().details(IMAGES, ["a", "bbb", "cc"]).truncated == [False, True, False]
    assert Length().details(IMAGES, ["bbb"]).truncated == [True] * 3
    found = Length().details(IMAGES, ["a", "bb", "c"])
    assert list(found.parts) == ["length"] and torch.equal(found.parts["length"], found.scores)
    assert found.scores.tolist() == pytest.approx([1.1, 2.5, 1.9])
    assert Blind().details(IMAGES).truncated == [False] * 3
    with pytest.raises(NotImplementedError, match=r"^Reward must implement _score\("):
        Reward().score(IMAGES, ["a"])


def test_prompts_are_needed_unless_it_is_said() -> None:
    with pytest.raises(ValueError, match="got none, expected 1 or 2; this reward judges images against their prompts"):
        check_prompts([], 2)
    assert check_prompts([], 2, needed=False) == ["", ""] and check_prompts(["a"], 2) == ["a", "a"]


def test_where_a_network_is() -> None:
    linear, norm = torch.nn.Linear(2, 2, device="meta"), torch.nn.BatchNorm1d(2, affine=False, device="meta")
    assert device_of(linear).type == device_of(norm).type == "meta"
    assert device_of(torch.nn.ReLU()).type == "cpu" and device_of(torch.nn.ReLU(), "meta").type == "meta"


def test_scores_are_single_or_double() -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert [_plain(torch.ones(1, dtype=kind)).dtype for kind in kinds] == [torch.float32] * 3 + [torch.float64]


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_pixels_that_are_no_finite_numbers_are_refused(value: float) -> None:
    images = torch.full((1, 3, 4, 4), 0.5)
    images[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="images: contain NaN or infinite pixels; check the decoder's"):
        check_images(images)
