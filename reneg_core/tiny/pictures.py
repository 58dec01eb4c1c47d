"""Random pictures of the tiny world for training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reneg_core.tiny import prompts, world

SPOILT_SHARE = 0.55  # of the pictures that the autoencoder and the UNet see


@dataclass
class Pictures:
    """``images`` and their flawless ``clean`` versions, [B, 3, H, W] in [0, 1]; ``strength`` [B, 3] as ``degrade``
    takes it; ``combinations`` int64 [B, 3]."""

    images: Tensor
    clean: Tensor
    strength: Tensor
    combinations: Tensor


def draw(count: int, split: str, spoilt: float, generator: torch.Generator, weaken: bool = False) -> Pictures:
    """Draw random pictures of a split, a share ``spoilt`` of them degraded, with ``weaken`` by any smaller amount."""
    every = prompts.combinations(split)
    chosen = every[torch.randint(len(every), (count,), generator=generator)]
    clean = world.render(world.place(chosen, generator))
    strength = world.sample_strength(count, spoilt, generator)
    if weaken:
        strength = strength * torch.rand(count, 1, generator=generator)
    return Pictures(world.degrade(clean, strength, generator), clean, strength, chosen)
