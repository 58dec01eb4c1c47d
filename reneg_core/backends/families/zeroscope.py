"""ZeroScope v2 and ModelScope's text-to-video model (Wang et al. 2023, arXiv 2308.06571)."""

from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...clips import evenly
from ...model import Conditioning
from ...settings import NATIVE, Size
from ..video import VideoModel
from .stable_diffusion import StableDiffusion


class ZeroScope(VideoModel, StableDiffusion):
    """Stable Diffusion 2.x's text encoder, a UNet with layers over time, and a VAE that sees single frames: what is not
    asked for is not decoded."""

    conventions = ("openclip-h",)
    network_class = "UNet3DConditionModel"
    reads_mask = False
    load_options = VideoModel.load_options
    native_frames, frame_rate = 16, 8.0

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__(pipeline, name)
        pipeline.vae.enable_slicing()  # one frame after the other

    def _predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.network(x, timestep, encoder_hidden_states=conditioning.tokens, return_dict=False)[0]

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        chosen = latents[:, :, evenly(latents.shape[2], frames)].transpose(1, 2)
        return super().decode(chosen.flatten(0, 1)).unflatten(0, chosen.shape[:2])

    def pixels(self, size: Size = NATIVE, frames: int = 0) -> int:
        count = size.frames or self.native_frames
        return super().pixels(size) * min(frames or count, count) // count

    def _recompute(self, enabled: bool) -> None:
        """Diffusers has no checkpoints for this UNet: its blocks are recomputed one by one."""
        unet = self.network
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            block.__dict__.pop("forward", None)
            if enabled:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
