"""The gradient of the reward with respect to the negative embedding: pure, and the only place that computes it.

ReNeg (arXiv 2412.19637, section 3.2): integrate the guided ODE without gradient from noise to a late step, estimate the
clean picture in one step there, decode it, and differentiate the reward. The positive branch does not depend on the
negative embedding, so only the negative branch is recorded; that pass also advances the trajectory, so a gradient
point costs the backward pass, one decode and one reward on top of the rollout.

Beyond the paper, ``through`` lets the gradient pass through several solver steps behind a point, as truncated
backpropagation does (DRaFT-K, Clark et al. 2024, arXiv 2309.17400): the estimate is then nearer to the finished
picture, and the gradient nearer to that of its reward; both branches of a further step are recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..guidance import Guidance
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import State, advance, guided_denoise


@dataclass(frozen=True)
class Rollout:
    """How a trajectory is integrated: ``sigmas [steps+1]`` descending, guidance, solver."""

    sigmas: Tensor
    guidance: Guidance
    solver: str = "euler"

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class RewardGradient:
    """What :func:`reward_gradient` found.

    tokens: gradient of the summed reward, shape of the negative's tokens (1 row: summed over the batch; B rows: one
    each), averaged over the points; pooled: likewise or None; rewards: ``[points, B]`` of the estimates;
    images: ``[B,3,H,W]``, the last point's estimate, or the finished picture if the trajectory was completed;
    final_rewards: ``[B]`` of the finished picture, or None.
    """

    tokens: Tensor
    pooled: Tensor | None
    rewards: Tensor
    images: Tensor
    final_rewards: Tensor | None = None


def reward_gradient(
    model: DiffusionModel,
    reward: Reward,
    prompts: Sequence[str],
    positive: Conditioning,
    negative: Conditioning,
    noise: Tensor,
    rollout: Rollout,
    points: Sequence[int],
    *,
    through: int = 1,
    checkpoint_reward: bool = False,
    complete: bool = False,
    loss_scale: float = 1.0,
) -> RewardGradient:
    """Gradient of ``sum_b R(prompt_b, x0_hat_b)`` averaged over ``points``.

    positive: B rows; negative: 1 row (shared) or B rows (one per sample); noise: standard normal ``[B,C,h,w]``;
    points: step indices in ``range(rollout.steps)`` at which recording starts (guidance must be active there);
    through: denoising steps recorded from each point on, fewer at the schedule's end; 1 = x0_hat is taken at the point;
    checkpoint_reward: recompute the reward's activations in its backward; complete: integrate to the end and score the
    finished picture too; loss_scale: factor on the reward in the backward pass, for half precision.
    Errors: ValueError for points outside the schedule or where guidance is off.
    """
    points = _checked_points(points, rollout)
    leaves = Conditioning(negative.tokens.detach(), negative.mask, _detached(negative.pooled))
    parameters = [t.requires_grad_() for t in (leaves.tokens, leaves.pooled) if t is not None]
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    rewards, images = [], None
    with torch.no_grad():
        state = State(model.start(noise, rollout.sigmas[0]))
        for index in range(rollout.steps if complete else max(points) + 1):
            sigma, progress = rollout.sigmas[index], index / rollout.steps
            if index in points:
                x0_positive = model.denoise(state.x, sigma, positive.expand(len(noise)))
                with torch.enable_grad():
                    x0_negative = model.denoise(state.x, sigma, leaves.expand(len(noise)))
                    x0 = rollout.guidance.combine(x0_positive, x0_negative)
                    estimate = _look_ahead(model, state, x0, positive, leaves, rollout, through - 1)
                    images, score = _decode_and_score(model, reward, prompts, estimate, checkpoint_reward)
                    parts = torch.autograd.grad(score.sum() * loss_scale, parameters)
                x0, images = x0.detach(), images.detach()
                rewards.append(score.detach())
                for total, part in zip(totals, parts, strict=True):
                    total += part / (len(points) * loss_scale)
            else:
                x0 = guided_denoise(model, state.x, sigma, positive, leaves, rollout.guidance, progress)
            if complete or index < max(points):
                state = advance(state, x0, rollout.sigmas, rollout.solver)
        final = None
        if complete:
            images = model.decode(model.finish(state.x, rollout.sigmas[-1]))
            final = reward.score(images, list(prompts))
    pooled = totals[1] if len(totals) > 1 else None
    return RewardGradient(totals[0], pooled, torch.stack(rewards), images, final)


def _look_ahead(
    model: DiffusionModel,
    state: State,
    x0: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    rollout: Rollout,
    steps: int,
) -> Tensor:
    """The guided x0 ``[B,C,h,w]`` found ``steps`` solver steps after the one that ``x0`` belongs to."""
    for _ in range(min(steps, rollout.steps - 1 - state.index)):
        state = advance(state, x0, rollout.sigmas, rollout.solver)
        sigma, progress = rollout.sigmas[state.index], state.index / rollout.steps
        x0 = guided_denoise(model, state.x, sigma, positive, negative, rollout.guidance, progress)
    return x0


def _checked_points(points: Sequence[int], rollout: Rollout) -> list[int]:
    points = sorted(set(points))
    off = [i for i in points if not 0 <= i < rollout.steps or not rollout.guidance.active(i / rollout.steps)]
    if off or not points:
        raise ValueError(
            f"Got gradient points {points}, expected step indices from 0 to {rollout.steps - 1} where guidance acts "
            f"(scale {rollout.guidance.scale:g}, interval {rollout.guidance.start:g}..{rollout.guidance.end:g})."
        )
    return points


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _decode_and_score(
    model: DiffusionModel, reward: Reward, prompts: Sequence[str], x0: Tensor, checkpoint_reward: bool
) -> tuple[Tensor, Tensor]:
    images = model.decode(x0)
    if checkpoint_reward:
        return images, checkpoint(reward.score, images, list(prompts), use_reentrant=False)
    return images, reward.score(images, list(prompts))
