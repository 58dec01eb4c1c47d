"""Preprocessing against Pillow and against the arithmetic the published pipelines describe."""

import numpy as np
import pytest
import torch
from PIL import Image

from reneg_core.rewards.pil_resize import pil_bicubic
from reneg_core.rewards.preprocess import MEAN, STD, centre_crop, longest_edge_pad, shortest_edge_crop

SIZES = [
    ((512, 512), (224, 224)),
    ((512, 768), (224, 336)),
    ((128, 128), (224, 224)),
    ((51, 76), (64, 95)),
    ((333, 97), (768, 224)),
    ((1500, 1000), (336, 224)),
    ((7, 5), (313, 224)),
    ((64, 90), (64, 90)),
    ((64, 90), (64, 45)),
    ((2400, 30), (40, 30)),
]


def picture(kind, height, width):
    if kind == "checkerboard":  # exact half ties everywhere
        return np.repeat((np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def to_tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def denormalise(pixels):
    return pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


@pytest.mark.parametrize("kind", ["noise", "checkerboard"])
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bicubic_equals_pillow_bit_for_bit(kind, source, target):
    pixels = picture(kind, *source)
    expected = np.array(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BICUBIC))
    got = pil_bicubic(torch.from_numpy(pixels).permute(2, 0, 1)[None], target)[0].permute(1, 2, 0)
    assert np.array_equal(got.numpy(), expected)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (64, 64), (40, 91)])
@pytest.mark.parametrize("rounding", ["round", "floor"])
def test_shortest_edge_crop_equals_pillow(size, rounding):
    pixels = picture("noise", *size)
    short, long = min(size), max(size)
    scaled = int(64 * long / short)
    target = (64, scaled) if size[0] > size[1] else (scaled, 64)  # PIL: width, height
    resized = Image.fromarray(pixels).resize(target, Image.Resampling.BICUBIC)
    offset = (scaled - 64) // 2 if rounding == "floor" else round((scaled - 64) / 2)
    left, top = (0, offset) if size[0] > size[1] else (offset, 0)
    expected = to_tensor(np.array(resized.crop((left, top, left + 64, top + 64))))
    got = denormalise(shortest_edge_crop(to_tensor(pixels), 64, "exact", rounding))
    assert torch.allclose(got, expected, atol=1e-6)


def test_crop_offsets_differ_by_one_pixel_where_the_remainder_is_three():
    columns = torch.arange(67.0).expand(1, 3, 64, 67)
    assert centre_crop(columns, 64, "round")[0, 0, 0, 0] == 2  # 1.5 to even
    assert centre_crop(columns, 64, "floor")[0, 0, 0, 0] == 1
    columns = torch.arange(65.0).expand(1, 3, 64, 65)
    assert centre_crop(columns, 64, "round")[0, 0, 0, 0] == centre_crop(columns, 64, "floor")[0, 0, 0, 0] == 0


def test_hpsv2_pads_with_black_the_odd_pixel_right_and_bottom():
    white = torch.ones(1, 3, 9, 16)
    out = denormalise(longest_edge_pad(white, 16, "exact", True))
    assert out.shape == (1, 3, 16, 16)
    rows = out[0, 0, :, 0].round().tolist()
    assert rows == [0] * 3 + [1] * 9 + [0] * 4
    columns = denormalise(longest_edge_pad(white.transpose(2, 3), 16, "exact", True))[0, 0, 0].round().tolist()
    assert columns == [0] * 3 + [1] * 9 + [0] * 4


def test_hpsv2_does_not_clamp_the_overshoot():
    edge = torch.zeros(1, 3, 64, 64)
    edge[..., 32:] = 1
    out = denormalise(longest_edge_pad(edge, 90, "smooth", True))
    assert out.max() > 1.02 and out.min() < -0.02


def test_antialias_variants_differ_when_reducing():
    noise = to_tensor(picture("noise", 200, 200))
    on, off = (longest_edge_pad(noise, 56, "exact", flag) for flag in (True, False))
    assert (on - off).abs().mean() > 0.1


def test_a_picture_of_the_networks_size_passes_unchanged():
    pixels = to_tensor(picture("noise", 64, 64))
    for mode in ("exact", "smooth"):
        assert torch.allclose(denormalise(shortest_edge_crop(pixels, 64, mode, "round")), pixels, atol=1e-6)
        assert torch.allclose(denormalise(longest_edge_pad(pixels, 64, mode, True)), pixels, atol=1e-6)


def test_smooth_is_close_to_exact_and_their_gradients_agree():
    pixels = to_tensor(picture("noise", 96, 130))
    weights = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    outputs, gradients = [], []
    for mode in ("exact", "smooth"):
        x = pixels.clone().requires_grad_()
        out = shortest_edge_crop(x, 64, mode, "round")
        (out * weights).sum().backward()
        outputs.append(out.detach())
        gradients.append(x.grad)
    assert 0 < (outputs[0] - outputs[1]).abs().mean() < 1.0 / 255 / min(STD)
    assert torch.allclose(*gradients, atol=1e-6)


def test_exact_rounds_floats_to_the_nearest_8_bit_level():
    x = torch.full((1, 3, 8, 8), 100.4 / 255)
    assert torch.allclose(denormalise(shortest_edge_crop(x, 8, "exact", "round")), torch.tensor(100 / 255), atol=1e-6)
    x = torch.full((1, 3, 8, 8), 100.6 / 255)
    assert torch.allclose(denormalise(longest_edge_pad(x, 8, "exact", True)), torch.tensor(101 / 255), atol=1e-6)


def test_unknown_mode_is_refused(small_clip):
    from reneg_core.rewards import load_reward

    with pytest.raises(ValueError, match="preprocess: got 'fast', expected one of exact, smooth"):
        load_reward("pickscore", weights=small_clip.folder, preprocess="fast")
