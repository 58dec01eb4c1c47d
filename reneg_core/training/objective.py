"""The gradient of the reward with respect to the negative embedding: pure, and the only place that computes it.

ReNeg (arXiv 2412.19637, section 3.2): integrate the guided ODE without gradient from noise to a late step, estimate the
clean picture in one step there, decode it, and differentiate the reward. The positive branch does not depend on the
negative embedding, so only the negative branch is recorded; that pass also advances the trajectory, so a gradient
point costs the backward pass, one decode and one reward on top of the rollout. What needs no graph takes all rows at
once, what needs one takes them in parts (:class:`Parts`): the two differ many times in memory.

Beyond the paper, ``through`` lets the gradient pass through several solver steps behind a point, as truncated
backpropagation does (DRaFT-K, Clark et al. 2024, arXiv 2309.17400): the estimate is then nearer to the finished
picture, and the gradient nearer to that of its reward; both branches of a further step are recorded. A leap goes half
of the way to the end in one large step: from any point at the memory of two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..clips import FRAMES
from ..model import Branch, Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import Sampling, State, advance, check_branches, guided_denoise
from ..solvers import euler
from .config import LEAP, recorded_passes
from .judging import score
from .memory import micro_batches


@dataclass(frozen=True)
class Batch:
    """What is drawn: B prompts, their conditioning of B rows (or 1 for all), the model's noise of B rows."""

    prompts: Sequence[str]
    positive: Conditioning
    noise: Tensor


@dataclass(frozen=True)
class Reach:
    """Where gradients are taken and how far they reach.

    points: step indices at which recording starts, those of all rows or as many for each row; through: denoising steps
    recorded from each point on, fewer at the schedule's end (1 = the estimate at the point, the paper's; 0 = to the
    finished picture; "leap" = the point and the level half way from it to the end); complete: integrate to the
    end and score the finished picture too; loss_scale: factor on the reward in the backward pass, for half precision;
    frames: of a video, so many are decoded and the reward is their mean (0 = all); decode: what decodes the estimates
    of some rows, None for the model (:mod:`.decoding`).
    """

    points: Sequence[int] | Sequence[Sequence[int]]
    through: int | str = 1
    complete: bool = False
    loss_scale: float = 1.0
    frames: int = FRAMES
    decode: Callable[[Tensor, int, Sequence[int]], Tensor] | None = None


@dataclass(frozen=True)
class Parts:
    """How the rows are cut where a graph is kept.

    size: at most so many at once, None = all; halved when memory runs out, of which on_halved is told; pulse: called
    before each pass, may raise to stop; done: told the number of rows of each part that has its last gradient.
    """

    size: int | None = None
    on_halved: Callable[[int], None] = lambda size: None
    pulse: Callable[[], None] = lambda: None
    done: Callable[[int], None] = lambda rows: None


@dataclass(frozen=True)
class RewardGradient:
    """What :func:`reward_gradient` found.

    tokens: gradient of the summed reward, shape of the negative's tokens (1 row: summed over the batch; B rows: one
    each), averaged over the points; pooled: likewise or None; rewards: ``[points, B]`` of the estimates, each row's in
    the order of its points; images, final_rewards: ``[B,3,H,W]`` (a video's frames ``[B,T,3,H,W]``) and ``[B]`` of the
    finished pictures, None unless the trajectory was completed.
    """

    tokens: Tensor
    pooled: Tensor | None
    rewards: Tensor
    images: Tensor | None = None
    final_rewards: Tensor | None = None


