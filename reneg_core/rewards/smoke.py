"""Rewards without weights: for first runs, tests and demonstrations, not for judging pictures."""

import torch
from torch import Tensor

from reneg_core.rewards.base import Reward, Statistics

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Brightness(Reward):
    """Mean luma of the picture, in [0,1]."""

    name = "brightness"
    needs_prompt = False
    statistics = Statistics(0.5, 12**-0.5, "uniform distribution on [0,1]")

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return luma(images).mean((1, 2))


class Sharpness(Reward):
    """Mean absolute luma difference between neighbouring pixels, in [0,1]; blur lowers it, noise raises it."""

    name = "sharpness"
    needs_prompt = False

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        if min(images.shape[-2:]) < 2:
            raise ValueError(f"sharpness: got a {images.shape[-2]}x{images.shape[-1]} picture, expected at least 2x2")
        grey = luma(images)
        return (grey.diff(dim=1).abs().mean((1, 2)) + grey.diff(dim=2).abs().mean((1, 2))) / 2


def luma(images: Tensor) -> Tensor:
    """Luma [B,H,W] of RGB images [B,3,H,W]."""
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)
