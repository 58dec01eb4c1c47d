"""The shape of a MODEL's latents for a size in pixels, and their pictures by the VAE."""

from typing import Any

import torch
from torch import Tensor

from reneg_core.clips import evenly
from reneg_core.settings import Size

from .families import family_of_model, name_of
from .recompute import SEEDED


class Latents:
    """Latents of a MODEL and a VAE: ``[C,h,w]``, of an architecture of video ``[C,F,h,w]``.

    size: in pixels and frames where none is asked for.
    """

    def __init__(self, model: Any, vae: Any, size: Size) -> None:
        self._name, self._family, self._vae, self._size = name_of(model), family_of_model(model), vae, size
        self._format = model.model.latent_format

    @property
    def factor(self) -> int:
        """Pixels to a latent's side."""
        ratio = self._vae.downscale_ratio
        return ratio[-1] if isinstance(ratio, tuple | list) else ratio if isinstance(ratio, int) else 8

    def shape(self, size: Size) -> tuple[int, ...]:
        """For pictures of ``size``; ValueError for one that the architecture cannot make."""
        sides = (size.height or self._size.height, size.width or self._size.width)
        family, step = self._family, max(self.factor, self._family.step)
        if any(side < step or side % step for side in sides):
            raise ValueError(
                f"Got a picture of {sides[1]}x{sides[0]} pixels, expected multiples of {step} for {self._name}."
            )
        if sum(sides) / 2 < family.least:
            raise ValueError(
                f"Got a picture of {sides[1]}x{sides[0]} pixels, expected sides of {family.least} at least, or that on "
                f"average: ComfyUI cannot place smaller ones for {self._name}."
            )
        frames = self._frames(size.frames or self._size.frames or 1)
        return (self._format.latent_channels, *frames, sides[0] // self.factor, sides[1] // self.factor)

    def _frames(self, count: int) -> tuple[int, ...]:
        """Frames of a latent, nothing for an architecture of pictures."""
        if count != 1 and (self._format.latent_dimensions == 2 or self._family.still):
            raise ValueError(f"Got {count} frames for {self._name}, which makes single pictures.")
        if self._format.latent_dimensions == 2:
            return ()
        inner, outer = self._vae.downscale_ratio, self._vae.upscale_ratio
        frames = max(1, int(inner[0](count))) if isinstance(inner, tuple | list) else count
        whole = int(outer[0](frames)) if isinstance(outer, tuple | list) else frames
        if whole != count:
            raise ValueError(f"Got {count} frames for {self._name}, expected {whole} or another number that it makes.")
        return (frames,)

    def decode(self, raw: Tensor, frames: int = 0) -> Tensor:
        """Pictures ``[B,3,H,W]`` in [0,1] of the VAE's own latents, of several frames ``[B,T,3,H,W]``, with a gradient.

        frames: how many of a clip's, evenly spaced; 0 is all. A VAE of video may draw noise, always the same here.
        """
        vae = self._vae
        if raw.ndim == 4:
            return vae.process_output(vae.first_stage_model.decode(raw.to(vae.vae_dtype)).float()).clamp(0, 1)
        kind = raw.device.type if raw.device.type in SEEDED else "cuda"
        with torch.random.fork_rng([raw.device] if kind == raw.device.type else [], device_type=kind):
            torch.manual_seed(0)
            clip = vae.first_stage_model.decode(raw.to(vae.vae_dtype)).float().movedim(2, 1)
        chosen = clip[:, evenly(clip.shape[1], frames)]
        pictures = vae.process_output(chosen).clamp(0, 1)
        return pictures[:, 0] if clip.shape[1] == 1 else pictures