def reward_gradient(
    model: DiffusionModel,
    reward: Reward,
    batch: Batch,
    negative: Conditioning,
    sampling: Sampling,
    reach: Reach,
    parts: Parts = Parts(),
) -> RewardGradient:
    """Gradient of ``sum_b R(prompt_b, x0_hat_b)`` averaged over ``reach.points``.

    negative: 1 row (shared) or B rows (one per sample). Errors: ValueError for points outside the schedule or where
    guidance is off, for a pooled vector that only one branch has, and for a reward that fails or has no gradient;
    FloatingPointError for pictures that are no finite numbers; what says that memory ran out, where a pass without
    graph does not fit, or a single row with one.
    """
    sigmas = model.sigmas(sampling)
    steps, rows = len(sigmas) - 1, range(len(batch.noise))
    points = _checked_points(reach.points, len(rows), sampling, steps)
    check_branches(batch.positive, negative)
    way = Way(model, sigmas, batch.positive, negative.detach(), sampling)
    gradients = _Gradients(way, reward, batch.prompts, points, reach, parts)
    last = steps - 1 if reach.complete else max(row[-1] for row in points)
    images = final = None
    with torch.no_grad():
        state = State(model.start(batch.noise, sigmas[0]))
        for index in range(last + 1):
            parts.pulse()
            here = [row for row in rows if index in points[row]]
            others = [row for row in rows if row not in here and (reach.complete or index < points[row][-1])]
            x0 = state.x.clone()  # rows that are through stay where they are
            if here:
                x0[here] = gradients.at(_rows_of(state, here), here)
            if others:
                x0[others] = way.of(others).x0(_rows_of(state, others))
            if reach.complete or index < last:
                state = advance(state, x0, sigmas, sampling.solver)
        if reach.complete:
            images = model.decode(model.finish(state.x, sigmas[-1]), reach.frames)
            final = score(reward, images, batch.prompts)
    pooled = gradients.totals[1] if len(gradients.totals) > 1 else None
    return RewardGradient(gradients.totals[0], pooled, gradients.rewards, images, final)


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

    def of(self, rows: Sequence[int]) -> "Way":
        """That of some rows of the batch; a conditioning of one row is everybody's."""
        chosen = [c if len(c) in (1, len(rows)) else c[list(rows)] for c in (self.positive, self.negative)]
        return replace(self, positive=chosen[0], negative=chosen[1])

    def x0(self, state: State) -> Tensor:
        """The guided estimate ``[B,C,h,w]`` at ``state``; recorded where gradients are enabled."""
        sigma, progress = self.sigmas[state.index], state.index / self.steps
        return guided_denoise(
            self.model, state.x, sigma, self.positive, self.negative, self.sampling.guidance, progress
        )

    def positive_x0(self, state: State) -> Tensor | None:
        """The positive branch's estimate, which no graph is needed for; None where the branches are one pass."""
        if self.sampling.guidance.attention:
            return None
        with torch.no_grad():
            return self._branch(state, self.positive, Branch.POSITIVE)

    def recorded(self, state: State, positive: Tensor | None) -> Tensor:
        """The guided estimate with the graph kept through the negative branch only; positive: :meth:`positive_x0`."""
        if positive is None:
            return self.x0(state)
        return self.sampling.guidance.combine(positive, self._branch(state, self.negative, Branch.NEGATIVE))

    def _branch(self, state: State, said: Conditioning, branch: Branch) -> Tensor:
        return self.model.denoise(state.x, self.sigmas[state.index], said.expand(len(state.x)), (branch,))

    def ahead(self, state: State, x0: Tensor, through: int | str) -> Tensor:
        """The estimate found ``through - 1`` solver steps after the one that ``x0`` belongs to (0: at the last), or a
        leap after it: one Euler step to the level half way to the end."""
        left = self.steps - state.index
        if through == LEAP and left > 1:
            middle = state.index + (left + 1) // 2
            return self.x0(State(euler(State(state.x), x0, self.sigmas[[state.index, middle]]), middle))
        for _ in range(recorded_passes(through, left) - 1):
            state = advance(state, x0, self.sigmas, self.sampling.solver)
            x0 = self.x0(state)
        return x0


