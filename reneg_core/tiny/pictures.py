"""Random pictures of the tiny world for training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reneg_core.tiny import prompts, world


@dataclass
class Pictures:
    """``images`` and their flawless ``clean`` versions, [B, 3, H, W] in [0, 1]; ``strength`` [B, F] as ``world.spoil``
    takes it; ``combinations`` int64 [B, 3]."""

    images: Tensor
    clean: Tensor
    strength: Tensor
    combinations: Tensor


def draw(count: int, split: str, generator: torch.Generator, weaken: bool = False) -> Pictures:
    """Draw random pictures of a split, careless ones among them, with ``weaken`` spoilt by any smaller amount."""
    every = prompts.combinations(split)
    chosen = every[torch.randint(len(every), (count,), generator=generator)]
    clean = world.render(world.place(chosen, generator))
    strength = world.sample_strength(count, world.CARELESS_SHARE, generator)
    if weaken:
        strength = strength * torch.rand(count, 1, generator=generator)
    return Pictures(world.spoil(clean, strength, generator), clean, strength, chosen)
