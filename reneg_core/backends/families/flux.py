"""Flux with a real negative branch (``true_cfg_scale`` in diffusers)."""

from typing import Any

import torch
from torch import Tensor

from ...conventions import FAMILIES
from ...model import Conditioning
from ..diffusers import DiffusersModel
from ..parameterisation import Flow

DISTILLED_GUIDANCE = 3.5
"""What guidance-distilled weights are told in both branches, the pipeline's default; guidance itself acts beside it."""


class Flux(DiffusersModel):
    """T5 tokens without a mask and CLIP's pooled vector; joint attention over 2x2 packed latents.

    A negative branch costs a second pass, as everywhere; whether guidance does weights that were distilled to go
    without it any good is for the user to see.
    """

    conventions = ("flux",)
    network_class = "FluxTransformer2DModel"
    packing, patch = 4, 2
    shifted_vae = True

    def _parameterisation(self) -> Flow:
        return Flow(self.pipeline.scheduler, to_zero=True)

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        pipeline, expected = self.pipeline, self.network.config
        return {
            "tokens": (pipeline.text_encoder_2.config.d_model, expected.joint_attention_dim),
            "pooled": (pipeline.text_encoder.config.hidden_size, expected.pooled_projection_dim),
        }

    def _encode(self, prompts: list[str]) -> Conditioning:
        length = min(FAMILIES["flux"].length, self.pipeline.tokenizer_2.model_max_length)
        tokens, pooled, _ = self.pipeline.encode_prompt(
            prompts, prompts, device=self.device, max_sequence_length=length
        )
        return Conditioning(tokens, None, pooled)

    def _predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        output = self.network(
            hidden_states=packed(x),
            timestep=timestep.to(x.dtype) / 1000,
            encoder_hidden_states=conditioning.tokens,
            txt_ids=torch.zeros(conditioning.tokens.shape[1], 3, dtype=x.dtype, device=x.device),
            img_ids=positions(x),
            return_dict=False,
            **self._beside(x, conditioning),
        )[0]
        return unpacked(output, x.shape)

    def _beside(self, x: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """What the network is told beside the tokens."""
        told = {"pooled_projections": conditioning.pooled}
        if self.network.config.guidance_embeds:
            told["guidance"] = torch.full([len(x)], DISTILLED_GUIDANCE, device=x.device)
        return told


def packed(x: Tensor) -> Tensor:
    """Latents ``[B,C,h,w]`` as tokens ``[B,h/2*w/2,4C]``, a square of four to each."""
    batch, channels, height, width = x.shape
    squares = x.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(batch, height // 2 * (width // 2), channels * 4)


def unpacked(tokens: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`packed`."""
    batch, channels, height, width = shape
    squares = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(shape)


def positions(x: Tensor) -> Tensor:
    """Row and column of each token ``[h/2*w/2,3]``, as the rotary embedding takes them."""
    rows, columns = (torch.arange(side // 2, device=x.device) for side in x.shape[-2:])
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1).to(x.dtype)
