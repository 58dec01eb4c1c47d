"""Rewards with known answers, and models that note or change what passes through them, for tests."""

from typing import Any

import torch
from torch import Tensor

from reneg_core.rewards import Reward


class Curved(Reward):
    """A smooth reward that differs per prompt: minus the squared distance of the picture to a pattern of the prompt."""

    name = "curved"

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        rows = torch.linspace(0, 3, images.shape[-2], dtype=images.dtype, device=images.device)
        phase = torch.tensor([float(len(p)) for p in prompts], dtype=images.dtype, device=images.device)
        pattern = 0.5 + 0.4 * torch.sin(rows[None] + phase[:, None])
        return -10 * (images - pattern[:, None, :, None]).square().mean((1, 2, 3)) + images[:, 0].std((1, 2))


class Constant(Reward):
    """The same score for everything."""

    name = "constant"

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        return images.mean((1, 2, 3)) * 0 + 1


class Wrapped:
    """Passes everything on to a model; for subclasses that change one thing."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, work: Any) -> Any:
        return work(self)


class Levels(Wrapped):
    """A model whose schedule is what it is told, whatever the sampling says."""

    def __init__(self, model: Any, levels: Tensor) -> None:
        super().__init__(model)
        self.levels = levels

    def sigmas(self, sampling: Any) -> Tensor:
        return self.levels


class Recorder(Wrapped):
    """Notes the branches and the conditioning of every pass, every sampling asked for, and every noise seed."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.passes: list[tuple[Any, Any]] = []
        self.samplings: list[Any] = []
        self.seeds: list[int] = []

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: Any, branches: Any = None) -> Tensor:
        self.passes.append((branches, conditioning))
        return self._model.denoise(x, sigma, conditioning, branches)

    def sigmas(self, sampling: Any) -> Tensor:
        self.samplings.append(sampling)
        return self._model.sigmas(sampling)

    def noise(self, seeds: Any, *size: Any) -> Tensor:
        self.seeds += list(seeds)
        return self._model.noise(seeds, *size)
