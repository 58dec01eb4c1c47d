"""Chroma, a Flux architecture that is used with classifier-free guidance."""

from typing import Any

import torch
from torch import Tensor

from ...conventions import FAMILIES
from ...model import Conditioning
from .flux import Flux


class Chroma(Flux):
    """T5 tokens with a mask that leaves the first padding token to attend to; no pooled vector.

    The mask is handed to the network as diffusers' pipeline does it, as numbers 0 and 1 that its attention adds to
    the scores: it weakens the padding and does not hide it.
    """

    conventions = ("chroma",)
    network_class = "ChromaTransformer2DModel"
    reads_mask = True

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        return {"tokens": (self.pipeline.text_encoder.config.d_model, self.network.config.joint_attention_dim)}

    def _encode(self, prompts: list[str]) -> Conditioning:
        length = min(FAMILIES["chroma"].length, self.pipeline.tokenizer.model_max_length)
        tokens, _, mask, *_ = self.pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return Conditioning(tokens, mask)

    def _beside(self, x: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        tokens = conditioning.tokens
        mask = torch.ones(tokens.shape[:2], device=x.device) if conditioning.mask is None else conditioning.mask
        picture = torch.ones(len(x), x.shape[-2] // 2 * (x.shape[-1] // 2), dtype=x.dtype, device=x.device)
        return {"attention_mask": torch.cat([mask.to(x.dtype), picture], dim=1)}
