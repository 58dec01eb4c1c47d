"""The pictures of the tiny world: one coloured shape on a coloured background, and three ways to spoil it.

Shape legend: B pictures, H = W = ``IMAGE_SIZE`` pixels, 3 = RGB in [0, 1].
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 32
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "ring", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.14),
    "green": (0.10, 0.65, 0.22),
    "blue": (0.12, 0.28, 0.90),
    "yellow": (0.98, 0.86, 0.10),
    "purple": (0.58, 0.14, 0.72),
    "cyan": (0.12, 0.82, 0.88),
    "white": (0.97, 0.97, 0.97),
    "black": (0.04, 0.04, 0.04),
}
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
DEGRADATIONS: tuple[str, ...] = ("blurry", "noisy", "faded")

MAX_BLUR = 2.0  # pixels, standard deviation of the Gaussian
MAX_NOISE = 0.24  # standard deviation in units of the [0, 1] range
MAX_FADE = 0.70  # share of mid grey mixed in
GRAIN = 2  # pixels, distance between the noise's independent values
_CENTRE_JITTER, _RADIUS_RANGE = 3.0, (6.5, 10.0)  # pixels


@dataclass(frozen=True)
class Scenes:
    """A batch of pictures to draw. ``shape``, ``colour``, ``background``: int64 [B], indices into ``SHAPES`` and
    ``COLOUR_NAMES``; ``centre``: [B, 2] (x, y) and ``radius``: [B], float32, in pixels."""

    shape: Tensor
    colour: Tensor
    background: Tensor
    centre: Tensor
    radius: Tensor

    def __len__(self) -> int:
        return len(self.shape)


def palette() -> Tensor:
    """The colours of ``COLOUR_NAMES`` as float32 [8, 3] in [0, 1]."""
    return torch.tensor([COLOURS[name] for name in COLOUR_NAMES])


def place(combinations: Tensor, generator: torch.Generator) -> Scenes:
    """Put each (shape, colour, background) of ``combinations`` (int64 [B, 3]) at a random place and size."""
    count = len(combinations)
    low, high = _RADIUS_RANGE
    centre = IMAGE_SIZE / 2 + _CENTRE_JITTER * (2 * torch.rand(count, 2, generator=generator) - 1)
    radius = low + (high - low) * torch.rand(count, generator=generator)
    return Scenes(*combinations.unbind(1), centre, radius)


def shape_distance(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Signed distance (negative inside, in radii) from points (x, y), given in radii from the centre, to the edge."""
    if shape == "circle":
        return torch.hypot(x, y) - 1
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.85
    if shape == "triangle":
        slope = math.sqrt(0.8)
        return torch.maximum(y - 0.8, slope * x.abs() - math.sqrt(1 - slope**2) * (y + 1.1))
    if shape == "diamond":
        return (x.abs() + y.abs() - 1.1) * math.sqrt(0.5)
    if shape == "ring":
        return (torch.hypot(x, y) - 0.76).abs() - 0.26
    if shape == "cross":
        long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
        return torch.maximum(long - 1, short - 0.34)
    raise ValueError(f"unknown shape {shape!r}; the tiny world has {', '.join(SHAPES)}")


def coverage(shape: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Share of each pixel that the shape covers, float32 [B, H, W] in [0, 1] (anti-aliased over one pixel)."""
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    x = (axis[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (axis[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    x, y = torch.broadcast_tensors(x, y)
    covered = torch.zeros(len(shape), IMAGE_SIZE, IMAGE_SIZE)
    for index, name in enumerate(SHAPES):
        rows = shape == index
        covered[rows] = (0.5 - shape_distance(name, x[rows], y[rows]) * radius[rows, None, None]).clamp(0, 1)
    return covered


def render(scenes: Scenes) -> Tensor:
    """Draw the scenes without any flaw: float32 [B, 3, H, W] in [0, 1]."""
    colours = palette()
    mask = coverage(scenes.shape, scenes.centre, scenes.radius)[:, None]
    front = colours[scenes.colour][:, :, None, None]
    back = colours[scenes.background][:, :, None, None]
    return mask * front + (1 - mask) * back


def _blur_matrix(sigma: Tensor) -> Tensor:
    """Row-normalised Gaussian filters [B, H, H] with standard deviations ``sigma`` [B] in pixels (0 = identity)."""
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32)
    squared = (axis[:, None] - axis[None, :]).square()
    weights = torch.exp(-squared / (2 * sigma.clamp_min(1e-3).square()[:, None, None]))
    return weights / weights.sum(-1, keepdim=True)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of ``images`` [B, C, H, W], one standard deviation per picture (``sigma`` [B], pixels)."""
    matrix = _blur_matrix(sigma)[:, None]
    return matrix @ images @ matrix.transpose(-1, -2)


def grain(count: int, generator: torch.Generator) -> Tensor:
    """Coarse film-like grain [B, 1, H, W] of unit standard deviation, the same in all channels."""
    size = IMAGE_SIZE // GRAIN
    noise = torch.randn(count, 1, size, size, generator=generator)
    noise = F.interpolate(noise, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def degrade(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, fade and roughen ``images`` [B, 3, H, W] by ``strength`` [B, 3] in [0, 1], columns as ``DEGRADATIONS``."""
    blurred = blur(images, MAX_BLUR * strength[:, 0])
    fade = MAX_FADE * strength[:, 2, None, None, None]
    faded = (1 - fade) * blurred + fade * 0.5
    noise = MAX_NOISE * strength[:, 1, None, None, None] * grain(len(images), generator)
    return (faded + noise).clamp(0, 1)


def sample_strength(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Random degradations [B, 3]: a picture is spoilt with probability ``share``, in one (55 %), two or three ways."""
    ways = torch.multinomial(torch.tensor([0.55, 0.30, 0.15]), count, replacement=True, generator=generator) + 1
    rank = torch.rand(count, len(DEGRADATIONS), generator=generator).argsort(1).argsort(1)
    spoilt = (torch.rand(count, generator=generator) < share)[:, None] & (rank < ways[:, None])
    return spoilt * (0.3 + 0.7 * torch.rand(count, len(DEGRADATIONS), generator=generator))
