"""The independent measure as the published figures were measured with it, on pictures of every kind."""

import re

import pytest
import torch
from torch import Tensor

from reneg_core.tiny import measure, measure_parts, world

ROWS = torch.tensor(
    [[0, 1, 2], [1, 4, 0], [2, 3, 5], [3, 0, 6], [4, 2, 1], [0, 5, 3], [1, 6, 7], [5, 7, 4]]
)  # shape, colour, background
RECORDED = {
    "plain": {
        "colour": [1, 1, 1, 1, 1, 1, 1, 1],
        "cleanness": [1, 1, 1, 1, 1, 1, 1, 1],
        "sharpness": [1, 1, 1, 1, 1, 1, 1, 1],
        "shape": [0.9933, 0.9813, 0.9703, 0.993, 0.987, 0.989, 0.9939, 0.9919],
    },
    "spoilt": {
        "colour": [1, 0.9041, 0.9863, 1, 0.8488, 1, 1, 0.943],
        "cleanness": [0.9015, 0.3803, 0.4775, 0.0589, 0.4527, 0.9082, 0.084, 0.3367],
        "sharpness": [0.9669, 0.2539, 0.9951, 0.8644, 0.924, 1, 1, 0.4106],
        "shape": [0.9597, 0.6081, 0.8802, 0.8848, 0.9663, 0.9673, 0.955, 0.5875],
    },
    "faint": {
        "colour": [0.4361, 0.4856, 0.4278, 0.3802, 0.4581, 0.2885, 0.2709, 0.4175],
        "cleanness": [1, 1, 1, 1, 1, 1, 1, 1],
        "sharpness": [0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15, 0.15],
        "shape": [0.9933, 0.9813, 0.9703, 0.993, 0.987, 0.989, 0.9939, 0.9919],
    },
    "noisy": {
        "colour": [0.9298, 0.91, 0.9237, 0.8131, 0.8272, 0.9203, 0.9373, 0.9308],
        "cleanness": [0.1644, 0.1716, 0.1708, 0.1971, 0.1457, 0.185, 0.2068, 0.1427],
        "sharpness": [0.0949, 0.1537, 0.3885, 0.0773, 0.2558, 0.1183, 0.3012, 0.2797],
        "shape": [0.503, 0.4287, 0.4225, 0.4383, 0.3887, 0.6182, 0.6136, 0.4036],
    },
    "moved": {
        "colour": [1, 1, 1, 1, 1, 1, 1, 1],
        "cleanness": [1, 1, 1, 0.4732, 1, 1, 0.6098, 1],
        "sharpness": [1, 1, 1, 0.97, 1, 1, 1, 1],
        "shape": [0.6325, 0.6686, 0.4205, 0.0815, 0.6542, 0.9644, 0.4992, 0.6589],
    },
    "of another prompt": {
        "colour": [0.1959, 0.0643, 0.0391, 0.1013, 0.0381, 0.1436, 0.056, 0.0462],
        "cleanness": [0.6193, 0.9337, 0.2589, 0.7572, 0.2125, 0.3745, 1, 0.0885],
        "sharpness": [0.9779, 1, 0.5705, 0.9762, 1, 0.5703, 0.7212, 1],
        "shape": [0.3366, 0.6582, 0, 0.2921, 0, 0.5058, 0.6575, 0],
    },
    "a ramp": {
        "colour": [0.2006, 0.1892, 0.1327, 0.2185, 0.2067, 0.1261, 0.2701, 0.228],
        "cleanness": [0.0735, 0.083, 0.0611, 0.0654, 0.0567, 0.0735, 0.083, 0.057],
        "sharpness": [0.1024, 0.5236, 0.1028, 0.0801, 0.1829, 0.0683, 0.2179, 0.3622],
        "shape": [0.2625, 0.232, 0, 0.0443, 0, 0.2625, 0.232, 0.0313],
    },
    "one colour": {
        "colour": [0.0916, 0.0761, 0.0837, 0.0488, 0.1162, 0.0637, 0.0513, 0.1466],
        "cleanness": [1, 1, 1, 1, 1, 1, 1, 1],
        "sharpness": [0, 0, 0, 0, 0, 0, 0, 0],
        "shape": [0, 0, 0, 0, 0, 0, 0, 0],
    },
}  # fmt: skip


def prompts() -> list[str]:
    colours = list(world.COLOURS)
    return [f"a {colours[c]} {world.SHAPES[s]} on a {colours[b]} background" for s, c, b in ROWS.tolist()]


def pictures() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    plain = world.render(world.place(ROWS, generator))
    grey = plain.mean((2, 3), keepdim=True)
    return {
        "plain": plain,
        "spoilt": world.spoil(plain, world.sample_strength(8, 1.0, generator), generator),
        "faint": grey + 0.15 * (plain - grey),
        "noisy": (plain + 0.25 * torch.randn(plain.shape, generator=generator)).clamp(0, 1),
        "moved": plain.roll((5, -4), (2, 3)),
        "of another prompt": plain.roll(1, 0),
        "a ramp": torch.linspace(0, 1, 32).expand(8, 3, 32, 32),
        "one colour": torch.full((8, 3, 32, 32), 0.5),
    }


@pytest.mark.parametrize("kind", RECORDED)
def test_every_part_of_every_kind_of_picture(kind: str) -> None:
    found = measure_parts(pictures()[kind], prompts())
    assert {name: part.tolist() for name, part in found.items()} == {
        name: pytest.approx(part, abs=1e-3) for name, part in RECORDED[kind].items()
    }


def test_larger_pictures_are_averaged_to_the_worlds_size() -> None:
    plain = pictures()["plain"]
    large = plain.repeat_interleave(3, 2).repeat_interleave(2, 3)
    assert torch.allclose(measure(large, prompts()), measure(plain, prompts()), atol=1e-5)
    checked = large.clone()
    checked[:, :, ::3] = checked[:, :, 1::3] = checked[:, :, 2::3] * 0.5
    mean = plain * 2 / 3
    assert torch.allclose(measure(checked, prompts()), measure(mean, prompts()), atol=1e-4)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (torch.zeros(3, 32, 32), ["x"], "images have shape (3, 32, 32); expected [B, 3, H, W]"),
        (torch.zeros(1, 4, 32, 32), ["x"], "images have shape (1, 4, 32, 32); expected [B, 3, H, W]"),
        (torch.zeros(2, 3, 32, 32), "xy", "got one string for 2 images; expected a list of 1 or 2 prompts"),
        (torch.zeros(2, 3, 32, 32), ["x"] * 3, "got 3 prompts for 2 images; expected a list of 1 or 2 prompts"),
        (
            torch.zeros(1, 3, 32, 32),
            ["a red circle"],
            "prompt 'a red circle' names no complete picture; expected a shape, its colour and a background, such as "
            "'a red circle on a blue background'",
        ),
    ],
)
def test_what_cannot_be_judged_is_said(images: Tensor, texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        measure(images, texts)
