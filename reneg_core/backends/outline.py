"""What a model reads, from its configurations alone: no weights are opened, and the networks have none."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..conventions import FAMILIES, family_of_width
from .diffusers import DiffusersModel
from .families.videocrafter import is_denoiser
from .loading import class_name, family_of, quiet_loading, resolve, unreadable

CONFIGURATIONS = ["*.json", "*.txt", "*.model"]
"""What is fetched of a model on a hub: configurations and tokenizers."""


@dataclass(frozen=True)
class Outline:
    """What a model reads of an embedding.

    name; kind: the pipeline's class; family: its text convention; width: of the tokens; pooled: of the pooled vector,
    0 for none; max_tokens: the longest negative, None for any; reads_mask; layers: of the text encoder that gives the
    tokens, 0 where that is not known or not one encoder.
    """

    name: str
    kind: str
    family: str
    width: int
    pooled: int = 0
    max_tokens: int | None = None
    reads_mask: bool = False
    layers: int = 0


def outline(source: str | Path) -> Outline:
    """The outline of ``source``, named as for :func:`.loading.load_model`.

    Of a single file the keys and shapes are read, and of VideoCrafter2's UNet the configuration. Errors: those of
    ``load_model`` for what is not supported or whose parts do not belong together.
    """
    path = resolve(str(source))
    if path is not None and path.is_file():
        return _of_file(path, str(source))
    if path is not None and is_denoiser(path):
        return _of_denoiser(path, str(source))
    family_of(class_name(path, str(source)), str(source))
    with quiet_loading():
        return outline_of(_hollow(path or _fetched(str(source)), str(source)))


def outline_of(model: DiffusersModel) -> Outline:
    """The outline of a loaded model."""
    parts = [part for name, part in model.pipeline.components.items() if part and name.startswith("text_encoder")]
    layers = [_layers(part.config) for part in parts if _width(part.config) == model.width]
    return Outline(
        model.name, type(model.pipeline).__name__, model.family, model.width, model.widths.get("pooled", 0),
        model.max_tokens, model.reads_mask, layers[0] if layers else 0,
    )  # fmt: skip


def _width(config: Any) -> int:
    return getattr(config, "d_model", None) or config.hidden_size


def _layers(config: Any) -> int:
    return getattr(config, "num_layers", None) or config.num_hidden_layers


def _hollow(folder: Path, name: str) -> DiffusersModel:
    """The pipeline of ``folder`` with networks on the meta device: everything but numbers."""
    import diffusers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    kind = index["_class_name"]
    family = family_of(kind, name)
    parts: dict[str, Any] = {}
    try:
        for part, entry in index.items():
            if isinstance(entry, list):
                known = entry[0] in ("diffusers", "transformers") and family.has(part)
                parts[part] = _part(folder / part, *entry) if known else None
        pipeline = getattr(diffusers, kind)(**{**parts, **family.load_options})
    except Exception as error:  # configurations break their classes in many ways
        raise unreadable(name, error) from error
    return family(pipeline, name)


def _part(folder: Path, library: str, kind: str) -> Any:
    made = getattr(importlib.import_module(library), kind)
    if not issubclass(made, torch.nn.Module):
        return made.from_pretrained(folder)
    with torch.device("meta"):
        if library == "diffusers":
            return made.from_config(made.load_config(folder))
        return made(made.config_class.from_pretrained(folder))


def _fetched(source: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=CONFIGURATIONS))
    except (OSError, ValueError) as error:
        raise unreadable(source, error) from error


def _of_denoiser(folder: Path, name: str) -> Outline:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = int(config.get("cross_attention_dim", 1024))
    family = family_of_width(width, ("openclip-h",))
    kind = "VideoCrafter2's UNet in TextToVideoSDPipeline"
    return Outline(name, kind, family, width, max_tokens=FAMILIES["openclip-h"].length)


def _of_file(path: Path, name: str) -> Outline:
    from safetensors import safe_open

    kind = class_name(path, name)
    family = family_of(kind, name)
    with safe_open(path, framework="pt") as file:
        keys = [key for key in file.keys() if key.startswith("model.diffusion_model.")]  # noqa: SIM118
        attended = next((key for key in keys if key.endswith("attn2.to_k.weight")), None)
        if attended is None:
            raise ValueError(f"Got {path.name} without cross-attention in its denoiser, expected a whole checkpoint.")
        width = file.get_slice(attended).get_shape()[1]
        told = next((key for key in keys if key.endswith("label_emb.0.0.weight")), None)
        pooled = file.get_slice(told).get_shape()[1] - SIZES if told else 0
    return Outline(name, kind, family_of_width(width, family.conventions), width, pooled, 77, family.reads_mask)


SIZES = 6 * 256
"""How much of what Stable Diffusion XL is told beside the pooled vector are the picture's sizes."""
