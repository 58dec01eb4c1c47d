"""Rewards with known answers, for tests."""

import torch
from torch import Tensor

from reneg_core.rewards import Reward


class Curved(Reward):
    """A smooth reward that differs per prompt: minus the squared distance of the picture to a pattern of the prompt."""

    name = "curved"

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        rows = torch.linspace(0, 3, images.shape[-2], dtype=images.dtype, device=images.device)
        phase = torch.tensor([float(len(p)) for p in prompts], dtype=images.dtype, device=images.device)
        pattern = 0.5 + 0.4 * torch.sin(rows[None] + phase[:, None])
        return -10 * (images - pattern[:, None, :, None]).square().mean((1, 2, 3)) + images[:, 0].std((1, 2))


class Constant(Reward):
    """The same score for everything."""

    name = "constant"

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3)) * 0 + 1
