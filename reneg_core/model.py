"""The one abstraction: a diffusion model in the k-diffusion convention (Karras et al. 2022, arXiv 2206.00364).

The state is ``x = x0 + sigma * eps`` and a denoiser returns the clean estimate ``x0``. Training, adaptation,
evaluation, the command line and the ComfyUI nodes see a model only through :class:`DiffusionModel`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Conditioning:
    """What the text encoder hands to the denoiser.

    tokens: ``[B,L,D]`` floating; mask: ``[B,L]`` (1 = attend) or None; pooled: ``[B,P]`` or None.
    """

    tokens: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply ``function`` to every tensor that is present."""
        return Conditioning(*(None if t is None else function(t) for t in (self.tokens, self.mask, self.pooled)))

    def expand(self, batch: int) -> "Conditioning":
        """One row repeated ``batch`` times without copying; a batch of that size is returned as it is."""
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(f"Got conditioning for {len(self)} prompts, expected 1 or {batch}.")
        return self.map(lambda t: t.expand(batch, *t.shape[1:]))

    def __getitem__(self, rows: slice | Tensor | Sequence[int]) -> "Conditioning":
        return self.map(lambda t: t[rows])

    def to(self, *args: object, **kwargs: object) -> "Conditioning":
        """Move or cast; the mask keeps its dtype."""
        moved = self.map(lambda t: t.to(*args, **kwargs))
        return moved if self.mask is None else replace(moved, mask=self.mask.to(moved.tokens.device))

    def detach(self) -> "Conditioning":
        return self.map(Tensor.detach)


def concat(first: Conditioning, second: Conditioning) -> Conditioning:
    """Stack two conditionings along the batch; both must have the same optional parts and token counts."""
    pairs = ((first.tokens, second.tokens), (first.mask, second.mask), (first.pooled, second.pooled))
    return Conditioning(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))


@runtime_checkable
class DiffusionModel(Protocol):
    """A text-to-image (or video) model as the algorithms see it.

    ``name`` is for people and provenance; ``family`` names the text encoder (see
    :data:`reneg_core.embedding.FAMILIES`), ``width`` is its output width D and ``max_tokens`` the longest negative
    the denoiser takes (None: any); ``device`` is where tensors live.
    """

    name: str
    family: str
    width: int
    max_tokens: int | None
    device: torch.device

    def run(self, work: Callable[["DiffusionModel"], T]) -> T:
        """Call ``work(model)`` with everything loaded and prepared; restore all of it whatever happens."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text to conditioning, one row per prompt, without gradient."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Clean estimate ``x0 [B,C,h,w]`` from ``x [B,C,h,w]`` at noise level ``sigma`` (scalar or ``[B]``)."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """The model's own schedule ``[steps+1]``, float32, descending; the last entry is 0 or the level at which
        the model's published sampler stops."""
        ...

    def noise(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        """Standard normal latents ``[len(seeds),C,h,w]`` for pictures of ``height`` x ``width`` pixels (None: the
        model's native size). Row i depends on ``seeds[i]`` only: the same on every device and in every batch."""
        ...

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The state at the first noise level made from standard normal ``noise``."""
        ...

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The latents to decode made from the state at the schedule's last noise level."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``[B,3,H,W]`` in [0,1]; differentiable (the gradient is zero where a pixel saturates)."""
        ...

    def checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass of the denoiser and the decoder to save memory."""
        ...

    def digest(self) -> str:
        """A SHA-256 that tells this model's weights from others', for provenance."""
        ...
