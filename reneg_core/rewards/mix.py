"""Weighted mixes of rewards, each part standardised so that the weights compare like with like."""

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from reneg_core.rewards.base import Reward, Statistics
from reneg_core.rewards.clip_reward import ClipImageReward
from reneg_core.rewards.pixels import Pixels

NORMALISE = ("zscore", "none")


class RewardMix(Reward):
    """sum_i weight_i * (score_i - mean_i) / std_i over its parts; `normalise="none"` leaves the scores as they are.

    parts: rewards by name, weights: a finite number per name (negative to push a score down).
    statistics: replaces a part's own `Reward.statistics` by name, e.g. ones measured with `measure_statistics`.
    Parts that read the same features of the same image tower compute them once.
    """

    name = "mix"

    def __init__(
        self,
        parts: Mapping[str, Reward],
        weights: Mapping[str, float],
        *,
        normalise: str = "zscore",
        statistics: Mapping[str, Statistics] | None = None,
    ) -> None:
        super().__init__()
        _check_mix(parts, weights, normalise, statistics or {})
        self.parts = nn.ModuleList(parts.values())
        self.weights = {name: float(weights[name]) for name in parts}
        own = {name: part.statistics for name, part in parts.items()} | dict(statistics or {})
        self.part_statistics = own if normalise == "zscore" else dict.fromkeys(parts, Statistics(0.0, 1.0, "none"))
        self.name = " + ".join(f"{name}*{weight:g}" for name, weight in self.weights.items())
        self.differentiable = all(part.differentiable for part in parts.values())
        self.needs_prompt = any(part.needs_prompt for part in parts.values())
        self.memory_budget = min(part.memory_budget for part in parts.values())

    def named_parts(self) -> dict[str, Reward]:
        """The parts by the name they were mixed under."""
        return dict(zip(self.weights, self.parts, strict=True))

    def preprocess(self, images: Tensor) -> dict[Hashable, Pixels]:
        """What each part looks at, once for parts that look at the same features."""
        return {key: part.preprocess(images) for key, part in self._looks().items()}

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        flags = [part.truncated(prompts) for part in self.parts]
        return [any(column) for column in zip(*flags, strict=True)]

    def columns(self) -> list[str]:
        return [self.name, *self.weights]

    def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
        return sum(part.bytes_per_image(height, width, gradient) for part in self._looks().values())

    def _looks(self) -> dict[Hashable, Reward]:
        """For each different way of looking at the pictures, a part that looks so."""
        return {_key(name, part): part for name, part in reversed(self.named_parts().items())}

    def _score(self, pixels: dict[Hashable, Pixels], prompts: list[str]) -> Tensor:
        return self._combined(self._parts(pixels, prompts))

    def _parts(self, pixels: dict[Hashable, Pixels], prompts: list[str]) -> dict[str, Tensor]:
        features: dict[Hashable, Tensor] = {}
        scores = {}
        for name, part in self.named_parts().items():
            key = _key(name, part)
            if not isinstance(part, ClipImageReward):
                raw = part.score_pixels(pixels[key], prompts)
            else:
                if key not in features:
                    features[key] = part.features(pixels[key])
                raw = part.score_features(features[key], prompts)
            scores[name] = part.checked(raw, len(prompts))
        return scores

    def _combined(self, parts: dict[str, Tensor]) -> Tensor:
        total = 0.0
        for name, scores in parts.items():
            stats = self.part_statistics[name]
            total = total + self.weights[name] * (scores - stats.mean) / stats.std
        return total


def _key(name: str, part: Reward) -> Hashable:
    return part.feature_key if isinstance(part, ClipImageReward) else name


def measure_statistics(reward: Reward, images: Tensor, prompts: Sequence[str], source: str) -> Statistics:
    """Mean and standard deviation of `reward` on images [B,3,H,W], B >= 2; `source` says on what they were measured."""
    if len(images) < 2:
        raise ValueError(f"statistics need at least 2 images, got {len(images)}")
    with torch.no_grad():
        scores = reward.score(images, prompts).double()
    return statistics_of(scores.tolist(), source)


def statistics_of(scores: Sequence[float], source: str) -> Statistics:
    """Mean and sample standard deviation of at least two unequal scores."""
    values = torch.tensor(scores, dtype=torch.float64)
    std = float(values.std()) if len(values) > 1 else 0.0
    if std == 0.0:
        raise ValueError(f"got {len(values)} scores without spread; statistics need at least 2 different ones")
    return Statistics(float(values.mean()), std, source)


def _check_mix(
    parts: Mapping[str, Reward], weights: Mapping[str, float], normalise: str, statistics: Mapping[str, Statistics]
) -> None:
    if not parts:
        raise ValueError("a mix needs at least one part, e.g. 'hpsv2.1*1.0 + image_reward*0.5'")
    if set(parts) != set(weights):
        raise ValueError(f"mix parts {sorted(parts)} and weights {sorted(weights)} name different rewards")
    bad = [name for name, weight in weights.items() if not math.isfinite(weight)]
    if bad:
        raise ValueError(f"mix weight of {bad[0]!r} is {weights[bad[0]]}, expected a finite number")
    if normalise not in NORMALISE:
        raise ValueError(f"normalise: got {normalise!r}, expected one of {', '.join(NORMALISE)}")
    unknown = sorted(set(statistics) - set(parts))
    if unknown:
        raise ValueError(f"statistics for {unknown[0]!r}, which is not in the mix of {', '.join(parts)}")
    flat = [name for name, stats in statistics.items() if not stats.std > 0]
    if flat:
        raise ValueError(f"statistics of {flat[0]!r}: std is {statistics[flat[0]].std}, expected > 0")
