"""The ODE loop: Euler, which in this convention is deterministic DDIM, and DPM-Solver++(2M)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .guidance import Guidance
from .model import Conditioning, DiffusionModel, concat


@dataclass(frozen=True)
class State:
    """A point of the trajectory: ``x [B,C,h,w]`` before step ``index``; ``previous`` is the last step's x0 or None."""

    x: Tensor
    index: int = 0
    previous: Tensor | None = None


def euler(state: State, x0: Tensor, sigmas: Tensor) -> Tensor:
    """First-order step (Karras et al. 2022, algorithm 1 without churn; equals DDIM with eta 0)."""
    ratio = sigmas[state.index + 1] / sigmas[state.index]
    return torch.lerp(x0, state.x, ratio.item())


def dpmpp_2m(state: State, x0: Tensor, sigmas: Tensor) -> Tensor:
    """Second-order multistep step (DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095, algorithm 2)."""
    i, levels = state.index, sigmas.double()
    if state.previous is None or levels[i + 1] == 0:
        return euler(state, x0, sigmas)
    step = (levels[i] / levels[i + 1]).log()
    ratio = (levels[i - 1] / levels[i]).log() / step
    extrapolated = x0 + (x0 - state.previous) / (2 * ratio.item())
    return torch.lerp(extrapolated, state.x, (levels[i + 1] / levels[i]).item())


SOLVERS: dict[str, Callable[[State, Tensor, Tensor], Tensor]] = {"euler": euler, "ddim": euler, "dpmpp_2m": dpmpp_2m}


def solver_named(name: str) -> Callable[[State, Tensor, Tensor], Tensor]:
    """The step function called ``name``; ValueError lists what there is."""
    if name not in SOLVERS:
        raise ValueError(f"Got solver {name!r}, expected one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]


def advance(state: State, x0: Tensor, sigmas: Tensor, solver: str) -> State:
    """The state after one step towards ``x0 [B,C,h,w]``."""
    return State(solver_named(solver)(state, x0, sigmas), state.index + 1, x0)


def guided_denoise(
    model: DiffusionModel,
    x: Tensor,
    sigma: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    guidance: Guidance,
    progress: float = 0.0,
) -> Tensor:
    """Guided x0 ``[B,C,h,w]``: one pass where guidance is off, else both branches in one batch of 2B."""
    batch = x.shape[0]
    positive, negative = positive.expand(batch), negative.expand(batch)
    if not guidance.active(progress):
        return model.denoise(x, sigma, positive)
    if positive.tokens.shape[1] != negative.tokens.shape[1] or (positive.mask is None) != (negative.mask is None):
        return guidance.combine(model.denoise(x, sigma, positive), model.denoise(x, sigma, negative))
    both = model.denoise(torch.cat([x, x]), sigma, concat(positive, negative))
    return guidance.combine(*both.chunk(2))


def sample(
    model: DiffusionModel,
    positive: Conditioning,
    negative: Conditioning,
    noise: Tensor,
    sigmas: Tensor,
    guidance: Guidance | None = None,
    *,
    solver: str = "euler",
    gradient: bool = False,
    callback: Callable[[int, Tensor], Any] | None = None,
) -> Tensor:
    """Integrate the ODE from ``noise`` to latents ``[B,C,h,w]`` ready to decode.

    positive, negative: 1 or B rows; noise: standard normal ``[B,C,h,w]``; sigmas: ``[steps+1]`` descending;
    gradient: keep the graph through every step (off: nothing is recorded, whatever the inputs require);
    callback: called with (step index, x0) after each denoise.
    """
    guidance = guidance or Guidance()
    steps = len(sigmas) - 1
    with torch.set_grad_enabled(gradient):
        state = State(model.start(noise, sigmas[0]))
        for i in range(steps):
            x0 = guided_denoise(model, state.x, sigmas[i], positive, negative, guidance, i / steps)
            if callback:
                callback(i, x0)
            state = advance(state, x0, sigmas, solver)
        return model.finish(state.x, sigmas[-1])
