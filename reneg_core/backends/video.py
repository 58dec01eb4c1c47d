"""What makes a family one of video models: frames in the size, in the latents and in what is decoded."""

from dataclasses import replace
from typing import ClassVar

from ..settings import NATIVE, Size
from .diffusers import DiffusersModel


class VideoModel(DiffusersModel):
    """Clips: latents ``[B,C,F,h,w]``, decoded ``[B,T,3,H,W]``.

    native_frames: T where none is asked for, as the pipeline's own; frame_step: frames to a latent frame after the
    first; frame_rate: frames a second, of the clips that are written and, where it reads one, for the denoiser.
    """

    native_frames: ClassVar[int]
    frame_step: ClassVar[int] = 1
    frame_rate: ClassVar[float]

    def _latent_sides(self, size: Size) -> tuple[int, ...]:
        frames, step = size.frames or self.native_frames, self.frame_step
        if frames < 1 or (frames - 1) % step:
            raise ValueError(f"Got {frames} frames for {self.name}, expected one more than a multiple of {step}.")
        return (frames - 1) // step + 1, *super()._latent_sides(replace(size, frames=None))

    def pixels(self, size: Size = NATIVE, frames: int = 0) -> int:
        """Of all frames, for a VAE that looks at them together."""
        return super().pixels(size) * (size.frames or self.native_frames)
