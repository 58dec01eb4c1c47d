"""What differs between ComfyUI's versions: everything that is probed for is probed here and nowhere else."""

import dataclasses
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import comfy.model_management as memory
import comfy.sample
from comfy_api.latest import io
from torch import Tensor


def schema_fields() -> set[str]:
    """Fields of a node's schema; search aliases, for example, are newer than the oldest supported host."""
    return {field.name for field in dataclasses.fields(io.Schema)}


@cache
def folds_inputs(kind: type) -> bool:
    """Whether inputs of ``kind`` (io.Int, io.Float, ...) can be folded away as "advanced"."""
    return "advanced" in inspect.signature(kind.Input.__init__).parameters


def resident_clone(model: Any) -> Any:
    """A clone of a MODEL whose weights stay on the device as a whole: newer hosts stage them piece by piece, which no
    backward pass can use, and load the file again for a clone that does not.

    Errors: ValueError for a MODEL of a loader that did not tell the host how to load it again.
    """
    try:
        return model.clone(disable_dynamic=True)
    except TypeError:
        return model.clone()
    except RuntimeError as error:
        if "cached_patcher_init" not in str(error):
            raise
        raise ValueError(
            f"Got a {type(model.model.model_config).__name__} from a loader that ComfyUI cannot ask for it again as a "
            "whole, which training needs. Try ComfyUI's own loader (Load Checkpoint, Load Diffusion Model), or start "
            "ComfyUI with --disable-dynamic-vram."
        ) from error


def fitted_latent(model: Any, latent: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The samples of a LATENT as KSampler takes them, an empty one with the channels (and on newer hosts the size) of
    the model's own latents; and the rest of the LATENT as KSampler hands it on."""
    told = ("downscale_ratio_spacial", "downscale_ratio_temporal")
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {name: latent.get(name) for name in told if name in known}
    rest = {name: value for name, value in latent.items() if name not in ratios}
    return comfy.sample.fix_empty_latent_channels(model, latent["samples"], **ratios), rest


def loaded_in_part(patcher: Any) -> bool:
    """Whether the host left weights of a loaded model outside the device's memory."""
    return bool(getattr(patcher.model, "model_lowvram", False))


def keeps_state(network: Any) -> bool:
    """Whether parts of a network remember their last call, as newer decoders of video do: they cannot be run again."""
    return any(hasattr(module, "temporal_cache_state") for module in network.modules())


@contextmanager
def training_flag() -> Iterator[None]:
    """Newer hosts choose differentiable kernels while this flag is set."""
    if not hasattr(memory, "in_training"):
        yield
        return
    before, memory.in_training = memory.in_training, True
    try:
        yield
    finally:
        memory.in_training = before


def running_server() -> Any:
    """The host's server, or None where the pack is used as a library."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def resident_options(kind: type) -> dict[str, bool]:
    """What makes ``kind`` (the host's CLIP) keep its weights on the device as a whole, where it may do otherwise."""
    return {"disable_dynamic": True} if "disable_dynamic" in inspect.signature(kind).parameters else {}
