"""A CLIP's text encoders while they are tuned: a private copy, whose output has a gradient."""

import copy
from collections.abc import Mapping
from typing import Any

import comfy.model_management as memory
import torch
from torch import Tensor, nn

from reneg_core.model import Conditioning

from .checks import check_loaded
from .probing import resident_clone
from .tensors import repair
from .text import encode_alone, family_of

ENCODERS = {
    "clip-l": {"text_encoder": "clip_l"},
    "openclip-h": {"text_encoder": "clip_h"},
    "sdxl": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "width-128": {"text_encoder": "clip_l"},
}
"""By family: diffusers' name of each text encoder, and the host's."""


def require_tunable(clip: Any) -> Mapping[str, str]:
    """The encoders of a CLIP that can be tuned, by diffusers' names as the host calls them; ValueError for others."""
    family = family_of(clip)
    if family not in ENCODERS:
        raise ValueError(
            f"Got a CLIP of {family}, whose text encoders cannot be tuned here. Expected that of Stable Diffusion 1.x, "
            "2.x or XL, whose text encoders are CLIP's."
        )
    return ENCODERS[family]


class TunedText:
    """A CLIP with encoders of its own, LoRAs and all, that stay on the device; the user's CLIP is left alone.

    encoders: the transformers by diffusers' names, frozen and with ordinary weights: what is changed in them,
    :meth:`encode` says from then on. Errors: ValueError for other encoders than CLIP's, and for a model that the host
    could load only in part.
    """

    def __init__(self, clip: Any) -> None:
        names, loaded = require_tunable(clip), resident_clone(clip)
        memory.load_models_gpu([loaded.patcher], force_full_load=True)
        check_loaded(loaded.patcher)
        text = copy.deepcopy(loaded.patcher.model)
        repair(text)
        text.requires_grad_(False).eval()
        self.encoders: dict[str, nn.Module] = {name: getattr(text, own).transformer for name, own in names.items()}
        for encoder in self.encoders.values():
            _keep_inputs(encoder)
        self._clip = loaded
        self._clip.cond_stage_model = text
        self._clip.load_model = lambda *tokens: None  # the copy is where it works, and no patcher knows of it

    def encode(self, prompt: str, gradient: bool) -> Conditioning:
        """One prompt as the host encodes it; gradient: recorded, by what requires it in the encoders."""
        return encode_alone(self._clip, prompt, gradient=gradient)


def _keep_inputs(encoder: nn.Module) -> None:
    """The host adds to a layer's state in place after its norms have seen it: they get a copy, which autograd keeps."""
    for layer in encoder.text_model.encoder.layers:
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.register_forward_pre_hook(_copied)


def _copied(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part.clone() if torch.is_grad_enabled() else part for part in inputs)
