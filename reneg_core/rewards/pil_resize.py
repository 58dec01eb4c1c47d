"""PIL's bicubic resize of 8-bit images, bit for bit, as matrix products.

Pillow computes each pass with coefficients rounded to 22 fractional bits and rounds the result to 8 bits: horizontal
first, then vertical. The same integers come out of float32 products here because each coefficient is split into three
bytes: their products with 8-bit pixels are summed exactly, even by TF32 units. Checked against Pillow 13.
"""

from functools import lru_cache

import torch
from torch import Tensor

from reneg_core.rewards.precision import own_precision

FRACTION_BITS = 22
BYTE = 1 << 8
BLOCK = 32  # output pixels computed together; they read a narrow band of the source
SUPPORT = 2.0  # of the cubic kernel, in source pixels of an enlargement


def pil_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """images [B,3,H,W] whole numbers 0..255 in any dtype -> [B,3,*size] int32 in 0..255."""
    with own_precision(images.device):
        if images.shape[-1] != size[1]:
            images = _pass(images, size[1])
        if images.shape[-2] != size[0]:
            images = _pass(images.transpose(-1, -2), size[0]).transpose(-1, -2)
    return images.to(torch.int32)


def _pass(images: Tensor, target: int) -> Tensor:
    """Resize the last axis to `target` pixels."""
    pixels = images.float()
    blocks = []
    for first, last, parts in _split_coefficients(images.shape[-1], target):
        band = pixels[..., first:last]
        high, middle, low = ((band @ part.to(images.device)).to(torch.int32) for part in parts)
        blocks.append((high * BYTE + middle) * BYTE + low)
    total = torch.cat(blocks, dim=-1)
    return ((total + (1 << FRACTION_BITS - 1)) >> FRACTION_BITS).clamp(0, 255)


@lru_cache(maxsize=64)
def _split_coefficients(source: int, target: int) -> list[tuple[int, int, tuple[Tensor, Tensor, Tensor]]]:
    """For each block of output pixels: the source pixels [first, last) it reads, and the bytes of its 22-bit
    coefficients, highest first, as float32 matrices [last - first, block]."""
    with torch.inference_mode(False):
        blocks = []
        for rows in (coefficients(source, target) * (1 << FRACTION_BITS)).round().split(BLOCK):
            read = rows.any(dim=0).nonzero()
            first, last = int(read[0]), int(read[-1]) + 1
            whole = rows[:, first:last].t().contiguous()
            high, rest = (whole / BYTE**2).floor(), whole.remainder(BYTE**2)
            parts = (high, (rest / BYTE).floor(), rest.remainder(BYTE))
            blocks.append((first, last, tuple(part.float() for part in parts)))
        return blocks


def coefficients(source: int, target: int) -> Tensor:
    """Normalised kernel weights [target,source], float64; every row sums to 1."""
    scale = source / target
    stretch = max(scale, 1.0)
    centre = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * scale
    position = torch.arange(source, dtype=torch.float64)[None]
    first = (centre - SUPPORT * stretch + 0.5).clamp(min=0).floor()
    last = (centre + SUPPORT * stretch + 0.5).clamp(max=source).floor()
    weights = _cubic((position - centre + 0.5) / stretch) * ((position >= first) & (position < last))
    return weights / weights.sum(1, keepdim=True)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
