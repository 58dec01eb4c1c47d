"""Published image preprocessing in torch: differentiable, batched, and equal to PIL's pixels in the exact mode.

Two modes. `exact` reproduces the 8-bit arithmetic of the published pipelines, and passes the gradient straight through
the rounding. `smooth` leaves the rounding out. Images are [B,3,H,W] in [0,1], or uint8 levels as files hold them; S is
the network's input size in pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reneg_core.rewards.pil_resize import pil_bicubic

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP's, used by every model here
STD = (0.26862954, 0.26130258, 0.27577711)
MODES = ("exact", "smooth")
STRIP_BYTES = 1 << 25  # of a strip in float32


def check_mode(mode: str) -> None:
    """Raise ValueError unless `mode` is one of MODES."""
    if mode not in MODES:
        raise ValueError(f"preprocess: got {mode!r}, expected one of {', '.join(MODES)}")


def shortest_edge_crop(images: Tensor, size: int, mode: str, crop: str) -> Tensor:
    """Bicubic resize of the shortest edge to `size` (PIL's kernel), centre crop, normalisation -> [B,3,S,S].

    crop: "round" (torchvision's offsets, half to even) or "floor" (transformers').
    """
    height, width = images.shape[-2:]
    short, long = min(height, width), max(height, width)
    scaled = int(size * long / short)
    target = (scaled, size) if height > width else (size, scaled)
    resized = resize_8bit(images, target) if mode == "exact" else resize(images, target)
    return normalise(centre_crop(resized, size, crop))


def longest_edge_pad(images: Tensor, size: int, mode: str, antialias: bool) -> Tensor:
    """HPSv2: float bicubic resize of the longest edge to `size`, not clamped, black padding to a square with the odd
    pixel right and bottom, normalisation -> [B,3,S,S]. `exact` first rounds the input to 8 bits, as a file would."""
    scale = size / max(images.shape[-2:])
    height, width = (max(1, round(edge * scale)) for edge in images.shape[-2:])
    prepare = to_8bit if mode == "exact" else unit_range
    resized = resize(images, (height, width), antialias, prepare)
    top, left = (size - height) // 2, (size - width) // 2
    return normalise(F.pad(resized, (left, size - width - left, top, size - height - top)))


def levels(images: Tensor) -> Tensor:
    """Images in [0,1] as whole numbers 0..255 without graph; uint8 as it is."""
    return images if images.dtype == torch.uint8 else (images.detach().clamp(0, 1) * 255).round()


def unit_range(images: Tensor) -> Tensor:
    """uint8 levels as float32 in [0,1]; floating point as it is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def resize(
    images: Tensor,
    size: tuple[int, int],
    antialias: bool = True,
    prepare: Callable[[Tensor], Tensor] = unit_range,
) -> Tensor:
    """Bicubic resize to (H, W); with antialias PIL's kernel (a = -0.5), without it torch's (a = -0.75).

    prepare: what is done to the source's pixels first.
    """

    def interpolated(part: Tensor, target: tuple[int, int]) -> Tensor:
        if tuple(part.shape[-2:]) == target:
            return part
        return F.interpolate(part, target, mode="bicubic", align_corners=False, antialias=antialias)

    wide = _by_strips(images, lambda strip: interpolated(prepare(strip), (strip.shape[-2], size[1])))
    return interpolated(wide, size)


def resize_8bit(images: Tensor, size: tuple[int, int]) -> Tensor:
    """PIL's bicubic resize to (H, W) of the image as an 8-bit file, bit for bit; the gradient is that of `resize`."""
    wide = _by_strips(images, lambda strip: pil_bicubic(levels(strip), (strip.shape[-2], size[1])))
    exact = pil_bicubic(wide, size).to(unit_range(images[:, :, :1, :1]).dtype) / 255
    return straight_through(exact, resize(images, size)) if images.requires_grad else exact


def to_8bit(images: Tensor) -> Tensor:
    """Round to multiples of 1/255 within [0,1]; the gradient passes as if nothing had happened."""
    exact = levels(images).to(unit_range(images[:, :, :1, :1]).dtype) / 255
    return straight_through(exact, images) if images.requires_grad else exact


def _by_strips(images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of horizontal strips, put together again: a large picture needs no floating-point copy of itself."""
    rows = max(1, STRIP_BYTES // (images[..., :1, :].numel() * 4))
    return torch.cat([function(strip) for strip in images.split(rows, dim=-2)], dim=-2)


def straight_through(value: Tensor, path: Tensor) -> Tensor:
    """`value` in the forward pass, the gradient of `path` in the backward pass; both of one shape."""
    return value.detach() + (path - path.detach())


def centre_crop(images: Tensor, size: int, rounding: str) -> Tensor:
    """Central S x S window; offsets (edge - S) / 2 rounded half to even ("round") or down ("floor")."""
    top, left = ((edge - size) // 2 if rounding == "floor" else round((edge - size) / 2) for edge in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def normalise(images: Tensor) -> Tensor:
    """(x - MEAN) / STD per channel."""
    mean, std = (torch.tensor(values, dtype=images.dtype, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def preprocessing_bytes(height: int, width: int) -> int:
    """Working memory of preprocessing one float32 image of that size."""
    return 3 * height * width * 4 * 4
