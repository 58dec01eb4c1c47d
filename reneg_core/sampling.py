"""The ODE loop, guided, from noise to latents; how it goes is one :class:`~reneg_core.settings.Sampling`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .guidance import Guidance
from .model import Branch, Conditioning, DiffusionModel, concat
from .settings import NATIVE, SOLVER_WORDS, SPACINGS, Jitter, Sampling, Size
from .solvers import SOLVERS, State, advance, solver_named

__all__ = [
    "NATIVE",
    "SOLVERS",
    "SOLVER_WORDS",
    "SPACINGS",
    "Jitter",
    "Sampling",
    "Size",
    "State",
    "advance",
    "check_branches",
    "guided_denoise",
    "sample",
    "solver_named",
]


def guided_denoise(
    model: DiffusionModel,
    x: Tensor,
    sigma: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    guidance: Guidance,
    progress: float = 0.0,
) -> Tensor:
    """Guided x0 ``[B,C,h,w]`` at ``progress`` of the schedule (0 = first step, towards 1 = last).

    One pass where guidance is off, and where it acts in the attention; both branches in one batch of 2B, the negative's
    rows first, where they can be joined; one pass each where their token counts differ or only one has a mask.
    Errors: ValueError where only one branch has a pooled vector.
    """
    batch = x.shape[0]
    positive, negative = positive.expand(batch), negative.expand(batch)
    if not guidance.active(progress):
        return model.denoise(x, sigma, positive, (Branch.POSITIVE,))
    check_branches(positive, negative)
    if guidance.attention:
        return require_attention(model)(x, sigma, positive, negative, guidance.attention)
    if positive.tokens.shape[1] != negative.tokens.shape[1] or (positive.mask is None) != (negative.mask is None):
        x0_negative = model.denoise(x, sigma, negative, (Branch.NEGATIVE,))
        return guidance.combine(model.denoise(x, sigma, positive, (Branch.POSITIVE,)), x0_negative)
    both = model.denoise(
        torch.cat([x, x]), _twice(sigma), concat(negative, positive), (Branch.NEGATIVE, Branch.POSITIVE)
    )
    x0_negative, x0_positive = both.chunk(2)
    return guidance.combine(x0_positive, x0_negative)


def require_attention(model: DiffusionModel) -> Callable[..., Tensor]:
    """The model's pass with attention guidance, ``(x, sigma, positive, negative, strength) -> x0``.

    Errors: ValueError for a model that has none.
    """
    if not hasattr(model, "attended"):
        raise ValueError(
            f"Got attention guidance for {model.name}, whose attention cannot be guided here; expected a model with "
            "cross-attention (Stable Diffusion 1, 2, XL). Try a guidance scale above 1 instead."
        )
    return model.attended


def _twice(sigma: Tensor) -> Tensor:
    """A scalar level as it is, one level per row for both branches."""
    return sigma if sigma.ndim == 0 else torch.cat([sigma, sigma])


def check_branches(positive: Conditioning, negative: Conditioning) -> None:
    """Refuse a pooled vector that only one branch has: the other would be guided by something else (ValueError)."""
    if (positive.pooled is None) != (negative.pooled is None):
        having, lacking = ("negative", "positive") if positive.pooled is None else ("positive", "negative")
        raise ValueError(
            f"Got a pooled vector for the {having} and none for the {lacking}, expected both or neither. "
            "Try an embedding that was made for this model."
        )


def sample(
    model: DiffusionModel,
    positive: Conditioning,
    negative: Conditioning,
    noise: Tensor,
    sampling: Sampling,
    *,
    gradient: bool = False,
    callback: Callable[[int, Tensor], Any] | None = None,
) -> Tensor:
    """Integrate the ODE from ``noise`` to latents ``[B,C,h,w]`` ready to decode.

    positive, negative: 1 or B rows; noise: standard normal ``[B,C,h,w]``, which decides the size; sampling: solver,
    steps, spacing and guidance; gradient: keep the graph through every step (off: nothing is recorded, whatever the
    inputs require); callback: called with (step index, x0) after each denoise.
    """
    sigmas = model.sigmas(sampling)
    steps = len(sigmas) - 1
    with torch.set_grad_enabled(gradient):
        state = State(model.start(noise, sigmas[0]))
        for i in range(steps):
            x0 = guided_denoise(model, state.x, sigmas[i], positive, negative, sampling.guidance, i / steps)
            if callback:
                callback(i, x0)
            state = advance(state, x0, sigmas, sampling.solver)
        return model.finish(state.x, sigmas[-1])
