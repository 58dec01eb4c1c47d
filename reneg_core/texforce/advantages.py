"""How much better a picture is than others of its prompt: running statistics of the rewards, prompt by prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor

EPSILON = 1e-6


class PromptStatistics:
    """The last rewards of every prompt (DDPO, Black et al. 2024, arXiv 2305.13301, section 5.3).

    prompts: how many there are; buffer: rewards kept of each; minimum: of how many a prompt's own mean and spread are
    trusted; before, those of the whole batch stand in. tensors: to go on from, as :attr:`tensors` gave them.
    """

    def __init__(self, prompts: int, buffer: int, minimum: int, tensors: dict[str, Tensor] | None = None) -> None:
        self.minimum = minimum
        self.rewards = torch.zeros(prompts, buffer, dtype=torch.float64)
        self.counts = torch.zeros(prompts, dtype=torch.int64)
        if tensors:
            self.rewards.copy_(tensors["rewards"])
            self.counts.copy_(tensors["counts"])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Copies of what is kept: ``rewards [prompts,buffer]`` float64, ``counts [prompts]`` of all that ever came."""
        return {"rewards": self.rewards.clone(), "counts": self.counts.clone()}

    def advantages(self, prompts: Sequence[int], rewards: Tensor) -> Tensor:
        """Take up ``rewards [B]`` of the prompts with these indices; ``(reward - mean) / std`` of each, ``[B]``."""
        rewards = rewards.double()
        for prompt, reward in zip(prompts, rewards, strict=True):
            self.rewards[prompt, self.counts[prompt] % self.rewards.shape[1]] = reward
            self.counts[prompt] += 1
        found = torch.empty_like(rewards)
        everyone = _moments(rewards)
        for place, prompt in enumerate(prompts):
            kept = min(int(self.counts[prompt]), self.rewards.shape[1])
            mean, std = _moments(self.rewards[prompt, :kept]) if kept >= self.minimum else everyone
            found[place] = (rewards[place] - mean) / (std + EPSILON)
        return found


def _moments(rewards: Tensor) -> tuple[Tensor, Tensor]:
    return rewards.mean(), rewards.std(correction=0)
