"""The independent measure: how good a picture of the tiny world is, computed from its pixels alone.

No network and nothing trained. The flawless picture that fits best is sought over places and sizes of the named shape;
four parts in [0, 1] then compare with it: colour (background and shape against the palette), cleanness (nothing stray
in either region), sharpness (few half-way pixels along the edge) and shape (overlap).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from reneg_core.tiny.prompts import Named, named
from reneg_core.tiny.world import IMAGE_SIZE, SHAPES, coverage, palette

WEIGHTS: dict[str, float] = {"colour": 0.2, "cleanness": 0.4, "sharpness": 0.2, "shape": 0.2}
_COLOUR_SCALE, _STRAY_SCALE, _STRAY_SLACK, _EDGE_SCALE, _EDGE_SLACK = 0.35, 0.10, 0.02, 1.5, 1.25
_LEAST_CONTRAST = 0.12  # share of the contrast that the prompt asks for, under which nothing is seen
_CHANCE_OVERLAP = 0.5  # intersection over union that any blob of the right size reaches
_NEAR = 3  # pixels around the shape within which its edge is judged


@torch.no_grad()
def measure(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Judge ``images`` [B, 3, H, W] in [0, 1] (resized to 32x32 if they are not) against ``prompts``, one or B.

    Returns float32 [B] in [0, 1], higher is better: near 1 for a flawless picture of what the prompt names, falling
    with everything stray, wrong colours, soft edges and a wrong shape. Every prompt must name a shape and both colours.
    Raises ``ValueError`` otherwise.
    """
    return sum(WEIGHTS[name] * part for name, part in measure_parts(images, prompts).items())


@torch.no_grad()
def measure_parts(images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """The parts of ``measure``, each float32 [B] in [0, 1], before weighting."""
    images, wanted = _check(images, prompts)
    colours = palette()
    front = colours[torch.tensor([item.colour for item in wanted])]
    back = colours[torch.tensor([item.background for item in wanted])]
    shape = torch.tensor([item.shape for item in wanted])
    seen = _look(images, front, back, shape)
    contrast = (seen.front - seen.back).norm(dim=1) / (front - back).norm(dim=1)
    found = (contrast >= _LEAST_CONTRAST).float()
    near = F.max_pool2d((seen.template > 0).float()[:, None], 2 * _NEAR + 1, stride=1, padding=_NEAR)[:, 0]
    closeness = _closeness(seen.back, back) + found * _closeness(seen.front, front)
    return {
        "colour": closeness / 2,
        "cleanness": _cleanness(images, seen),
        "sharpness": found * contrast.clamp(0, 1) * _sharpness(seen.mixing * near, seen.template),
        "shape": found * _overlap(seen.mixing * near, seen.template),
    }


@dataclass(frozen=True)
class _Seen:
    """What a picture shows: median colours ``back`` and ``front`` [B, 3] of the two regions of ``template`` [B, H, W],
    the flawless shape that fits best; ``mixing`` [B, H, W], 0 at the one colour and 1 at the other."""

    back: Tensor
    front: Tensor
    template: Tensor
    mixing: Tensor


def _look(images: Tensor, front: Tensor, back: Tensor, shape: Tensor) -> _Seen:
    """Fit roughly with the colours that the prompt names, then closely with those found there."""
    rough = _drawn(shape, _fit(_mixing(images, back, front), shape))
    back, front = _region_median(images, _core(1 - rough)), _region_median(images, _core(rough))
    mixing = _mixing(images, back, front)
    template = _drawn(shape, _refined(_fit(mixing, shape), mixing, shape))
    back, front = _region_median(images, _core(1 - template)), _region_median(images, _core(template))
    return _Seen(back, front, template, _mixing(images, back, front))


def _mixing(images: Tensor, back: Tensor, front: Tensor) -> Tensor:
    """Position [B, H, W] of every pixel from ``back`` (0) to ``front`` (1), both [B, 3], cut to [0, 1]."""
    offset, axis = images - back[:, :, None, None], front - back
    along = (offset * axis[:, :, None, None]).sum(1) / axis.square().sum(1).clamp_min(1e-6)[:, None, None]
    return along.clamp(0, 1)


@lru_cache(maxsize=len(SHAPES))
def _grid(shape: int) -> tuple[Tensor, Tensor]:
    """Centres and radii [N, 3] (x, y, radius, pixels) around those that the world draws, and the shape drawn there
    [N, H, W]."""
    places, radii = torch.arange(-4.0, 4.1) + IMAGE_SIZE / 2, torch.arange(5.5, 11.1, 0.5)
    outlines = torch.cartesian_prod(places, places, radii)
    return outlines, _drawn(torch.full((len(outlines),), shape), outlines)


def _drawn(shape: Tensor, outlines: Tensor) -> Tensor:
    return coverage(shape, outlines[:, :2], outlines[:, 2])


def _fit(mixing: Tensor, shape: Tensor) -> Tensor:
    """Centre and radius [B, 3] on the grid at which each named shape has the least squared difference from ``mixing``
    [B, H, W]."""
    best = torch.empty(len(mixing), 3)
    for index in shape.unique().tolist():
        rows, (outlines, drawn) = shape == index, _grid(index)
        distance = drawn.square().sum((1, 2)) - 2 * mixing[rows].flatten(1) @ drawn.flatten(1).T
        best[rows] = outlines[distance.argmin(1)]
    return best


def _refined(outlines: Tensor, mixing: Tensor, shape: Tensor) -> Tensor:
    """``outlines`` [B, 3] moved to the best neighbour along one of the three axes, by ever smaller steps."""
    moves = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)])
    for step in (0.5, 0.25, 0.25, 0.12, 0.12, 0.06):
        tried = (outlines[:, None] + step * moves).flatten(0, 1)
        drawn = _drawn(shape.repeat_interleave(len(moves)), tried).unflatten(0, (-1, len(moves)))
        chosen = (drawn - mixing[:, None]).square().sum((2, 3)).argmin(1)
        outlines = tried.unflatten(0, (-1, len(moves)))[torch.arange(len(outlines)), chosen]
    return outlines


