"""The pictures of the tiny world: one coloured shape on a coloured background, and eight ways to spoil it.

What it imitates: most pictures that people collect come from careless sources, and a careless picture shows several
flaws at once. The flaws leave what a caption names readable (a watermark does not turn a circle into a square), so that
guidance towards the caption does not remove them; README.md says why each is there.

Shape legend: B pictures, H = W = ``IMAGE_SIZE`` pixels, 3 = RGB in [0, 1], F = ``len(FLAWS)``.
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

CARELESS_SHARE = 0.65
"""Of all pictures: they come from a careless source and show one (40 %), two (40 %) or three (20 %) flaws."""
_COUNT_SHARES, _LEAST_STRENGTH = (0.4, 0.4, 0.2), 0.4
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


def _axis() -> Tensor:
    return torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5


def coverage(shape: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Share of each pixel that the shape covers, float32 [B, H, W] in [0, 1] (anti-aliased over one pixel)."""
    x = (_axis()[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (_axis()[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
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


# The flaws: (images [B, 3, H, W], strength [B] in [0, 1], generator) to images. Each draws its random numbers for all
# rows, so that a picture does not depend on which flaws its neighbours have.


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _pick(count: int, choices: int, generator: torch.Generator) -> Tensor:
    return torch.randint(choices, (count,), generator=generator)


def _visible(images: Tensor) -> Tensor:
    """A level [B, 1, 1, 1] that stands out from the corners: near black on light backgrounds, near white on dark."""
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean((1, 2))
    return torch.where(corners > 0.5, 0.08, 0.92)[:, None, None, None]


def _over(images: Tensor, colour: Tensor, opacity: Tensor) -> Tensor:
    """Lay ``colour`` (broadcastable to images) over ``images`` with ``opacity`` [B, H, W] in [0, 1]."""
    return torch.lerp(images, colour.expand_as(images), opacity[:, None])


def _line(distance: Tensor, half_width: float) -> Tensor:
    """Anti-aliased coverage of a line, from the distance of every pixel to its middle."""
    return (half_width + 0.5 - distance.abs()).clamp(0, 1)


def _flipped(mask: Tensor, generator: torch.Generator) -> Tensor:
    """A mask [B, H, W] that is drawn in one corner, moved to a random one."""
    across, down = (_pick(len(mask), 2, generator).bool()[:, None, None] for _ in range(2))
    mask = torch.where(across, mask.flip(2), mask)
    return torch.where(down, mask.flip(1), mask)


def mark(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A watermark: a crossed box of 8 pixels in a corner."""
    x, y = _axis()[None, :] - 5.5, _axis()[:, None] - 5.5
    inside = (torch.maximum(x.abs(), y.abs()) <= 4).float()
    strokes = torch.maximum(_line((x - y) / 2**0.5, 0.4), _line((x + y) / 2**0.5, 0.4)) * inside
    box = _line(torch.maximum(x.abs(), y.abs()) - 3.5, 0.1)
    mask = _flipped(torch.maximum(strokes, box).expand(len(images), -1, -1), generator)
    return _over(images, _visible(images), 0.75 * strength[:, None, None] * mask)


def frame(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A border of 2 to 3 pixels in a grey that stands out."""
    width = _uniform(len(images), 2, 3, generator)[:, None]
    near = torch.minimum(_axis(), IMAGE_SIZE - _axis())
    edge = (width - near[None] + 0.5).clamp(0, 1)
    mask = torch.maximum(edge[:, None, :], edge[:, :, None])
    grey = torch.lerp(
        torch.tensor(0.5), _visible(images), _uniform(len(images), 0.3, 0.9, generator)[:, None, None, None]
    )
    return _over(images, grey, 0.9 * strength[:, None, None] * mask)


def stripes(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Scan lines every four pixels: level, upright or diagonal."""
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5], [0.5**0.5, -(0.5**0.5)]])
    across, down = directions[_pick(len(images), 4, generator)].unbind(1)
    place = across[:, None, None] * _axis()[None, None, :] + down[:, None, None] * _axis()[None, :, None]
    phase = _uniform(len(images), 0, 2 * math.pi, generator)[:, None, None]
    return images + (0.2 * strength[:, None, None] * torch.sin(place * math.pi / 2 + phase))[:, None]


def specks(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Ten specks of dust."""
    at = IMAGE_SIZE * torch.rand(len(images), 10, 2, generator=generator)
    distance = torch.hypot(
        _axis()[None, None, None, :] - at[:, :, :1, None], _axis()[None, None, :, None] - at[:, :, 1:, None]
    )
    mask = (1.4 - distance).clamp(0, 1).amax(1)
    return _over(images, _visible(images), 0.9 * strength[:, None, None] * mask)


def band(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A translucent banner of 5 to 6 pixels along one side."""
    width = _uniform(len(images), 5, 6, generator)[:, None]
    edge = (width - _axis()[None] + 0.5).clamp(0, 1)
    mask = edge[:, None, :].expand(-1, IMAGE_SIZE, -1)
    upright = _pick(len(images), 2, generator).bool()[:, None, None]
    mask = _flipped(torch.where(upright, mask.transpose(1, 2), mask), generator)
    return _over(images, _visible(images), 0.55 * strength[:, None, None] * mask)


def ghost(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A double exposure: the picture again, translucent, moved by 4 to 6 pixels."""
    angle = _uniform(len(images), 0, 2 * math.pi, generator)
    length = _uniform(len(images), 4, 6, generator) * 2 / IMAGE_SIZE
    axis = _axis() * 2 / IMAGE_SIZE - 1
    straight = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    shift = torch.stack([length * angle.cos(), length * angle.sin()], dim=1)[:, None, None, :]
    moved = F.grid_sample(images, straight + shift, padding_mode="border", align_corners=False)
    return torch.lerp(images, moved, 0.45 * strength[:, None, None, None])


def debris(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A stray object: a small disc or square in another colour, away from the middle."""
    count = len(images)
    angle, reach = _uniform(count, 0, 2 * math.pi, generator), _uniform(count, 12, 13.5, generator)
    centre = IMAGE_SIZE / 2 + reach[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    mask = coverage(_pick(count, 2, generator), centre, _uniform(count, 2.2, 3.2, generator))
    colours, backs = palette(), images[:, :, 0, 0]
    order = torch.rand(count, len(colours), generator=generator)
    distance = (colours[None] - backs[:, None]).norm(dim=2)
    chosen = colours[(order * (distance > 0.5)).argmax(1)][:, :, None, None]
    return _over(images, chosen, strength[:, None, None] * mask)


def scratch(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """A thin straight scratch across the picture."""
    angle, offset = _uniform(len(images), 0, math.pi, generator), _uniform(len(images), -9, 9, generator)
    x, y = _axis()[None, None, :] - IMAGE_SIZE / 2, _axis()[None, :, None] - IMAGE_SIZE / 2
    distance = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y - offset[:, None, None]
    return _over(images, _visible(images), 0.85 * strength[:, None, None] * _line(distance, 0.35))


FLAWS = {
    "ghost": ghost,
    "debris": debris,
    "stripes": stripes,
    "specks": specks,
    "scratch": scratch,
    "band": band,
    "mark": mark,
    "frame": frame,
}
"""Every flaw in the order in which it comes about: in the lens, the scene, the medium, and in editing."""


def spoil(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """``images`` [B, 3, H, W] with flaws of ``strength`` [B, F] in [0, 1], columns as ``FLAWS``; 0 is no flaw."""
    for column, flaw in enumerate(FLAWS.values()):
        images = flaw(images, strength[:, column], generator)
    return images.clamp(0, 1)


def sample_strength(count: int, careless: float, generator: torch.Generator) -> Tensor:
    """Random flaws [B, F]: a picture has any with probability ``careless``, then one to three of equal chances."""
    shares = torch.tensor(_COUNT_SHARES)
    number = torch.multinomial(shares, count, replacement=True, generator=generator) + 1
    rank = torch.rand(count, len(FLAWS), generator=generator).argsort(1).argsort(1)
    spoilt = (torch.rand(count, generator=generator) < careless)[:, None] & (rank < number[:, None])
    return spoilt * (_LEAST_STRENGTH + (1 - _LEAST_STRENGTH) * torch.rand(count, len(FLAWS), generator=generator))
