"""What this host can train rightly, and plain words for what it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .families import facts_of, family_of_model, name_of
from .probing import loaded_in_part

DISTILLED = {"FluxSchnell"}
COMPLAINTS = ("no autograd formula", "does not require grad", "modified by an inplace", "Inference tensors")


def check_trainable(model: Any, vae: Any) -> None:
    """Raise ValueError with the reason for a model whose negative branch cannot be trained here."""
    network, family, name = model.model, family_of_model(model), name_of(model)
    settings = network.model_config.unet_config
    if (settings.get("guidance_embed") or name in DISTILLED) and not facts_of(model).real_cfg:
        raise ValueError(
            f"Got a {name}, which as published is guidance-distilled: it is sampled at a CFG of 1, where there is no "
            "negative branch to train. If this one is sampled with more, say so with Model For Training (real_cfg)."
        )
    channels = network.latent_format.latent_channels
    if network.concat_keys or settings.get("in_channels", channels) not in (channels, channels * family.packed):
        raise ValueError(
            f"{name} needs more than text (an inpainting, depth or edit model), expected one that is given text alone."
        )
    if channels != vae.latent_channels:
        raise ValueError(
            f"Got a VAE of {vae.latent_channels} latent channels for a model of {channels}: connect its own VAE."
        )


def check_loaded(patcher: Any) -> None:
    """Refuse a model that the host could load only in part: its gradient would copy every weight."""
    if loaded_in_part(patcher):
        raise ValueError(
            "The model does not fit into memory as a whole, which training needs. Try a smaller picture or micro-batch,"
            " fp8 weights, or free memory (Manager: unload models)."
        )


@contextmanager
def explained(patcher: Any) -> Iterator[None]:
    """Turn autograd's complaints about the host's kernels into a reason and a way out; all else passes unchanged."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if not any(part in text for part in COMPLAINTS):
            raise
        name = name_of(patcher)
        raise ValueError(
            f"This version of ComfyUI cannot compute the gradient of {name} ({text.splitlines()[0][:160]}). Expected "
            "differentiable operations: try a newer ComfyUI, remove compile or quantised-attention nodes before the "
            "model, or another architecture."
        ) from error
