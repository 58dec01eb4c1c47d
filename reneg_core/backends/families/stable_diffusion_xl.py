"""Stable Diffusion XL (Podell et al. 2023, arXiv 2307.01952) and its small relatives (SSD-1B, Segmind-Vega, KOALA)."""

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...model import Conditioning
from .stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """Two CLIP text encoders side by side, the second one's pooled vector, and the picture's size as numbers.

    The empty prompt is encoded like any other (a pipeline that is given no negative prompt may take zeros instead).
    The original and the target size are both the size that is asked for, uncropped.
    """

    conventions = ("sdxl",)
    load_options = MappingProxyType({})

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__(pipeline, name)
        if self.dtype == torch.float16 and pipeline.vae.config.get("force_upcast"):
            pipeline.vae.to(torch.float32)

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        pipeline, unet = self.pipeline, self.network.config
        first, second = pipeline.text_encoder.config, pipeline.text_encoder_2.config
        pooled = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        return {
            "tokens": (first.hidden_size + second.hidden_size, unet.cross_attention_dim),
            "pooled": (second.projection_dim, pooled),
        }

    def _encode(self, prompts: list[str]) -> Conditioning:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        return Conditioning(tokens, None, pooled)

    def _added(self, x: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        height, width = (side * self.pipeline.vae_scale_factor for side in x.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device)
        return {"text_embeds": conditioning.pooled, "time_ids": sizes.expand(len(x), -1)}
