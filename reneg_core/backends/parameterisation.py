"""What a denoiser's input and output mean, and where its noise levels lie: the way from a network to x0 and back."""

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..settings import Sampling
from . import grids

SIGMA_LIMIT = 4096.0  # where a zero-terminal-SNR schedule, whose last level is infinite, is cut
OTHER_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Settings of diffusers' schedulers that move the levels of the spacing they name."""


class Parameterisation(Protocol):
    """scheduler: diffusers' own, whose configuration is followed; prediction: of the network, in a word; the rest as in
    :class:`~reneg_core.model.DiffusionModel`."""

    scheduler: Any
    prediction: str

    def sigmas(self, sampling: Sampling, tokens: int) -> Tensor:
        """The schedule ``[steps+1]``; tokens: how many the denoiser sees a picture of the sampling's size as."""
        ...

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor: ...

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor: ...

    def inputs(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The network's input for ``x [B,C,h,w]`` and its timesteps ``[B]`` at ``sigma`` (scalar, ``[B]``)."""
        ...

    def x0(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        """The clean estimate made from the network's output, as large as ``x``."""
        ...


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    """``sigma`` on the device of ``x``, shaped to be multiplied with it."""
    return sigma.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class VariancePreserving:
    """Discrete training timesteps with a cumulative noise schedule; the network predicts noise, v or the sample.

    scheduler: any of diffusers' that has such a schedule. Errors: ValueError for those that have none (flow matching,
    EDM), and for other predictions.
    """

    def __init__(self, scheduler: Any) -> None:
        from diffusers import DDIMScheduler

        kind, config = type(scheduler).__name__, scheduler.config
        if "beta_schedule" not in config or config.get("use_flow_sigmas"):
            raise ValueError(
                f"Got the scheduler {kind}{' with flow sigmas' * ('beta_schedule' in config)} for an architecture that "
                "is used with a discrete noise schedule (DDIM, Euler, DPM-Solver++ and others with betas): the weights "
                "may predict something else. Try the pipeline's published scheduler configuration."
            )
        # diffusers would take DDIM's defaults in place of those that the configuration's own class has
        stated = {k: v for k, v in config.items() if k != "_use_default_values"}
        self.scheduler = DDIMScheduler.from_config({"timestep_spacing": "linspace", **stated})
        self.prediction = self.scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"Got prediction type {self.prediction!r}, expected epsilon, v_prediction or sample.")
        self._other_grid = next((name for name in OTHER_GRIDS if config.get(name)), None)
        self._one_more, self._to_lowest = kind in ONE_MORE, config.get("final_sigmas_type") == "sigma_min"
        alphas = self.scheduler.alphas_cumprod.double().numpy()
        ratios = np.maximum((1 - alphas) / np.maximum(alphas, 1e-12), 1e-12)
        self._log_sigmas = np.minimum(0.5 * np.log(ratios), math.log(SIGMA_LIMIT))

    def sigmas(self, sampling: Sampling, tokens: int = 0) -> Tensor:
        """``model`` is the spacing of the scheduler's configuration, ``leading`` that of published Stable Diffusion;
        both end at the scheduler's own final level: 0, or the first training level where the configuration says
        ``set_alpha_to_one: false``. ``trailing`` and ``karras`` begin at the noisiest level and end at 0.

        Errors: ValueError for more steps than the model was trained with, and for ``model`` where the configuration
        asks for levels that are not followed here.
        """
        config, steps, own = self.scheduler.config, sampling.steps, sampling.spacing == "model"
        total, levels = config.num_train_timesteps, np.exp(self._log_sigmas)
        if steps > total:
            raise ValueError(f"Got {steps} sampling steps, expected 1 to {total}.")
        if own and self._other_grid:
            raise ValueError(
                f"Got the spacing 'model' for a scheduler with {self._other_grid}, which is not followed here. "
                "Try the spacing karras or trailing."
            )
        spacing = config.timestep_spacing if own else sampling.spacing
        if spacing == "karras":
            schedule = grids.karras(levels[0], levels[-1], steps)
        elif own and self._one_more and spacing != "trailing" and steps < total:
            schedule = levels[grids.TIMESTEPS[spacing](total, steps + 1, config.steps_offset)[:-1]]
        else:
            schedule = levels[grids.TIMESTEPS[spacing](total, steps, config.steps_offset)]
        return torch.as_tensor(np.append(schedule, self._final_level(sampling.spacing)), dtype=torch.float32)

    def _final_level(self, spacing: str) -> float:
        if spacing in ("trailing", "karras"):
            return 0.0
        if spacing == "model" and self._to_lowest:
            return math.exp(self._log_sigmas[0])
        final = self.scheduler.final_alpha_cumprod.double().item()
        return math.sqrt((1 - final) / final)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The variance-preserving sampler begins with unit variance: ``noise * sqrt(1 + sigma^2)`` here."""
        return noise * (1 + sigma.item() ** 2) ** 0.5

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Back to the variance-preserving scale; the identity at sigma 0."""
        return x / (1 + sigma.item() ** 2) ** 0.5

    def inputs(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The state at unit variance and the nearest training timestep."""
        return x * (_beside(sigma, x) ** 2 + 1).rsqrt(), self.timestep(sigma).to(x.device).expand(len(x))

    def timestep(self, sigma: Tensor) -> Tensor:
        """The training timestep whose noise level is nearest in log sigma, int64, shaped as ``sigma``.

        Levels between two training steps (Karras spacing) go to the nearer one, as in diffusers and ComfyUI.
        """
        log_sigma = np.log(np.maximum(sigma.detach().double().cpu().numpy(), 1e-6))
        steps = np.interp(log_sigma, self._log_sigmas, np.arange(len(self._log_sigmas))).round()
        return torch.as_tensor(steps, dtype=torch.int64)

    def x0(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        sigma = _beside(sigma, x)
        if self.prediction == "epsilon":
            return x - sigma * output
        if self.prediction == "v_prediction":
            scale = (sigma**2 + 1).rsqrt()
            return x * scale**2 - sigma * scale * output
        return output


ONE_MORE = (
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler",
)  # fmt: skip
"""Schedulers that place one level more than they are asked for and leave out the last, but with trailing spacing."""


class Flow:
    """Rectified flow (Liu et al. 2022, arXiv 2209.03003): the state is ``(1 - sigma) x0 + sigma noise``, sigma from 1
    to 0, and the network predicts the velocity ``noise - x0``. An Euler step towards x0 is then the flow's own step.

    scheduler: diffusers' FlowMatchEulerDiscreteScheduler; to_zero: whether the pipeline's unshifted levels go from 1
    towards 0 in equal distances (Flux), or between the scheduler's own ends (Stable Diffusion 3). Errors: ValueError
    for other schedulers and for stochastic or inverted ones.
    """

    prediction = "velocity"

    def __init__(self, scheduler: Any, to_zero: bool) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        kind, config = type(scheduler).__name__, scheduler.config
        odd = [name for name in ("stochastic_sampling", "invert_sigmas") if config.get(name)]
        if kind != "FlowMatchEulerDiscreteScheduler" or odd:
            raise ValueError(
                f"Got the scheduler {kind}{f' with {odd[0]}' if odd else ''} for a flow model, expected "
                "FlowMatchEulerDiscreteScheduler. Try the pipeline's published scheduler configuration."
            )
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        self._to_zero = to_zero

    def sigmas(self, sampling: Sampling, tokens: int) -> Tensor:
        """``model``: as the pipeline asks its scheduler; ``trailing``: equal distances from 1 towards 0, shifted;
        ``karras``: between the scheduler's own ends. The shift may depend on ``tokens``.

        Errors: ValueError for ``leading``, which belongs to discrete timesteps.
        """
        steps, spacing, config = sampling.steps, sampling.spacing, self.scheduler.config
        if spacing == "leading":
            raise ValueError("Got the spacing 'leading' for a flow model, expected model, trailing or karras.")
        shift = {"mu": self._shift(tokens)} if config.get("use_dynamic_shifting") else {}
        linear = np.linspace(1.0, 1 / steps, steps) if spacing == "trailing" or self._to_zero else None
        self.scheduler.set_timesteps(
            **({"num_inference_steps": steps} if linear is None else {"sigmas": linear}), **shift
        )
        found = self.scheduler.sigmas.float().cpu().clone()
        if spacing == "karras":
            found[:-1] = torch.as_tensor(grids.karras(self.scheduler.sigma_min, found[0].item(), steps))
        return found

    def _shift(self, tokens: int) -> float:
        """The shift's exponent, linear in the number of tokens between the configuration's two anchors."""
        config = self.scheduler.config
        low, high = config["base_image_seq_len"], config["max_image_seq_len"]
        slope = (config["max_shift"] - config["base_shift"]) / (high - low)
        return config["base_shift"] + slope * (tokens - low)

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Noise alone at level 1."""
        return noise * sigma.item()

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def inputs(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The state as it is, and the level in training timesteps (not whole)."""
        timestep = sigma.to(x.device, torch.float32) * self.scheduler.config.num_train_timesteps
        return x, timestep.expand(len(x))

    def x0(self, x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        return x - _beside(sigma, x) * output
