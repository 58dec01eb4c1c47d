"""Trajectories of the stochastic sampler, kept with the probability of each of their steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Conditioning, DiffusionModel
from ..sampling import Sampling, advance, guided_denoise
from ..solvers import State
from .policy import log_prob, stochastic_steps, transition


@dataclass(frozen=True)
class Rollout:
    """B trajectories of S stochastic steps, on the CPU.

    prompts: B; states: ``[S+1,B,C,h,w]`` float32, before each stochastic step and after the last; log_probs: ``[S,B]``
    float64, of each step under the encoder that took it; rewards: ``[B]`` float64.
    """

    prompts: list[str]
    states: Tensor
    log_probs: Tensor
    rewards: Tensor

    def __getitem__(self, rows: slice) -> "Rollout":
        return Rollout(self.prompts[rows], self.states[:, rows], self.log_probs[:, rows], self.rewards[rows])


@dataclass(frozen=True)
class Kept:
    """Trajectories of consecutive rows of a batch, from ``first`` on; rollout: None where there are no rows."""

    first: int
    rollout: Rollout | None

    @classmethod
    def of(cls, parts: Iterable[tuple[int, Rollout]]) -> "Kept":
        """Join consecutive parts, each with its first row."""
        found = list(parts)
        if not found:
            return cls(0, None)
        rollouts = [rollout for _, rollout in found]
        return cls(
            found[0][0],
            Rollout(
                [prompt for rollout in rollouts for prompt in rollout.prompts],
                torch.cat([rollout.states for rollout in rollouts], 1),
                torch.cat([rollout.log_probs for rollout in rollouts], 1),
                torch.cat([rollout.rewards for rollout in rollouts]),
            ),
        )

    def rows(self, rows: range) -> Rollout:
        """Those of ``rows`` of the batch."""
        return self.rollout[rows.start - self.first : rows.stop - self.first]

    def place(self, rewards: Tensor) -> None:
        """Write its rewards to their places in ``rewards [batch]``."""
        if self.rollout is not None:
            rewards[self.first : self.first + len(self.rollout.rewards)] = self.rollout.rewards


@torch.no_grad()
def roll_out(
    model: DiffusionModel,
    positive: Conditioning,
    negative: Conditioning,
    noise: Tensor,
    sampling: Sampling,
    draw: Callable[[int], Tensor],
    frames: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample with DDIM at eta 1: states ``[S+1,B,C,h,w]``, log-probabilities ``[S,B]``, pictures ``[B,3,H,W]``.

    noise: standard normal ``[B,C,h,w]`` to begin with; draw: the same for a step; frames: of a video, so many decoded
    (0 = all). The solver of ``sampling`` is not
    used; a step that ends at level 0 goes to the clean estimate and draws nothing.
    """
    sigmas = model.sigmas(sampling)
    steps, stochastic = len(sigmas) - 1, stochastic_steps(sigmas)
    x = model.start(noise, sigmas[0])
    states, log_probs = [x.cpu()], []
    for index in range(steps):
        x0 = guided_denoise(model, x, sigmas[index], positive, negative, sampling.guidance, index / steps)
        if index == stochastic:
            x = advance(State(x, index), x0, sigmas, "euler").x
            break
        mean, std = transition(x, x0, sigmas[index], sigmas[index + 1])
        x = mean + std.to(mean.device) * draw(index)
        states.append(x.cpu())
        log_probs.append(log_prob(x, mean, std).cpu())
    return torch.stack(states), torch.stack(log_probs), model.decode(model.finish(x, sigmas[-1]), frames)