class _Gradients:
    """Adds up what the points give, part by part."""

    def __init__(
        self,
        way: Way,
        reward: Reward,
        prompts: Sequence[str],
        points: Sequence[Sequence[int]],
        reach: Reach,
        parts: Parts,
    ) -> None:
        self.way, self.reward, self.prompts, self.points = way, reward, prompts, points
        self.reach, self.parts, self.size = reach, parts, parts.size or len(points)
        self.decode = reach.decode or (lambda latents, frames, rows: way.model.decode(latents, frames))
        self.totals = [torch.zeros_like(part) for part in _learned(way.negative)]
        self.rewards = torch.zeros(len(points[0]), len(points), device=way.model.device)

    def at(self, state: State, rows: Sequence[int]) -> Tensor:
        """The guided x0 of ``rows`` of the batch, which stand at ``state``; their gradients there are added."""
        way = self.way.of(rows)
        positive = way.positive_x0(state)

        def part(places: range) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
            self.parts.pulse()
            chosen = [rows[place] for place in places]
            beside = None if positive is None else _rows(positive, places)
            return self._recorded(way.of(places), _rows_of(state, places), beside, chosen)

        found, done = [], 0
        for x0, scores, gradients in micro_batches(range(len(rows)), self.size, part, self._halved):
            found.append(x0)
            self._add(state.index, rows[done : done + len(x0)], scores, gradients)
            done += len(x0)
        return torch.cat(found)

    @torch.enable_grad()
    def _recorded(
        self, way: Way, state: State, positive: Tensor | None, rows: list[int]
    ) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """x0 of these rows of the batch, their rewards and the gradient of the sum."""
        reach, leaves = self.reach, way.negative.detach()
        wanted = [part.requires_grad_() for part in _learned(leaves)]
        way = replace(way, negative=leaves)
        x0 = way.recorded(state, positive)
        images = self.decode(way.ahead(state, x0, reach.through), reach.frames, rows)
        scores = score(self.reward, images, [self.prompts[row] for row in rows])
        whole, attention = scores.sum() * reach.loss_scale, way.sampling.guidance.attention
        return x0.detach(), scores.detach(), torch.autograd.grad(whole, wanted, materialize_grads=attention > 0)

    def _add(self, index: int, rows: Sequence[int], scores: Tensor, gradients: Sequence[Tensor]) -> None:
        shared = len(self.way.negative) == 1
        for total, gradient in zip(self.totals, gradients, strict=True):
            total[slice(None) if shared else rows] += gradient / (len(self.rewards) * self.reach.loss_scale)
        self.rewards[[self.points[row].index(index) for row in rows], list(rows)] = scores.to(self.rewards)
        self.parts.done(sum(self.points[row][-1] == index for row in rows))

    def _halved(self, size: int) -> None:
        self.size = size
        self.parts.on_halved(size)


def _learned(negative: Conditioning) -> list[Tensor]:
    return [part for part in (negative.tokens, negative.pooled) if part is not None]


def _rows(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    return tensor if len(rows) == len(tensor) else tensor[list(rows)]


def _rows_of(state: State, rows: Sequence[int]) -> State:
    previous = None if state.previous is None else _rows(state.previous, rows)
    return State(_rows(state.x, rows), state.index, previous)


def _checked_points(
    points: Sequence[int] | Sequence[Sequence[int]], rows: int, sampling: Sampling, steps: int
) -> list[list[int]]:
    """The points of each row, ascending."""
    guidance = sampling.guidance
    found = [points] * rows if all(isinstance(point, int) for point in points) else points
    found = [sorted(set(row)) for row in found]
    off = [i for row in found for i in row if not 0 <= i < steps or not guidance.active(i / steps)]
    if off or len({len(row) for row in found} - {0}) != 1 or len(found) != rows or [] in found:
        raise ValueError(
            f"Got gradient points {list(points)}, expected step indices from 0 to {steps - 1} where guidance acts "
            f"(scale {guidance.scale:g}, interval {guidance.start:g}..{guidance.end:g}), for all rows or equally many "
            f"for each of {rows}."
        )
    return found
