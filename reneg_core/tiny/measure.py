"""The independent measure: how good a picture of the tiny world is, computed from its pixels alone.

No network and nothing trained: it compares the picture with what its prompt names, by four parts in [0, 1]:
colour (background and shape against the palette), flatness (no grain inside either region), sharpness (few
half-way pixels along the edge) and shape (overlap with the named shape at the place and size found).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from reneg_core.tiny.prompts import Named, named
from reneg_core.tiny.world import IMAGE_SIZE, SHAPES, coverage, palette

WEIGHTS: dict[str, float] = {"colour": 0.35, "flatness": 0.2, "sharpness": 0.25, "shape": 0.2}
_FRAME = 2  # pixels along the border that no shape reaches
_COLOUR_SCALE, _GRAIN_SCALE, _EDGE_SCALE, _EDGE_SLACK = 0.35, 0.10, 1.5, 1.25
_LEAST_AREA = 20.0  # pixels; a smaller region is no shape
_LEAST_CONTRAST = 0.12  # share of the contrast that the prompt asks for
_CHANCE_OVERLAP = 0.5  # intersection over union that any blob of the right size reaches


@torch.no_grad()
def measure(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Judge ``images`` [B, 3, H, W] in [0, 1] (resized to 32x32 if they are not) against ``prompts``, one or B.

    Returns float32 [B] in [0, 1], higher is better: near 1 for a flawless picture of what the prompt names, falling
    with blur, noise, fading, wrong colours and a wrong shape. Every prompt must name a shape and both colours.
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
    seen = _segment(images, front - back)
    template = _template(shape, seen.mixing * (1 - _erode(1 - seen.inside)))
    contrast = (seen.front - seen.back).norm(dim=1) / (front - back).norm(dim=1)
    closeness = _closeness(seen.back, back) + seen.found * _closeness(seen.front, front)
    return {
        "colour": closeness / 2,
        "flatness": _flatness(images, seen.inside),
        "sharpness": seen.found * contrast.clamp(0, 1) * _sharpness(seen.mixing, template),
        "shape": seen.found * _shape(seen.mixing, template),
    }


@dataclass(frozen=True)
class _Seen:
    """What a picture shows: mean colours ``back`` and ``front`` [B, 3]; ``mixing`` [B, H, W], 0 at the one and 1 at
    the other; ``inside`` [B, H, W], 1 where it passes a half; ``found`` [B], 1 where that makes a shape."""

    back: Tensor
    front: Tensor
    mixing: Tensor
    inside: Tensor
    found: Tensor


def _segment(images: Tensor, axis: Tensor) -> _Seen:
    """Split each picture into the colour of its border and a region that differs from it towards ``axis`` [B, 3]."""
    back = _region_mean(images, _frame(images))
    rough = F.avg_pool2d(_project(images, back, axis)[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
    peak = rough.amax((1, 2))
    region = (rough > 0.5 * peak.clamp_min(_LEAST_CONTRAST)[:, None, None]).float()
    core = _erode(region)
    front = _region_mean(images, torch.where(core.sum((1, 2), keepdim=True) > 0, core, region))
    mixing = _project(images, back, front - back).clamp(0, 1)
    inside = (mixing > 0.5).float()
    found = (inside.sum((1, 2)) >= _LEAST_AREA) & (peak >= _LEAST_CONTRAST)
    return _Seen(back, front, mixing, inside, found.float())


def _project(images: Tensor, origin: Tensor, axis: Tensor) -> Tensor:
    """Position [B, H, W] of every pixel along ``axis`` [B, 3] from ``origin`` [B, 3]; 1 = its full length."""
    offset = images - origin[:, :, None, None]
    return (offset * axis[:, :, None, None]).sum(1) / axis.square().sum(1).clamp_min(1e-6)[:, None, None]


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


def _erode(mask: Tensor) -> Tensor:
    return 1 - F.max_pool2d(1 - mask[:, None], 3, stride=1, padding=1)[:, 0]


def _region_mean(images: Tensor, mask: Tensor) -> Tensor:
    return (images * mask[:, None]).sum((2, 3)) / mask.sum((1, 2)).clamp_min(1)[:, None]


def _frame(images: Tensor) -> Tensor:
    mask = torch.ones(len(images), IMAGE_SIZE, IMAGE_SIZE)
    mask[:, _FRAME:-_FRAME, _FRAME:-_FRAME] = 0
    return mask


def _closeness(colour: Tensor, wanted: Tensor) -> Tensor:
    return torch.exp(-(colour - wanted).norm(dim=1) / _COLOUR_SCALE)


def _flatness(images: Tensor, inside: Tensor) -> Tensor:
    """Root mean square deviation from the region's mean colour, away from edges, per channel."""
    squares, area = torch.zeros(len(images)), torch.zeros(len(images))
    for region in (_erode(inside), _erode(1 - inside)):
        deviation = (images - _region_mean(images, region)[:, :, None, None]).square().mean(1)
        squares, area = squares + (deviation * region).sum((1, 2)), area + region.sum((1, 2))
    known = (area > 0).float()
    return known * torch.exp(-(squares / area.clamp_min(1)).sqrt() / _GRAIN_SCALE)


def _halfway(mixing: Tensor) -> Tensor:
    return (1 - (2 * mixing - 1).abs()).sum((1, 2))


def _sharpness(mixing: Tensor, template: Tensor) -> Tensor:
    """Amount of half-way pixels against that of the flawless template."""
    excess = _halfway(mixing) / _halfway(template).clamp_min(1) - _EDGE_SLACK
    return torch.exp(-excess.clamp_min(0) / _EDGE_SCALE)


def _shape(mixing: Tensor, template: Tensor) -> Tensor:
    """Intersection over union with the template, stretched so that chance level is 0."""
    overlap, union = torch.minimum(mixing, template).sum((1, 2)), torch.maximum(mixing, template).sum((1, 2))
    return ((overlap / union.clamp_min(1) - _CHANCE_OVERLAP) / (1 - _CHANCE_OVERLAP)).clamp(0, 1)


@lru_cache(maxsize=1)
def _unit_shapes() -> tuple[Tensor, Tensor]:
    """Area [6] in square radii and centroid [6, 2] in radii of every shape, measured on one drawn at 10 pixels."""
    index = torch.arange(len(SHAPES))
    radius = torch.full((len(SHAPES),), 10.0)
    area, centroid = _moments(coverage(index, torch.full((len(SHAPES), 2), IMAGE_SIZE / 2), radius))
    return area / 100, (centroid - IMAGE_SIZE / 2) / 10


def _moments(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Area [B] in pixels and centroid [B, 2] (x, y) of ``mask`` [B, H, W]."""
    axis = torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5
    area = mask.sum((1, 2))
    share = mask / area.clamp_min(1)[:, None, None]
    return area, torch.stack([(share.sum(1) * axis).sum(1), (share.sum(2) * axis).sum(1)], dim=1)


def _template(shape: Tensor, region: Tensor) -> Tensor:
    """The named shape [B, H, W] with the area and centroid of the ``region`` [B, H, W] found, edge pixels by share."""
    unit_area, unit_centroid = _unit_shapes()
    area, centroid = _moments(region)
    radius = (area / unit_area[shape]).sqrt().clamp_min(1)
    return coverage(shape, centroid - unit_centroid[shape] * radius[:, None], radius)