def _check(images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, list[Named]]:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected [B, 3, H, W]")
    if isinstance(prompts, str) or len(prompts) not in (1, len(images)):
        got = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"got {got} for {len(images)} images; expected a list of 1 or {len(images)} prompts")
    wanted = [named(prompt) for prompt in prompts]
    for prompt, item in zip(prompts, wanted, strict=True):
        if None in (item.shape, item.colour, item.background):
            raise ValueError(
                f"prompt {prompt!r} names no complete picture; expected a shape, its colour and a background, "
                "such as 'a red circle on a blue background'"
            )
    images = images.detach().float().cpu()
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
    return images, wanted * len(images) if len(wanted) == 1 else wanted


def _core(mask: Tensor) -> Tensor:
    """1 where ``mask`` [B, H, W] and all its neighbours are 1, else 0; of a region too thin for that its fullest
    pixels."""
    deep = (F.max_pool2d(1 - mask[:, None], 3, stride=1, padding=1)[:, 0] <= 0).float()
    full = (mask >= mask.amax((1, 2), keepdim=True)).float()
    return torch.where(deep.sum((1, 2), keepdim=True) > 0, deep, full)


def _region_median(images: Tensor, mask: Tensor) -> Tensor:
    """Median colour [B, 3] of the pixels where ``mask`` [B, H, W] is 1; black where there are none."""
    values = torch.where(mask[:, None] > 0, images, torch.nan).flatten(2)
    return values.nanmedian(2).values.nan_to_num(0.0)


def _closeness(colour: Tensor, wanted: Tensor) -> Tensor:
    return torch.exp(-(colour - wanted).norm(dim=1) / _COLOUR_SCALE)


def _cleanness(images: Tensor, seen: _Seen) -> Tensor:
    """Root mean square deviation of a channel from the region's median colour, away from the shape's edge."""
    squares, area = torch.zeros(len(images)), torch.zeros(len(images))
    for region, colour in ((_core(seen.template), seen.front), (_core(1 - seen.template), seen.back)):
        deviation = (images - colour[:, :, None, None]).square().mean(1)
        squares, area = squares + (deviation * region).sum((1, 2)), area + region.sum((1, 2))
    stray = (squares / area.clamp_min(1)).sqrt() - _STRAY_SLACK
    return torch.exp(-stray.clamp_min(0) / _STRAY_SCALE)


def _halfway(mixing: Tensor) -> Tensor:
    return (1 - (2 * mixing - 1).abs()).sum((1, 2))


def _sharpness(mixing: Tensor, template: Tensor) -> Tensor:
    """Amount of half-way pixels against that of the flawless template."""
    excess = _halfway(mixing) / _halfway(template).clamp_min(1) - _EDGE_SLACK
    return torch.exp(-excess.clamp_min(0) / _EDGE_SCALE)


def _overlap(mixing: Tensor, template: Tensor) -> Tensor:
    """Intersection over union with the template, stretched so that chance level is 0."""
    overlap, union = torch.minimum(mixing, template).sum((1, 2)), torch.maximum(mixing, template).sum((1, 2))
    return ((overlap / union.clamp_min(1) - _CHANCE_OVERLAP) / (1 - _CHANCE_OVERLAP)).clamp(0, 1)
