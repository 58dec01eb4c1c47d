"""The reward of the embedded tiny world: a small trained network for quality and agreement with the prompt."""

from os import PathLike
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from reneg_core.rewards.base import Reward
from reneg_core.tiny.prompts import named
from reneg_core.tiny.world import COLOUR_NAMES, IMAGE_SIZE, SHAPES

WEIGHTS = Path(__file__).parent.parent / "tiny" / "reward.safetensors"
AGREEMENT_WEIGHT = 0.2
_FLOOR = 0.02  # added to probabilities: a confident error costs at most log(0.02), and the gradient never vanishes


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


class RewardNetwork(nn.Module):
    """Images [B, 3, 32, 32] in [0, 1] to ``quality`` [B] and logits for shape [B, 6], colour and background [B, 8]."""

    def __init__(self, wide: int = 48, deep: int = 96) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, wide // 2, 3, padding=1), nn.SiLU(),
            nn.Conv2d(wide // 2, wide, 4, stride=2, padding=1), _Residual(wide),
            nn.Conv2d(wide, deep, 4, stride=2, padding=1), _Residual(deep),
            nn.GroupNorm(8, deep), nn.SiLU(),
        )  # fmt: skip
        outputs = 1 + len(SHAPES) + 2 * len(COLOUR_NAMES)
        self.head = nn.Sequential(nn.Linear(2 * deep, deep), nn.SiLU(), nn.Linear(deep, outputs))

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Quality and the three logits, see the class."""
        features = self.features(2 * images - 1)
        pooled = torch.cat([features.mean((2, 3)), features.std((2, 3))], dim=1)
        quality, *logits = self.head(pooled).split([1, len(SHAPES), len(COLOUR_NAMES), len(COLOUR_NAMES)], dim=1)
        return quality[:, 0], tuple(logits)


class TinyReward(Reward):
    """Quality plus a fifth of the agreement with what the prompt names, standardised over the world's own pictures.

    Agreement is the mean log-probability of the named shape, colour and background; words that the world does not
    know are passed over, and a prompt that names nothing scores quality only. Images of any size are resized to 32x32.
    """

    name = "tiny"
    options_for_loading: ClassVar[frozenset[str]] = frozenset({"weights"})

    def __init__(self, weights: str | PathLike | None = None) -> None:
        super().__init__()
        path = Path(weights or WEIGHTS)
        if not path.is_file():
            raise FileNotFoundError(
                f"no reward weights at {path}; expected reward.safetensors of the tiny world, "
                "train them with `python -m reneg_core.tiny.train --stage reward`"
            )
        state = {key: value.float() for key, value in load_file(path).items()}
        self.register_buffer("mean", state.pop("mean"))
        self.register_buffer("std", state.pop("std"))
        self.network = RewardNetwork()
        self.network.load_state_dict(state)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        images = images.to(self.mean.dtype)
        if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
        return (raw_score(self.network, images, prompts) - self.mean) / self.std


def raw_score(network: RewardNetwork, images: Tensor, prompts: list[str]) -> Tensor:
    """Quality plus weighted agreement [B], before standardising."""
    quality, logits = network(images)
    wanted = [named(prompt) for prompt in prompts]
    rows = [[item.shape, item.colour, item.background] for item in wanted]
    known = torch.tensor([[value is not None for value in row] for row in rows], device=images.device)
    index = torch.tensor([[value or 0 for value in row] for row in rows], device=images.device)
    chances = [(part.softmax(1).gather(1, index[:, i : i + 1]) + _FLOOR).log() for i, part in enumerate(logits)]
    agreement = (torch.cat(chances, dim=1) * known).sum(1) / known.sum(1).clamp_min(1)
    return quality + AGREEMENT_WEIGHT * agreement
