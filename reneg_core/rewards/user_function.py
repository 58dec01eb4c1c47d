"""A function of the user's as a reward, by "module:function": a detector's confidence, a count, anything."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from reneg_core.rewards.base import Reward
from reneg_core.rewards.checkpoint import Placement
from reneg_core.rewards.weights import Source

Function = Callable[[Tensor, list[str]], object]
"""Pictures ``[B,3,H,W]`` in [0,1] and B prompts to B numbers, higher is better."""


class UserFunction(Reward):
    """Calls ``function(images, prompts)``, without a gradient; it may return a tensor or a list of B numbers."""

    differentiable = False

    def __init__(self, function: Function, name: str) -> None:
        super().__init__()
        self.function, self.name = function, name

    @classmethod
    def load(cls, source: Source, placement: Placement, **options: object) -> "UserFunction":
        """Import ``options["function"]``; ValueError for what is not there or cannot be called."""
        name = str(options["function"])
        module, _, attribute = name.partition(":")
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"Got the reward {name!r}, which cannot be imported ({error}). Expected module:function, with the "
                "module where python finds it, for example through PYTHONPATH."
            ) from error
        if not callable(function):
            raise ValueError(f"Got {type(function).__name__} for the reward {name!r}, expected a function.")
        return cls(function, name)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            found = self.function(images.detach(), list(prompts))
        return torch.as_tensor(found, dtype=torch.float32, device=images.device)
