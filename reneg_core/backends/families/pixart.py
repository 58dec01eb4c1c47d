"""PixArt-alpha (Chen et al. 2023, arXiv 2310.00426) and PixArt-Sigma (arXiv 2403.04692)."""

import torch
from torch import Tensor

from ...conventions import FAMILIES
from ...model import Conditioning
from ..diffusers import DiffusersModel
from ..parameterisation import VariancePreserving


class PixArt(DiffusersModel):
    """T5 tokens, read by cross-attention with a mask, so that a negative may have any length.

    The captions are lower-cased and not otherwise cleaned; sizes are used as they are asked for, without binning.
    """

    conventions = ("t5-xxl",)
    network_class = "PixArtTransformer2DModel"
    reads_mask = True
    patch = 2

    def _parameterisation(self) -> VariancePreserving:
        return VariancePreserving(self.pipeline.scheduler)

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        return {"tokens": (self.pipeline.text_encoder.config.d_model, self.network.config.caption_channels)}

    def _encode(self, prompts: list[str]) -> Conditioning:
        length = min(FAMILIES[self.conventions[0]].length, self.pipeline.tokenizer.model_max_length)
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, max_sequence_length=length
        )
        return Conditioning(tokens, mask)

    def _predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        output = self.network(
            x,
            encoder_hidden_states=conditioning.tokens,
            encoder_attention_mask=conditioning.mask,
            timestep=timestep,
            added_cond_kwargs=self._size(x),
            return_dict=False,
        )[0]
        return output[:, : x.shape[1]]  # the other half, where there is one, is the learned variance

    def _size(self, x: Tensor) -> dict[str, Tensor | None]:
        """The picture's sides and their ratio, which the 1024-pixel PixArt-alpha is told."""
        if not self.network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pipeline.vae_scale_factor for side in x.shape[-2:])
        found = {"resolution": [height, width], "aspect_ratio": [height / width]}
        return {name: torch.tensor([row] * len(x), dtype=x.dtype, device=x.device) for name, row in found.items()}


class PixArtSigma(PixArt):
    """As PixArt-alpha, with longer prompts and without being told the size."""

    conventions = ("pixart-sigma",)
