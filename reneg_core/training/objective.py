"""The gradient of the reward with respect to the negative embedding: pure, and the only place that computes it.

ReNeg (arXiv 2412.19637, section 3.2): integrate the guided ODE without gradient from noise to a late step, estimate the
clean picture in one step there, decode it, and differentiate the reward. The positive branch does not depend on the
negative embedding, so only the negative branch is recorded; that pass also advances the trajectory, so a gradient
point costs the backward pass, one decode and one reward on top of the rollout.

Beyond the paper, ``through`` lets the gradient pass through several solver steps behind a point, as truncated
backpropagation does (DRaFT-K, Clark et al. 2024, arXiv 2309.17400): the estimate is then nearer to the finished
picture, and the gradient nearer to that of its reward; both branches of a further step are recorded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clips import FRAMES
from ..model import Branch, Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import Sampling, State, advance, check_branches, guided_denoise
from .judging import score


@dataclass(frozen=True)
class Batch:
    """What is drawn: B prompts, their conditioning of B rows (or 1 for all), the model's noise of B rows."""

    prompts: Sequence[str]
    positive: Conditioning
    noise: Tensor


@dataclass(frozen=True)
class Reach:
    """Where gradients are taken and how far they reach.

    points: step indices at which recording starts; through: denoising steps recorded from each point on, fewer at the
    schedule's end (1 = the estimate at the point, the paper's; 0 = to the finished picture); complete: integrate to the
    end and score the finished picture too; loss_scale: factor on the reward in the backward pass, for half precision;
    frames: of a video, so many are decoded and the reward is their mean (0 = all); decode: what decodes the estimates,
    None for the model (:mod:`.decoding`).
    """

    points: Sequence[int]
    through: int = 1
    complete: bool = False
    loss_scale: float = 1.0
    frames: int = FRAMES
    decode: Callable[[Tensor, int], Tensor] | None = None


@dataclass(frozen=True)
class RewardGradient:
    """What :func:`reward_gradient` found.

    tokens: gradient of the summed reward, shape of the negative's tokens (1 row: summed over the batch; B rows: one
    each), averaged over the points; pooled: likewise or None; rewards: ``[points, B]`` of the estimates;
    images: ``[B,3,H,W]`` (a video's frames ``[B,T,3,H,W]``), the last point's estimate, or the finished picture if the
    trajectory was completed;
    final_rewards: ``[B]`` of the finished picture, or None.
    """

    tokens: Tensor
    pooled: Tensor | None
    rewards: Tensor
    images: Tensor
    final_rewards: Tensor | None = None


def reward_gradient(
    model: DiffusionModel, reward: Reward, batch: Batch, negative: Conditioning, sampling: Sampling, reach: Reach
) -> RewardGradient:
    """Gradient of ``sum_b R(prompt_b, x0_hat_b)`` averaged over ``reach.points``.

    negative: 1 row (shared) or B rows (one per sample). Errors: ValueError for points outside the schedule or where
    guidance is off, for a pooled vector that only one branch has, and for a reward that fails or has no gradient;
    FloatingPointError for pictures that are no finite numbers.
    """
    sigmas = model.sigmas(sampling)
    steps = len(sigmas) - 1
    points = _checked_points(reach.points, sampling, steps)
    check_branches(batch.positive, negative)
    leaves = Conditioning(negative.tokens.detach(), negative.mask, _detached(negative.pooled))
    parameters = [t.requires_grad_() for t in (leaves.tokens, leaves.pooled) if t is not None]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    way, decode = Way(model, sigmas, batch.positive, leaves, sampling), reach.decode or model.decode
    rewards, images = [], None
    with torch.no_grad():
        state = State(model.start(batch.noise, sigmas[0]))
        for index in range(steps if reach.complete else max(points) + 1):
            if index in points:
                with torch.enable_grad():
                    x0 = way.recorded(state)
                    images = decode(way.ahead(state, x0, reach.through), reach.frames)
                    scores = score(reward, images, list(batch.prompts))
                    whole = scores.sum() * reach.loss_scale
                    parts = torch.autograd.grad(whole, parameters, materialize_grads=sampling.guidance.attention > 0)
                x0, images = x0.detach(), images.detach()
                rewards.append(scores.detach())
                for total, part in zip(totals, parts, strict=True):
                    total += part / (len(points) * reach.loss_scale)
            else:
                x0 = way.x0(state)
            if reach.complete or index < max(points):
                state = advance(state, x0, sigmas, sampling.solver)
        final = None
        if reach.complete:
            images = model.decode(model.finish(state.x, sigmas[-1]), reach.frames)
            final = score(reward, images, batch.prompts)
    pooled = totals[1] if len(totals) > 1 else None
    return RewardGradient(totals[0], pooled, torch.stack(rewards), images, final)


@dataclass(frozen=True)
class Way:
    """The guided trajectory: how x0 follows from a state."""

    model: DiffusionModel
    sigmas: Tensor
    positive: Conditioning
    negative: Conditioning
    sampling: Sampling

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def x0(self, state: State) -> Tensor:
        """The guided estimate ``[B,C,h,w]`` at ``state``; recorded where gradients are enabled."""
        sigma, progress = self.sigmas[state.index], state.index / self.steps
        return guided_denoise(
            self.model, state.x, sigma, self.positive, self.negative, self.sampling.guidance, progress
        )

    def recorded(self, state: State) -> Tensor:
        """The same, with the graph kept through the negative branch only, where that is a pass of its own."""
        if self.sampling.guidance.attention:
            return self.x0(state)
        sigma, rows = self.sigmas[state.index], state.x.shape[0]
        with torch.no_grad():
            positive = self.model.denoise(state.x, sigma, self.positive.expand(rows), (Branch.POSITIVE,))
        negative = self.model.denoise(state.x, sigma, self.negative.expand(rows), (Branch.NEGATIVE,))
        return self.sampling.guidance.combine(positive, negative)

    def ahead(self, state: State, x0: Tensor, through: int) -> Tensor:
        """The estimate found ``through - 1`` solver steps after the one that ``x0`` belongs to (0: at the last)."""
        left = self.steps - 1 - state.index
        for _ in range(min(through - 1, left) if through else left):
            state = advance(state, x0, self.sigmas, self.sampling.solver)
            x0 = self.x0(state)
        return x0


def _checked_points(points: Sequence[int], sampling: Sampling, steps: int) -> list[int]:
    points, guidance = sorted(set(points)), sampling.guidance
    off = [i for i in points if not 0 <= i < steps or not guidance.active(i / steps)]
    if off or not points:
        raise ValueError(
            f"Got gradient points {points}, expected step indices from 0 to {steps - 1} where guidance acts "
            f"(scale {guidance.scale:g}, interval {guidance.start:g}..{guidance.end:g})."
        )
    return points


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()
