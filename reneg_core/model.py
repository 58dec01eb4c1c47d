"""The one abstraction: a diffusion model in the k-diffusion convention (Karras et al. 2022, arXiv 2206.00364).

The state is ``x = x0 + sigma * eps`` and a denoiser returns the clean estimate ``x0``. Training, adaptation,
evaluation, the command line and the ComfyUI nodes see a model only through :class:`DiffusionModel`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from .settings import NATIVE, Sampling, Size

T = TypeVar("T")


class Branch(IntEnum):
    """A branch of classifier-free guidance, by the numbers that ComfyUI's patches know it by."""

    POSITIVE = 0
    NEGATIVE = 1


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
    """Stack two conditionings along the batch.

    Errors: ValueError for a part that only one of them has, or for unequal token counts or widths: nothing is dropped.
    """
    parts = [(field.name, getattr(first, field.name), getattr(second, field.name)) for field in fields(Conditioning)]
    for name, a, b in parts:
        if (a is None) != (b is None):
            raise ValueError(f"Got one conditioning with {name} and one without; expected both or neither.")
        if a is not None and a.shape[1:] != b.shape[1:]:
            raise ValueError(f"Got {name} of shapes {list(a.shape)} and {list(b.shape)}, expected equal ones per row.")
    return Conditioning(*(None if a is None else torch.cat([a, b]) for _, a, b in parts))


@runtime_checkable
class DiffusionModel(Protocol):
    """A text-to-image (or video) model as the algorithms see it.

    ``name`` is for people and provenance; ``family`` names the text encoder (see
    :data:`reneg_core.embedding.FAMILIES`), ``width`` is its output width D and ``max_tokens`` the longest negative
    the denoiser takes (None: any); ``device`` is where tensors live. A model of video also has ``frame_rate``, frames a
    second.
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

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Sequence[Branch] = (Branch.POSITIVE,)
    ) -> Tensor:
        """Clean estimate ``x0 [B,C,h,w]`` from ``x [B,C,h,w]`` at noise level ``sigma`` (scalar or ``[B]``); of a video
        both are ``[B,C,F,h,w]``.

        branches: the branch of guidance that each of ``len(branches)`` equal consecutive parts of the rows belongs to;
        hosts and their patches treat the two differently. A joint pass is (NEGATIVE, POSITIVE), negative rows first.
        Errors: ValueError for a part of the conditioning that the network does not read.
        """
        ...

    def sigmas(self, sampling: Sampling) -> Tensor:
        """The noise levels ``[steps+1]`` for the sampling's steps, spacing and size, float32, descending; the last
        entry is 0 or, for the spacings that follow a published sampler, the level at which that stops."""
        ...

    def noise(self, seeds: Sequence[int], size: Size = NATIVE) -> Tensor:
        """Standard normal latents ``[len(seeds),C,h,w]`` for pictures of ``size``, ``[len(seeds),C,F,h,w]`` for videos.
        Row i depends on ``seeds[i]`` only: the same on every device and in every batch."""
        ...

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """The state at the first noise level made from standard normal ``noise``."""
        ...

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The latents to decode made from the state at the schedule's last noise level."""
        ...

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        """Pictures ``[B,3,H,W]`` in [0,1]; differentiable (the gradient is zero where a pixel saturates).

        Of a video ``[B,T,3,H,W]``: all frames, or ``frames`` of them (:func:`reneg_core.clips.evenly`).
        """
        ...

    def pixels(self, size: Size = NATIVE, frames: int = 0) -> int:
        """How many pixels :meth:`decode` computes for one row of latents of ``size``."""
        ...

    def checkpointing(self, enabled: bool, decoder: bool | None = None) -> None:
        """Recompute activations in the backward pass of the denoiser, and of the decoder (None: likewise), to save
        memory."""
        ...

    def digest(self) -> str:
        """A SHA-256 that tells this model's denoiser from others', for provenance."""
        ...

    def contents(self) -> dict[str, str]:
        """What a run with this model rests on, by part in words: "denoiser", "text encoder", "VAE", "precision" and the
        like; weights as :func:`reneg_core.digests.digest_of` gives them. A run goes on only with equal ones."""
        ...


@runtime_checkable
class ForeseeingModel(DiffusionModel, Protocol):
    """A model that makes room on its device once it knows what prompts are coming."""

    def foreseeing(self, coming: Callable[[], Iterable[str]]) -> AbstractContextManager[None]:
        """A context in which :meth:`encode` says each prompt once and keeps it (:class:`reneg_core.texts.Texts`), and
        in which the text encoders are not on the device but to encode. Nothing may be tuned in them within.

        coming: the prompts that will be asked for from now on, in their order.
        """
        ...


@runtime_checkable
class TunableModel(DiffusionModel, Protocol):
    """A model whose text encoders can be tuned, CLIP's as they are."""

    def text_encoders(self) -> Mapping[str, nn.Module]:
        """The encoders by diffusers' names (``text_encoder``, ``text_encoder_2``), as :meth:`encode` runs them: what
        is changed in them it says from then on."""
        ...

    def encode(self, prompts: Sequence[str], gradient: bool = False) -> Conditioning:
        """As :class:`DiffusionModel`'s; gradient: recorded, with respect to what requires it in the encoders."""
        ...
