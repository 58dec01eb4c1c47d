"""A judge that only counts flaws: a small network, trained here from drawn pictures and used for nothing else.

The reward was climbed and the measure gives no names; this one names what it sees. It is trained on drawn pictures and
on what the world's autoencoder makes of them, and says how often it is right on pictures of the test combinations.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lab import world
from torch import Tensor, nn

from reneg_core.tiny.pictures import Pictures, draw
from reneg_core.tiny.world import FLAWS

STEPS, BATCH, SEED = 1200, 64, 7


class FlawCounter(nn.Sequential):
    """Pictures [B, 3, 32, 32] in [0, 1] to a logit for each flaw [B, F]."""

    def __init__(self, width: int = 48) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.GroupNorm(8, 2 * width), nn.SiLU(),
            nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(32 * width, 128), nn.SiLU(), nn.Linear(128, len(FLAWS)),
        )  # fmt: skip


@torch.no_grad()
def seen_through_the_autoencoder(pictures: Pictures) -> Tensor:
    """The pictures after encoding and decoding, [B, 3, 32, 32] in [0, 1]."""
    vae = world()[0].pipeline.vae
    latents = vae.encode(pictures.images * 2 - 1).latent_dist.mean
    return (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def train() -> tuple[FlawCounter, dict[str, Any]]:
    """The counter, and its share of right and wrong sightings per flaw on pictures of the test combinations."""
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    counter = FlawCounter()
    optimizer = torch.optim.AdamW(counter.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS)
    for step in range(STEPS):
        pictures = draw(BATCH, "train", generator)
        images = seen_through_the_autoencoder(pictures) if step % 2 else pictures.images
        loss = F.binary_cross_entropy_with_logits(counter(images), (pictures.strength > 0).float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return counter.eval().requires_grad_(False), _accuracy(counter, generator)


@torch.no_grad()
def _accuracy(counter: FlawCounter, generator: torch.Generator) -> dict[str, Any]:
    pictures = draw(2048, "test", generator)
    seen = torch.cat([counter(part) > 0 for part in seen_through_the_autoencoder(pictures).split(256)])
    there = pictures.strength > 0
    return {
        name: {
            "found": round(seen[there[:, i], i].float().mean().item(), 3),
            "false": round(seen[~there[:, i], i].float().mean().item(), 3),
        }
        for i, name in enumerate(FLAWS)
    }


@torch.no_grad()
def shares(counter: FlawCounter, images: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """For every mode the share of its pictures that shows each flaw, and the share that shows none."""
    found = {}
    for mode, pictures in images.items():
        seen = counter(pictures) > 0
        found[mode] = {name: round(seen[:, i].float().mean().item(), 3) for i, name in enumerate(FLAWS)}
        found[mode]["none of them"] = round((~seen).all(1).float().mean().item(), 3)
    return found
