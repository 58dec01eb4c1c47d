"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv 2403.03206)."""

from typing import Any

from torch import Tensor

from ...conventions import FAMILIES
from ...model import Conditioning
from ..diffusers import DiffusersModel
from ..parameterisation import Flow


class StableDiffusion3(DiffusersModel):
    """Two CLIP encoders' tokens padded to T5's width, then T5's; joint attention without a mask. T5 may be left out,
    as in the pipeline: its tokens are zeros then."""

    conventions = ("sd3",)
    network_class = "SD3Transformer2DModel"
    shifted_vae = True
    optional = ("text_encoder_3", "tokenizer_3")

    def __init__(self, pipeline: Any, name: str) -> None:
        self.patch = pipeline.transformer.config.patch_size
        super().__init__(pipeline, name)

    def _parameterisation(self) -> Flow:
        return Flow(self.pipeline.scheduler, to_zero=False)

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        pipeline, expected = self.pipeline, self.network.config
        t5 = pipeline.text_encoder_3.config.d_model if pipeline.text_encoder_3 else expected.joint_attention_dim
        clips = sum(part.config.projection_dim for part in (pipeline.text_encoder, pipeline.text_encoder_2))
        return {"tokens": (t5, expected.joint_attention_dim), "pooled": (clips, expected.pooled_projection_dim)}

    def _encode(self, prompts: list[str]) -> Conditioning:
        pipeline = self.pipeline
        room = FAMILIES["sd3"].length - 77
        tokens, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            prompts,
            prompts,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=min(room, pipeline.tokenizer_3.model_max_length) if pipeline.tokenizer_3 else room,
        )
        return Conditioning(tokens, None, pooled)

    def _predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=conditioning.tokens,
            pooled_projections=conditioning.pooled,
            return_dict=False,
        )[0]
