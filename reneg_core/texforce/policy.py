"""The stochastic sampler as a policy: each step draws the next state from a Gaussian, whose density is known.

DDIM with eta 1 (Song et al. 2021, arXiv 2010.02502, equation 16) is, in the variance-preserving state
``y = sqrt(a) x`` with ``a = 1 / (1 + sigma^2)``,

    y' = sqrt(a') x0 + sqrt(1 - a' - s^2) eps + s z,    s^2 = (1 - a') / (1 - a) * (1 - a / a').

Divided by ``sqrt(a')``, and with ``eps = (x - x0) / sigma``, ``1 - a / a' = (sigma^2 - sigma'^2) / (1 + sigma^2)`` and
``1 - a = sigma^2 / (1 + sigma^2)``, it is a Gaussian in the state ``x = x0 + sigma eps`` of this core:

    std^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2
    mean  = x0 + sqrt(sigma'^2 - std^2) eps = x0 + (sigma' / sigma)^2 (x - x0),

the posterior of ``x'`` given ``x`` and ``x0``, and the ancestral step of k-diffusion. Both states differ by a factor
that no parameter enters, so that log-probabilities differ by a constant, and ratios of probabilities not at all.
"""

import math

import torch
from torch import Tensor


def transition(x: Tensor, x0: Tensor, sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[B,C,h,w]`` and standard deviation (shaped as ``sigma``) of the state at level ``following``, given the
    state ``x`` at ``sigma`` and its clean estimate ``x0 [B,C,h,w]``; levels: scalars or ``[B]``, ``following < sigma``.
    """
    ratio = (following / sigma).double()
    std = following * (1 - ratio**2).clamp_min(0).sqrt()
    return torch.lerp(x0, x, _rows(ratio**2, x)), std.to(sigma.dtype)


def log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Exact log-density ``[B]``, float64, of ``value [B,C,h,w]`` under independent Gaussians; std: a scalar or ``[B]``,
    above 0. Differentiable by ``mean``."""
    spread = std.to(value.device).double()
    squares = ((value.double() - mean.double()) / _rows(spread, value, torch.float64)).square().flatten(1).sum(1)
    count = value[0].numel()
    return -0.5 * squares - count * (spread.log() + 0.5 * math.log(2 * math.pi))


def divergence(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``[B]`` of two such Gaussians with the same ``std``."""
    difference = (mean.double() - other.double()) / _rows(std.double(), mean, torch.float64)
    return 0.5 * difference.square().flatten(1).sum(1)


def stochastic_steps(sigmas: Tensor) -> int:
    """How many of a schedule's steps draw noise: all but the one that ends at level 0."""
    return int((sigmas[1:] > 0).sum())


def _rows(levels: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A scalar or one level per row, to be multiplied with ``x``."""
    return levels.to(x.device, dtype or x.dtype).reshape(-1, *[1] * (x.ndim - 1))
