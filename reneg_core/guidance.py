"""Classifier-free guidance and its refinements as pure functions of clean estimates."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TAU, ALPHA = 2.5, 0.5
"""Normalised attention guidance: how much longer a feature may become, and the share of the guided one."""


def cfg(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """``negative + scale * (positive - negative)`` on x0 ``[B,C,h,w]`` (Ho & Salimans 2022, arXiv 2207.12598).

    Scale 1 is the positive estimate alone. With a learned negative this is ReNeg's equation for the guided score.
    """
    return negative + scale * (positive - negative)


def rescale(guided: Tensor, positive: Tensor, amount: float) -> Tensor:
    """Give each guided x0 back the positive's standard deviation, blended by ``amount`` in [0,1]; 0 changes nothing.

    Lin et al. 2023, arXiv 2305.08891, section 3.4, applied to x0.
    """
    dims = tuple(range(1, guided.ndim))
    factor = positive.std(dims, keepdim=True) / guided.std(dims, keepdim=True).clamp_min(1e-8)
    return guided * (1 + amount * (factor - 1))


def strengthen(null: Tensor, negative: Tensor, strength: float) -> Tensor:
    """``null + strength * (negative - null)`` on tokens ``[B,L,D]``; 0 is the empty prompt, 1 the embedding."""
    return null + strength * (negative - null) if strength != 1 else negative


def attend(positive: Tensor, negative: Tensor, strength: float) -> Tensor:
    """Normalised attention guidance on what a cross-attention gives for one query and the two branches' tokens,
    ``[B,N,D]`` each (Chen et al. 2025, arXiv 2505.21179, section 4): extrapolate away from the negative, bring every
    feature back to at most ``TAU`` times the positive's L1 norm, blend with the positive by ``ALPHA``. Strength 0 is
    the positive but for rounding. Differentiable.
    """
    guided = positive + strength * (positive - negative)
    own, found = (features.abs().sum(-1, keepdim=True).clamp_min(1e-6) for features in (positive, guided))
    limited = guided * (torch.minimum(found, TAU * own) / found)
    return ALPHA * limited + (1 - ALPHA) * positive


@dataclass(frozen=True)
class Guidance:
    """How the two branches are joined.

    scale: guidance scale, 1 = off; start, end: the share of the schedule where guidance acts, 0 = pure noise,
    1 = clean picture (Kynkaanniemi et al. 2024, arXiv 2404.07724), neutral 0 and 1; rescale: 0 = off; attention:
    strength of normalised attention guidance (:func:`attend`) inside the cross-attentions of one pass, for models that
    are sampled at scale 1, 0 = off.
    """

    scale: float = 7.5
    start: float = 0.0
    end: float = 1.0
    rescale: float = 0.0
    attention: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.attention < math.inf:
            raise ValueError(f"Got attention guidance {self.attention}, expected a finite number of 0 (off) or more.")
        if self.attention and self.scale != 1:
            raise ValueError(
                f"Got attention guidance {self.attention:g} with the guidance scale {self.scale:g}, expected scale 1. "
                "Try one of the two."
            )
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"Got the guidance interval {self.start}..{self.end}, expected 0 <= start < end <= 1.")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"Got guidance rescale {self.rescale}, expected a number from 0 (off) to 1.")

    def active(self, progress: float) -> bool:
        """Whether the negative branch is needed at ``progress`` (0 = first step, towards 1 = last)."""
        return (self.scale != 1 or self.attention > 0) and (self.start <= progress < self.end)

    def combine(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Join the branches' x0 ``[B,C,h,w]``."""
        guided = cfg(positive, negative, self.scale)
        return rescale(guided, positive, self.rescale) if self.rescale else guided
