"""What the picture is decoded by that a gradient comes from. Validations and finished pictures have the model's own
decoder and the whole picture, whatever is set here.

At large pictures the decoder's activations are most of what a gradient point holds. Recomputing them costs a forward
pass and changes no number; a tiny decoder and a crop have a gradient of their own, which ``benchmarks/decoders.py``
compares with the full one.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backends.tiny_decoder import TinyDecoder, load_tiny_decoder
from ..model import DiffusionModel
from ..seeds import derive_seed

if TYPE_CHECKING:
    from .config import AdaptConfig, LoopConfig

Decode = Callable[[Tensor, int, Sequence[int]], Tensor]
"""Latents, and how many of a video's frames, to pictures, as :meth:`DiffusionModel.decode`; last, which rows of the
batch they are."""
AUTO, FULL, RECOMPUTED, TINY, CROP = "auto", "full", "recomputed", "tiny", "crop"
EXACT = (AUTO, FULL, RECOMPUTED)
"""With the same gradient: a run may change between these."""
PAYS = 2**18
"""Pixels decoded in one pass from which ``auto`` recomputes: a picture of 512x512, or four of a quarter. As
:mod:`.footprint` computes for one picture of Stable Diffusion 1.5 in bf16 with HPSv2.1, that takes a fifth off a step's
peak at 512x512 (7.5 to 6.0 GiB) and a tenth at 256x256."""
MARGIN = 4
"""Latents on each side of a crop that are decoded with it and cut off."""


@dataclass(frozen=True)
class Decoder:
    """The setting ``decoder`` taken apart. name: one of the above; file: of a tiny decoder; share: of each side of the
    picture that a crop has."""

    name: str = AUTO
    file: str = ""
    share: float = 1.0

    @classmethod
    def read(cls, text: str) -> "Decoder":
        """Errors: ValueError for what is none."""
        name, colon, value = text.partition(":")
        if text in EXACT:
            return cls(text)
        if name == TINY and value:
            return cls(name, value)
        try:
            share = float(value) if name == CROP and colon else 0.0
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            raise ValueError(
                f"got {text!r}, expected {', '.join(EXACT)}, tiny:FILE or crop:SHARE, a share of each side between 0 "
                "and 1, for example crop:0.5."
            )
        return cls(name, share=share)

    @property
    def gradient(self) -> str:
        """What of it a gradient depends on, "" for :data:`EXACT`; a tiny decoder is told by its weights, elsewhere."""
        return {TINY: TINY, CROP: f"{CROP}:{self.share}"}.get(self.name, "")

    def recomputes(self, pixels: int) -> bool:
        """Whether the decoder's activations are recomputed where a pass decodes ``pixels``; a crop's always are."""
        return self.name in (RECOMPUTED, CROP) or (self.name == AUTO and pixels >= PAYS)

    def load(self, model: DiffusionModel) -> "Decoding":
        """Ready for ``model``, which must be set up.

        Errors: those of :func:`load_tiny_decoder`; ValueError for a tiny decoder that makes other pictures.
        """
        if self.name != TINY:
            return Decoding(self.share)
        tiny = load_tiny_decoder(self.file, model.device, getattr(model, "dtype", torch.float32))
        noise = model.noise([0])
        latents = noise.new_zeros(*noise.shape[:-2], 8, 8)
        with torch.no_grad():
            made, expected = (list(decode(latents, 0).shape[1:]) for decode in (tiny, model.decode))
        if made != expected:
            raise ValueError(
                f"Got pictures {made} from the tiny decoder {tiny.name} where {model.name} makes {expected} of the "
                "same latents, expected one that was distilled from this model's decoder."
            )
        return Decoding(tiny=tiny)


@dataclass(frozen=True)
class Decoding:
    """A :class:`Decoder` whose weights are loaded."""

    share: float = 1.0
    tiny: TinyDecoder | None = None

    def parameters(self) -> list[Tensor]:
        """Weights beside the model's."""
        return list(self.tiny.network.decoder.parameters()) if self.tiny else []

    def contents(self) -> dict[str, str]:
        """What a gradient rests on beside the model, by its weights."""
        return {"tiny decoder": self.tiny.digest()} if self.tiny else {}

    def notes(self) -> dict[str, str]:
        """What the file of a result says of it: nothing where the gradient is the full decoder's."""
        if self.tiny:
            return {"decoder": f"{TINY}:{self.tiny.name}", "tiny decoder": self.tiny.digest()}
        return {"decoder": f"{CROP}:{self.share}"} if self.share < 1 else {}

    def of(self, model: DiffusionModel, seeds: Sequence[int]) -> Decode:
        """For rows of a batch of as many as there are ``seeds``, which say where each is cropped."""

        def decode(latents: Tensor, frames: int, rows: Sequence[int]) -> Tensor:
            if self.tiny:
                return self.tiny(latents, frames)
            if self.share == 1:
                return model.decode(latents, frames)
            return cropped(model, self.share, [seeds[row] for row in rows], latents, frames)

        return decode


def cropped(model: DiffusionModel, share: float, seeds: Sequence[int], latents: Tensor, frames: int) -> Tensor:
    """A piece of each picture, ``share`` of its height and of its width (rounded to latents), where the row's seed puts
    it: as likely in one place as in another.

    It is decoded with :data:`MARGIN` latents around it. A decoder that attends to the whole picture, or normalises over
    it, makes a slightly other picture of a piece. Gradients are zero at the latents outside.
    """
    sides = latents.shape[-2:]
    kept = [max(1, round(share * side)) for side in sides]
    seen = [min(side, part + 2 * MARGIN) for side, part in zip(sides, kept, strict=True)]
    windows, inner = [], []
    for row, seed in zip(latents, seeds, strict=True):
        draw = random.Random(derive_seed("crop", seed))
        corners = [draw.randint(0, side - part) for side, part in zip(sides, kept, strict=True)]
        starts = [max(0, min(at - MARGIN, side - size)) for at, side, size in zip(corners, sides, seen, strict=True)]
        windows.append(row[..., starts[0] : starts[0] + seen[0], starts[1] : starts[1] + seen[1]])
        inner.append([at - start for at, start in zip(corners, starts, strict=True)])
    pictures = model.decode(torch.stack(windows), frames)
    scale = pictures.shape[-1] // seen[1]
    high, wide = (part * scale for part in kept)
    return torch.stack(
        [
            picture[..., top * scale : top * scale + high, left * scale : left * scale + wide]
            for picture, (top, left) in zip(pictures, inner, strict=True)
        ]
    )


@contextmanager
def recomputing(model: DiffusionModel, config: "LoopConfig | AdaptConfig") -> Iterator[None]:
    """While it lasts, backward passes recompute what ``config`` says."""
    pixels = config.micro_batch * model.pixels(config.sampling.size, config.judged_frames)
    model.checkpointing(config.checkpointing, config.checkpointing or Decoder.read(config.decoder).recomputes(pixels))
    try:
        yield
    finally:
        model.checkpointing(False)
