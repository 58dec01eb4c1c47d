"""Weighted mixes of rewards, each part standardised so that the weights compare like with like."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reneg_core.rewards.base import Reward, ScoreDetails, Statistics

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
        self.needs_prompt = any(part.needs_prompt for part in parts.values())

    def named_parts(self) -> dict[str, Reward]:
        """The parts by the name they were mixed under."""
        return dict(zip(self.weights, self.parts, strict=True))

    def details(self, images: Tensor, prompts: Sequence[str] = ()) -> ScoreDetails:
        """The weighted sum, the raw scores of the parts, and whether any part cut the prompt."""
        images, texts = self._validated(images, prompts)
        parts = self._raw(images, texts)
        return ScoreDetails(self._combine(parts), parts, self.truncated(texts))

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        flags = [part.truncated(prompts) for part in self.parts]
        return [any(column) for column in zip(*flags, strict=True)]

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self._combine(self._raw(images, prompts))

    def _raw(self, images: Tensor, prompts: list[str]) -> dict[str, Tensor]:
        """Raw scores [B] by part; image features that parts share are computed once."""
        features: dict[object, Tensor] = {}
        scores = {}
        for name, part in self.named_parts().items():
            key = getattr(part, "feature_key", None)
            if key is None:
                scores[name] = part.score(images, prompts)
                continue
            if key not in features:
                features[key] = part.image_features(images)
            scores[name] = part.score_features(features[key], prompts)
        return scores

    def _combine(self, parts: dict[str, Tensor]) -> Tensor:
        total = 0.0
        for name, scores in parts.items():
            stats = self.part_statistics[name]
            total = total + self.weights[name] * (scores - stats.mean) / stats.std
        return total


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
