"""What this host can train rightly, and plain words for what it cannot."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .probing import loaded_in_part

PLAIN_GRADIENT = {"SD15", "SD20", "SD21UnclipL", "SD21UnclipH", "SDXL", "SDXLRefiner", "SSD1B", "Segmind_Vega", "SD3"}
DISTILLED = {"FluxSchnell"}
COMPLAINTS = ("no autograd formula", "does not require grad", "modified by an inplace", "Inference tensors")


def check_trainable(model: Any, vae: Any) -> None:
    """Raise ValueError with the reason for a model whose negative branch cannot be trained here."""
    network = model.model
    name, settings = type(network.model_config).__name__, network.model_config.unet_config
    if settings.get("guidance_embed") or name in DISTILLED:
        raise ValueError(
            f"{name} is guidance-distilled: it has no negative branch to train. Expected a model that is sampled with "
            "a CFG above 1, such as SD 1.5, SD 2.1, SDXL or SD 3."
        )
    if network.latent_format.latent_dimensions != 2:
        raise ValueError(f"{name} makes video or audio; training here is for images; sampling works.")
    channels = network.latent_format.latent_channels
    if network.concat_keys or settings.get("in_channels", channels) != channels:
        raise ValueError(
            f"{name} needs more than text (an inpainting, depth or edit model), expected a plain text-to-image model."
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


def check_mask_is_read(name: str, mask: Tensor | None, encoded: Mapping[str, Any]) -> None:
    """Refuse a mask that the model's processed conditions ``encoded`` lack: it would attend to what is masked.

    A mask of ones says nothing, and some models drop it.
    """
    if mask is not None and not bool(mask.all()) and not any("mask" in key for key in encoded):
        raise ValueError(
            f"Got a mask with {int((mask == 0).sum())} tokens left out, which {name} does not read; expected none. "
            "Try an embedding without its masked tokens."
        )


def needs_cloning(model: Any) -> bool:
    """Whether the architecture may change saved tensors in place, so that only cloning checkpoints are right."""
    return type(model.model.model_config).__name__ not in PLAIN_GRADIENT


@contextmanager
def explained(patcher: Any) -> Iterator[None]:
    """Turn autograd's complaints about the host's kernels into a reason and a way out; all else passes unchanged."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        if not any(part in text for part in COMPLAINTS):
            raise
        name = type(patcher.model.model_config).__name__
        raise ValueError(
            f"This version of ComfyUI cannot compute the gradient of {name} ({text.splitlines()[0][:160]}). Expected "
            "differentiable operations: try a newer ComfyUI, remove compile or quantised-attention nodes before the "
            "model, or another architecture."
        ) from error
