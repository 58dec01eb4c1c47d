"""The ODE loop: Euler, which in this convention is deterministic DDIM, and DPM-Solver++(2M)."""

import difflib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .guidance import Guidance
from .model import Conditioning, DiffusionModel, concat
from .seeds import derive_seed

SPACINGS = ("model", "leading", "trailing", "karras")


@dataclass(frozen=True)
class Size:
    """A picture's height and width in pixels; None is the model's native side."""

    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: the one value that training, evaluation, files and nodes carry.

    solver: a name in ``SOLVERS``; steps: solver steps, 1 or more; spacing: where the noise levels lie, a name in
    ``SPACINGS`` ("model": as the model's own scheduler says); guidance: scale, interval, rescale; size: of the picture.
    Errors: ValueError with every fault.
    """

    solver: str = "euler"
    steps: int = 30
    spacing: str = "model"
    guidance: Guidance = Guidance()
    size: Size = Size()

    def __post_init__(self) -> None:
        faults = [
            f"Got {what} {got!r}, expected one of {', '.join(known)}."
            for what, got, known in (("solver", self.solver, SOLVERS), ("spacing", self.spacing, SPACINGS))
            if got not in known
        ]
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            faults.append(f"Got {self.steps!r} sampling steps, expected a whole number of 1 or more.")
        if faults:
            raise ValueError(" ".join(faults))

    def to_mapping(self) -> dict[str, Any]:
        """Flat plain values, as YAML and JSON hold them; :meth:`from_mapping` gives an equal value back."""
        return {
            "solver": self.solver,
            "steps": self.steps,
            "spacing": self.spacing,
            **{f"guidance_{field.name}": getattr(self.guidance, field.name) for field in fields(Guidance)},
            **{field.name: getattr(self.size, field.name) for field in fields(Size)},
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Sampling":
        """Build from the names of :meth:`to_mapping`; what is missing takes its default. ValueError for other names."""
        known = list(cls().to_mapping())
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}."
                raise ValueError(f"Got the unknown sampling setting {name!r}, {hint}")
        parts = {name: values[name] for name in ("solver", "steps", "spacing") if name in values}
        guidance = {f.name: values[f"guidance_{f.name}"] for f in fields(Guidance) if f"guidance_{f.name}" in values}
        size = {field.name: values[field.name] for field in fields(Size) if field.name in values}
        return cls(**parts, guidance=Guidance(**guidance), size=Size(**size))

    def describe(self) -> str:
        """In words: "10 Euler steps, trailing spacing, guidance scale 3"; neutral settings are left out."""
        guidance, size = self.guidance, self.size
        parts = [f"{self.steps} {SOLVER_WORDS[self.solver]} steps", f"{self.spacing} spacing"]
        parts.append(f"guidance scale {guidance.scale:g}")
        if (guidance.start, guidance.end) != (0, 1):
            parts.append(f"guidance from {guidance.start:g} to {guidance.end:g}")
        if guidance.rescale:
            parts.append(f"rescale {guidance.rescale:g}")
        if size != Size():
            parts.append(f"{size.width or 'native'}x{size.height or 'native'} pixels")
        return ", ".join(parts)

    def at_scale(self, scale: float) -> "Sampling":
        """The same with another guidance scale."""
        return replace(self, guidance=replace(self.guidance, scale=scale))


@dataclass(frozen=True)
class Jitter:
    """What training draws anew at each step, each from its own set; an empty set keeps the base's value."""

    solver: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    spacing: tuple[str, ...] = ()
    guidance_scale: tuple[float, ...] = ()

    def draw(self, base: Sampling, *seed: object) -> Sampling:
        """``base`` with one value from every set that is not empty; depends on the seed's parts only."""
        source = random.Random(derive_seed("jitter", *seed))
        drawn = {field.name: source.choice(getattr(self, field.name) or (None,)) for field in fields(self)}
        chosen = {name: value for name, value in drawn.items() if value is not None}
        return Sampling.from_mapping({**base.to_mapping(), **chosen})


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
SOLVER_WORDS = {"euler": "Euler", "ddim": "DDIM", "dpmpp_2m": "DPM-Solver++(2M)"}


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
