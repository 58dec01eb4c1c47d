"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv 2112.10752)."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ...model import Conditioning
from ..attention import guide_attention
from ..diffusers import DiffusersModel
from ..parameterisation import VariancePreserving


class StableDiffusion(DiffusersModel):
    """One CLIP text encoder and a UNet with cross-attention, which attends by a mask where there is one."""

    conventions = ("clip-l", "openclip-h")
    network_class, denoiser = "UNet2DConditionModel", "unet"
    reads_mask = True
    load_options = MappingProxyType({"safety_checker": None, "requires_safety_checker": False})

    def __init__(self, pipeline: Any, name: str) -> None:
        super().__init__(pipeline, name)
        self._told: dict[str, Any] | None = None
        self.max_tokens = pipeline.tokenizer.model_max_length
        if self.network.config.time_cond_proj_dim:
            raise ValueError(
                "Got a UNet that is told the guidance scale (a distilled, latent-consistency one), which leaves the "
                "negative branch without effect; expected one that is used with classifier-free guidance."
            )

    def _parameterisation(self) -> VariancePreserving:
        return VariancePreserving(self.pipeline.scheduler)

    def text_encoders(self) -> dict[str, nn.Module]:
        """See :class:`~reneg_core.model.TunableModel`."""
        parts = self.pipeline.components
        return {name: parts[name] for name in ("text_encoder", "text_encoder_2") if parts.get(name) is not None}

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        given = self.pipeline.text_encoder.config.hidden_size
        return {"tokens": (given, self.network.config.cross_attention_dim)}

    def _encode(self, prompts: list[str]) -> Conditioning:
        """The last layer that the pipeline has, then the final norm: SD2.x pipelines ship their text encoder without
        its last layer, so this is the penultimate layer there."""
        tokens, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)
        return Conditioning(tokens)

    def attended(
        self, x: Tensor, sigma: Tensor, positive: Conditioning, negative: Conditioning, strength: float
    ) -> Tensor:
        """Clean estimate of one pass of the positive whose cross-attentions are guided away from the negative's tokens
        by ``strength``; see :func:`reneg_core.guidance.attend`. Differentiable in both; a pooled vector of the negative
        has no part in it. Errors: ValueError for a mask that hides tokens."""
        if any(part.mask is not None and not part.mask.all() for part in (positive, negative)):
            raise ValueError("Got a mask that hides tokens with attention guidance, expected none. Try without it.")
        guide_attention(self.network)
        self._told = {"negative": negative.tokens.to(self.device, self.dtype), "strength": strength}
        try:
            return self.denoise(x, sigma, replace(positive, mask=None))
        finally:
            self._told = None

    def _predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return self.network(
            x,
            timestep,
            encoder_hidden_states=conditioning.tokens,
            encoder_attention_mask=_in_dtype(conditioning),
            added_cond_kwargs=self._added(x, conditioning),
            cross_attention_kwargs=self._told,
            return_dict=False,
        )[0]

    def _added(self, x: Tensor, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """What the UNet is told beside the tokens."""
        return None


def _in_dtype(conditioning: Conditioning) -> Tensor | None:
    return None if conditioning.mask is None else conditioning.mask.to(conditioning.tokens.dtype)
