"""LTX-Video (HaCohen et al. 2024, arXiv 2501.00103)."""

from typing import Any

from torch import Tensor, zeros

from ...clips import evenly
from ...conventions import FAMILIES
from ...model import Conditioning
from ..diffusers import unit
from ..parameterisation import Flow
from ..video import VideoModel


class LTXVideo(VideoModel):
    """T5 tokens, read by cross-attention with a mask, so that a negative may have any length; a latent is 8 frames of
    32x32 pixels.

    The VAE looks at frames together: all are decoded, whatever is asked for. It decodes without adding noise, as the
    pipeline does unless it is told a decoding timestep.
    """

    conventions = ("ltx-video",)
    network_class = "LTXVideoTransformer3DModel"
    reads_mask = True
    native_frames, frame_rate = 161, 25.0

    def __init__(self, pipeline: Any, name: str) -> None:
        self.frame_step = pipeline.vae_temporal_compression_ratio
        super().__init__(pipeline, name)
        if any(pipeline.vae.config.decoder_inject_noise):
            raise ValueError(
                "Got a VAE that adds noise of its own to each decoding (LTX-Video 0.9.1), expected one whose pictures "
                "depend on the latents alone. Try LTX-Video 0.9.0 or 0.9.5."
            )

    @property
    def _factor(self) -> int:
        return self.pipeline.vae_spatial_compression_ratio

    def _native_sides(self) -> tuple[int, int]:
        return 512, 704

    def _parameterisation(self) -> Flow:
        return Flow(self.pipeline.scheduler, to_zero=True)

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        return {"tokens": (self.pipeline.text_encoder.config.d_model, self.network.config.caption_channels)}

    def _encode(self, prompts: list[str]) -> Conditioning:
        length = min(FAMILIES["ltx-video"].length, self.pipeline.tokenizer.model_max_length)
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, max_sequence_length=length
        )
        return Conditioning(tokens, mask)

    def _predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        frames, height, width = x.shape[2:]
        output = self.network(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditioning.tokens,
            timestep=timestep,
            encoder_attention_mask=conditioning.mask,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.frame_step / self.frame_rate, self._factor, self._factor),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (frames, height, width))

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        vae = self.pipeline.vae
        mean, std = (part.to(latents)[None, :, None, None, None] for part in (vae.latents_mean, vae.latents_std))
        latents = (latents * std / vae.config.scaling_factor + mean).to(vae.dtype)
        time = zeros(len(latents)).to(latents) if vae.config.timestep_conditioning else None
        clip = unit(vae.decode(latents, time, return_dict=False)[0]).transpose(1, 2)
        return clip[:, evenly(clip.shape[1], frames)]
