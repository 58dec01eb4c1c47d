"""A diffusion model of a few numbers in closed form: whole trainings in milliseconds, in which everything matters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from reneg_core.clips import evenly
from reneg_core.embedding import NegativeEmbedding
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import Sampling, Size
from reneg_core.seeds import derive_seed

POWERS = {"model": 1.0, "leading": 1.5, "trailing": 2.0, "karras": 3.0}


class SmallModel:
    """x0 = tanh(what the tokens say + x / (1 + sigma)) on latents of 2x2 pixels in 3 channels.

    Every token, the mask, the pooled vector, the state and its level change the picture, none of them linearly. pooled:
    whether the text encoder gives a pooled vector. ``checkpointed`` notes what checkpointing was set to.
    """

    name, family, width, max_tokens, device = "small", "small", 3, None, torch.device("cpu")
    dtype = torch.float32

    def __init__(self, pooled: bool = False) -> None:
        self.pooled = pooled
        self.checkpointed: list[tuple[bool, bool]] = []

    def run(self, work: Callable[[Any], Any]) -> Any:
        return work(self)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        generators = [torch.Generator().manual_seed(derive_seed("small", prompt)) for prompt in prompts]
        rows = torch.stack([0.7 * torch.randn(9, generator=generator) for generator in generators])
        return Conditioning(rows[:, :6].reshape(-1, 2, 3), None, rows[:, 6:] if self.pooled else None)

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Sequence[Branch] = (Branch.POSITIVE,)
    ) -> Tensor:
        tokens, weights = conditioning.tokens, torch.tensor([1.0, 0.6])[None, :, None]
        said = tokens * weights if conditioning.mask is None else tokens * weights * conditioning.mask[..., None]
        said = said.sum(1) + (0 if conditioning.pooled is None else 0.5 * conditioning.pooled)
        pattern = torch.linspace(0.4, 1.0, x[0, 0].numel()).reshape(x.shape[-2:])
        level = sigma.reshape(-1, 1, 1, 1)
        return torch.tanh(said[:, :, None, None] * pattern + x / (1 + level))

    def sigmas(self, sampling: Sampling) -> Tensor:
        return 4 * torch.linspace(1, 0, sampling.steps + 1) ** POWERS[sampling.spacing]

    def noise(self, seeds: Sequence[int], size: Size = Size()) -> Tensor:  # noqa: B008
        shape = (3, (size.height or 4) // 2, (size.width or 4) // 2)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise * sigma

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        return torch.sigmoid(1.5 * latents)

    def pixels(self, size: Size = Size(), frames: int = 0) -> int:  # noqa: B008
        return (size.height or 4) * (size.width or 4)

    def checkpointing(self, enabled: bool, decoder: bool | None = None) -> None:
        self.checkpointed.append((enabled, enabled if decoder is None else decoder))

    def digest(self) -> str:
        return "5" * 64

    def contents(self) -> dict[str, str]:
        return {"denoiser": self.digest()}


def start_of(model: SmallModel, masked: bool = False) -> NegativeEmbedding:
    """The empty prompt as an embedding; masked: attending to its first token only."""
    empty = model.encode([""])
    mask = torch.tensor([[1, 0]]) if masked else None
    return NegativeEmbedding(empty.tokens, model.family, mask, empty.pooled)


class SmallVideo(SmallModel):
    """The same with frames: x0 of frame f is that of the picture times a factor that rises from 0.5 to 1."""

    frame_rate = 8.0

    def noise(self, seeds: Sequence[int], size: Size = Size()) -> Tensor:  # noqa: B008
        rows = [
            SmallModel.noise(self, [derive_seed("frame", seed, f) for seed in seeds]) for f in range(size.frames or 5)
        ]
        return torch.stack(rows, dim=2)

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: Conditioning, *branches: Any) -> Tensor:
        level = sigma.reshape(-1).expand(len(x))
        found = [SmallModel.denoise(self, frame, level, conditioning) for frame in x.unbind(2)]
        return torch.stack(found, dim=2) * torch.linspace(0.5, 1, len(found))[:, None, None]

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        return super().decode(latents[:, :, evenly(latents.shape[2], frames)].transpose(1, 2))
