"""The two gradients by which a text encoder learns from a reward, both with respect to what it says.

The denoiser is frozen: a parameter of the encoder acts through the conditioning alone. So both routes give the gradient
by the conditioning of the two branches, and one backward pass through the encoder turns it into that by its parameters
(:func:`through_encoder`). For the reinforced route this is the gradient of running the encoder anew at every timestep,
as TexForce does, since the parameters stay as they are between two updates; the encoder is passed once instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..guidance import Guidance
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import Sampling, State, advance, guided_denoise
from ..training.decoding import Decode
from ..training.judging import score
from .policy import divergence, log_prob, stochastic_steps, transition
from .rollout import Rollout

T = TypeVar("T")


@dataclass(frozen=True)
class Branches:
    """What both branches of guidance are told: B rows, and 1 row (or B) for the negative."""

    positive: Conditioning
    negative: Conditioning


@dataclass(frozen=True)
class Surrogate:
    """What PPO's clipped objective (Schulman et al. 2017, arXiv 1707.06347, equation 7) came to over steps and rows.

    ratio_change: mean distance of a probability ratio from 1; clipped: share of the ratios at which the clip cut off
    the gradient.
    """

    ratio_change: float
    clipped: float


def through_encoder(
    encode: Callable[[], Branches], parameters: Sequence[Tensor], work: Callable[[Branches], T]
) -> tuple[T, list[Tensor]]:
    """``work(branches)``, and the gradient by ``parameters`` of whatever it called ``backward`` on.

    encode: runs the encoder with gradient. ``work`` may call ``backward`` as often as it likes: the encoder's graph is
    passed once, afterwards.
    """
    with torch.enable_grad():
        encoded = encode()
    said = [tensor for tensor in _tensors(encoded) if tensor.requires_grad]
    leaves = Branches(_leaves(encoded.positive), _leaves(encoded.negative))
    with torch.enable_grad():
        found = work(leaves)
    wanted = [leaf for leaf in _tensors(leaves) if leaf.requires_grad]
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in wanted]
    parts = torch.autograd.grad(said, parameters, gradients, allow_unused=True)
    return found, [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]


def policy_gradient(
    model: DiffusionModel,
    branches: Branches,
    rollout: Rollout,
    advantages: Tensor,
    sampling: Sampling,
    indices: Tensor,
    *,
    clip: float,
    loss_scale: float = 1.0,
) -> Surrogate:
    """Add to the leaves of ``branches`` the gradient of ``mean_k sum_b min(A r, A clip(r, 1 - clip, 1 + clip))``.

    indices: ``[K,B]``, steps of each row; advantages: ``[B]``. The ratio ``r = exp((log p - log p_then) / D)`` is taken
    per latent, D being their number, as the published trainers do, whose ``clip`` of 1e-4 is meant so: of whole states
    it would be the D-th power. A step's graph is freed before the next one is recorded.
    """
    sigmas = model.sigmas(sampling)
    rows, count = torch.arange(indices.shape[1]), rollout.states[0, 0].numel()
    change, cut = 0.0, 0
    for chosen in indices:
        x, following = (rollout.states[chosen + i, rows].to(model.device) for i in (0, 1))
        levels, next_levels = sigmas[chosen], sigmas[chosen + 1]
        x0 = guided_rows(model, x, levels, branches, sampling.guidance, (chosen / (len(sigmas) - 1)).tolist())
        mean, std = transition(x, x0, levels, next_levels)
        then = rollout.log_probs[chosen, rows].to(x.device)
        ratio = ((log_prob(following, mean, std) - then) / count).exp()
        worth = advantages.to(ratio)
        plain, bounded = worth * ratio, worth * ratio.clamp(1 - clip, 1 + clip)
        (torch.minimum(plain, bounded).sum() * (loss_scale / len(indices))).backward()
        change += (ratio.detach() - 1).abs().sum().item()
        cut += int((bounded < plain).sum())
    return Surrogate(change / indices.numel(), cut / indices.numel())


def guided_rows(
    model: DiffusionModel,
    x: Tensor,
    levels: Tensor,
    branches: Branches,
    guidance: Guidance,
    progress: Sequence[float],
) -> Tensor:
    """Guided x0 ``[B,C,h,w]`` of rows that stand at different ``levels [B]`` and ``progress`` of the schedule."""
    acting = torch.tensor([guidance.active(share) for share in progress])
    groups = [torch.nonzero(acting == flag).flatten() for flag in (True, False)]
    groups = [rows for rows in groups if len(rows)]
    if len(groups) == 1:
        return guided_denoise(model, x, levels, branches.positive, branches.negative, guidance, progress[0])
    parts = [
        guided_denoise(
            model, x[rows], levels[rows], branches.positive[rows], branches.negative, guidance, progress[rows[0]]
        )
        for rows in groups
    ]
    return torch.cat(parts)[torch.argsort(torch.cat(groups)).to(x.device)]


@torch.no_grad()
def path_divergence(
    model: DiffusionModel, now: Branches, start: Branches, rollout: Rollout, sampling: Sampling, index: int
) -> Tensor:
    """An estimate ``[B]`` of the Kullback-Leibler divergence of whole trajectories under ``now`` from those under
    ``start``: that of step ``index``, times the number of steps."""
    sigmas = model.sigmas(sampling)
    x, progress = rollout.states[index].to(model.device), index / (len(sigmas) - 1)
    levels = sigmas[index], sigmas[index + 1]
    steps = [
        transition(x, guided_denoise(model, x, levels[0], b.positive, b.negative, sampling.guidance, progress), *levels)
        for b in (now, start)
    ]
    (mean, std), (other, _) = steps
    return divergence(mean, other, std) * stochastic_steps(sigmas)


def direct_gradient(
    model: DiffusionModel,
    branches: Branches,
    reward: Reward,
    prompts: Sequence[str],
    noise: Tensor,
    sampling: Sampling,
    *,
    through: int,
    loss_scale: float = 1.0,
    frames: int = 0,
    decode: Decode | None = None,
) -> Tensor:
    """Add to the leaves of ``branches`` the gradient of ``sum_b R(prompt_b, x0_b)``; the rewards ``[B]``.

    The pictures are sampled as ``sampling`` says; the gradient passes through the last ``through`` steps (0: all),
    as in DRaFT-K (Clark et al. 2024, arXiv 2309.17400). Each is recomputed in the backward pass, so that the graph of
    one step and a state per step are held, whatever ``through`` is. decode: what decodes, by default the model.
    """
    sigmas = model.sigmas(sampling)
    steps = len(sigmas) - 1
    first = max(0, steps - through) if through else 0
    state = State(model.start(noise, sigmas[0]))

    def x0_of(x: Tensor, index: int) -> Tensor:
        progress = index / steps
        return guided_denoise(
            model, x, sigmas[index], branches.positive, branches.negative, sampling.guidance, progress
        )

    for index in range(steps):
        if index < first:
            with torch.no_grad():
                x0 = x0_of(state.x, index)
        else:
            x0 = checkpoint(x0_of, state.x, index, use_reentrant=False)
        state = advance(state, x0, sigmas, sampling.solver)
    latents = model.finish(state.x, sigmas[-1])
    images = decode(latents, frames, range(len(latents))) if decode else model.decode(latents, frames)
    scores = score(reward, images, prompts)
    (scores.sum() * loss_scale).backward()
    return scores.detach()


def _tensors(branches: Branches) -> list[Tensor]:
    conditionings = (branches.positive, branches.negative)
    parts = [getattr(c, part.name) for c in conditionings for part in fields(Conditioning)]
    return [part for part in parts if part is not None]


def _leaves(encoded: Conditioning) -> Conditioning:
    """Detached, and to be differentiated by where the encoder's output can be."""
    return encoded.map(lambda t: t.detach().requires_grad_(t.requires_grad))
