"""A model with LoRAs in it: the text encoders' own (TexForce), and whatever else diffusers loads."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..texforce.adapter import require_peft
from ..texforce.lora import CONFIG, TextLora, load_text_lora
from .diffusers import DiffusersModel
from .lora_terms import Weighted


def with_loras(model: DiffusersModel, loras: Sequence[Weighted]) -> DiffusersModel:
    """``model`` with ``loras`` merged into its weights; ``model`` itself stays as it is.

    Parts that a LoRA changes are copies, the others are shared: for text encoders' LoRAs only what they change is held
    twice. Errors: FileNotFoundError; ImportError without PEFT for a LoRA of other parts; ValueError for one of another
    model.
    """
    if not loras:
        return model
    pipeline = copy.copy(model.pipeline)
    for one in loras:
        if _is_text_lora(Path(one.path)):
            _merge(pipeline, load_text_lora(one.path), one)
        else:
            _loaded(pipeline, one)
    return type(model)(pipeline, " + ".join([model.name, *(Path(one.path).name for one in loras)]))


def merged(model: DiffusersModel, lora: TextLora, weight: float = 1.0) -> DiffusersModel:
    """``model`` with the text encoders' ``lora`` in its weights; ``model`` itself stays. Errors: ValueError for another
    encoder's."""
    pipeline = copy.copy(model.pipeline)
    _merge(pipeline, lora, Weighted("memory", weight))
    return type(model)(pipeline, f"{model.name} + LoRA")


def _is_text_lora(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    if path.is_dir() or (path.parent / CONFIG).is_file() or not path.exists():
        return True
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return all(key.startswith(("text_encoder", "lora_te")) for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return True  # whose reader says what is wrong


def _merge(pipeline: Any, lora: TextLora, one: Weighted) -> None:
    """Give ``pipeline`` encoders with ``lora`` in them; what it does not change is shared with the originals."""
    changes: dict[str, dict[nn.Parameter, torch.Tensor]] = {}
    for name, delta in lora.deltas().items():
        encoder, _, inside = name.partition(".")
        weight = _weight(getattr(pipeline, encoder, None), inside)
        if weight is None or weight.shape != delta.shape:
            has = "it does not have" if weight is None else f"has {list(weight.shape)} numbers"
            raise ValueError(
                f"Got a LoRA in {one.path} of {list(delta.shape)} numbers for {name}, which in this model {has}. "
                "Expected one that was made for its text encoder."
            )
        tuned = weight.float() + one.weight * delta.to(weight.device)
        changes.setdefault(encoder, {})[weight] = tuned.to(weight.dtype)
    for encoder, tuned in changes.items():
        setattr(pipeline, encoder, _copied(getattr(pipeline, encoder), tuned))


def _weight(encoder: nn.Module | None, inside: str) -> nn.Parameter | None:
    for name in (inside, inside.removeprefix("text_model.")):
        try:
            return encoder.get_submodule(name).weight
        except AttributeError:
            continue
    return None


def _copied(module: nn.Module, changes: Mapping[nn.Parameter, torch.Tensor]) -> nn.Module:
    """A copy that holds the tensors of ``module`` itself but for the changed ones."""
    memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    memo |= {id(old): nn.Parameter(new, requires_grad=False) for old, new in changes.items()}
    return copy.deepcopy(module, memo)


def _loaded(pipeline: Any, one: Weighted) -> None:
    """Whatever diffusers reads from the file, merged into copies of the networks."""
    require_peft()
    for name in ("unet", "transformer", "text_encoder", "text_encoder_2"):
        if isinstance(getattr(pipeline, name, None), nn.Module):
            setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)))
    path = Path(one.path)
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    except (RuntimeError, ValueError, KeyError, OSError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"Got a LoRA in {path} that diffusers cannot load into this model ({reason}).") from error
    pipeline.fuse_lora(lora_scale=one.weight)
    pipeline.unload_lora_weights()
