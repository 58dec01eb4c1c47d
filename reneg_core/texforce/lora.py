"""A LoRA of text encoders as a value, and the layouts of files that hold one.

Written: the key layout of diffusers' ``load_lora_weights``, which ComfyUI's loader reads too, or that of kohya's
trainers, or PEFT's adapter folder. ``alpha / r`` is part of B in the first, so that there is nothing to misread.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..digests import digest_of
from ..embedding import Provenance
from ..files import write_tensors, write_text
from ..tensor_file import ADAPTER_LIMITS, read_tensors, require_plain

FORMAT = "reneg-text-lora"
FORMAT_VERSION = "1"
PARTS = ("lora_A", "lora_B")
ENCODERS = ("text_encoder", "text_encoder_2")
LAYOUTS = ("diffusers", "kohya")
CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
SPELLINGS = {
    "lora_A": "lora_A", "lora_B": "lora_B", "lora_down": "lora_A", "lora_up": "lora_B",
    "lora.down": "lora_A", "lora.up": "lora_B", "lora_linear_layer.down": "lora_A", "lora_linear_layer.up": "lora_B",
}  # fmt: skip
"""What the two factors of a layer are called in files."""
KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, SPELLINGS))})\.weight")
KOHYA = re.compile(r"lora_te([12]?)_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)")
LAYER = re.compile(r"(text_encoder(?:_2)?)\.text_model\.encoder\.layers\.\d+\.(?:self_attn|mlp)\.\w+")


def canonical(encoder: str, module: str) -> str:
    """A layer's name: ``text_encoder.text_model.encoder.layers.0.self_attn.q_proj``, whether or not the encoder's class
    has a ``text_model`` around its layers."""
    return f"{encoder}.text_model.{module.removeprefix('text_model.')}"


@dataclass(frozen=True)
class TextLora:
    """layers: by canonical name, ``A [r,in]`` and ``B [out,r]`` float32 with ``W + B A`` as the tuned weight.

    Construction refuses names that are no layers of a CLIP text encoder, shapes that do not fit together, and NaN or
    infinite values (ValueError).
    """

    layers: Mapping[str, tuple[Tensor, Tensor]]
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("Got no layers of a text encoder, expected at least one.")
        for name, (down, up) in self.layers.items():
            if not LAYER.fullmatch(name):
                raise ValueError(f"Got a LoRA for {name!r:.120}, expected layers of a CLIP text encoder only.")
            if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1]:
                raise ValueError(
                    f"Got A of shape {list(down.shape)} and B of {list(up.shape)} for {name}, expected [r, in] and "
                    "[out, r]."
                )
            if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
                raise ValueError(f"Got NaN or infinite values in the LoRA of {name}, expected finite numbers.")

    @property
    def encoders(self) -> list[str]:
        """Which encoders it is for, by diffusers' names."""
        return sorted({name.partition(".")[0] for name in self.layers})

    @property
    def rank(self) -> int:
        """The largest of its layers."""
        return max(len(down) for down, _ in self.layers.values())

    def digest(self) -> str:
        """SHA-256 over its layers."""
        return digest_of(dict(entry for name, pair in self.layers.items() for entry in _plain(name, pair)))

    def deltas(self) -> dict[str, Tensor]:
        """What it adds to each layer's weight, ``[out,in]``."""
        return {name: up @ down for name, (down, up) in self.layers.items()}

    def save(self, path: str | Path, layout: str = "diffusers") -> Path:
        """Write a ``.safetensors`` in one of :data:`LAYOUTS`, replacing what is there."""
        if layout not in LAYOUTS:
            raise ValueError(f"Got the layout {layout!r}, expected one of {', '.join(LAYOUTS)}.")
        tensors: dict[str, Tensor] = {}
        first = "lora_te1" if len(self.encoders) > 1 else "lora_te"
        for name, pair in self.layers.items():
            tensors |= _kohya(name, pair, first) if layout == "kohya" else dict(_plain(name, pair))
        provenance = json.dumps(asdict(self.provenance), sort_keys=True, default=dict)
        metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "provenance": provenance}
        return write_tensors(path, tensors, metadata)

    def save_adapters(self, folder: str | Path, wrapped: Mapping[str, bool]) -> list[Path]:
        """Write PEFT's adapter folders: ``folder`` itself for one encoder, one inside it for each of two.

        wrapped: by encoder, whether its class has a ``text_model`` around its layers, as PEFT must name them.
        """
        folder, written = Path(folder), []
        for encoder in self.encoders:
            place = folder / encoder if len(self.encoders) > 1 else folder
            write_text(place / CONFIG, json.dumps(self._peft_config(encoder), indent=2, sort_keys=True))
            tensors = {}
            for name, pair in self.layers.items():
                own = name.removeprefix(f"{encoder}.").removeprefix("" if wrapped[encoder] else "text_model.")
                if name.startswith(f"{encoder}."):
                    tensors |= dict(_plain(f"base_model.model.{own}", pair))
            written.append(write_tensors(place / WEIGHTS[0], tensors, {"format": "pt"}))
        return written

    def _peft_config(self, encoder: str) -> dict[str, Any]:
        own = {name: len(down) for name, (down, _) in self.layers.items() if name.startswith(f"{encoder}.")}
        rank = max(own.values())
        if min(own.values()) != rank:
            raise ValueError(f"Got layers of ranks {min(own.values())} to {rank}, expected one rank for PEFT's folder.")
        return {
            "peft_type": "LORA", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none",
            "target_modules": sorted({name.rpartition(".")[2] for name in own}), "inference_mode": True,
            "init_lora_weights": "gaussian", "base_model_name_or_path": self.provenance.base_model or None,
        }  # fmt: skip


def _plain(name: str, pair: tuple[Tensor, Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"{name}.{part}.weight", tensor) for part, tensor in zip(PARTS, pair, strict=True)]


def _kohya(name: str, pair: tuple[Tensor, Tensor], first: str) -> dict[str, Tensor]:
    encoder, _, inside = name.partition(".")
    stem = f"{first if encoder == ENCODERS[0] else 'lora_te2'}_{inside.replace('.', '_')}"
    factors = {f"{stem}.{what}.weight": factor for what, factor in zip(("lora_down", "lora_up"), pair, strict=True)}
    return factors | {f"{stem}.alpha": torch.tensor(float(len(pair[0])))}


def load_text_lora(path: str | Path) -> TextLora:
    """Read a file of :data:`LAYOUTS`, or a PEFT adapter folder (or the file in it) as TexForce publishes them.

    Errors: FileNotFoundError; ValueError for what is damaged, hostile, or no LoRA of CLIP text encoders alone.
    """
    path = Path(path)
    if path.is_dir() and not (path / CONFIG).is_file():
        inside = {encoder: path / encoder for encoder in ENCODERS if (path / encoder / CONFIG).is_file()}
        if inside:
            return TextLora({n: pair for name, place in inside.items() for n, pair in _adapter(place, name).items()})
    if path.is_dir() or path.name in WEIGHTS:
        return TextLora(_adapter(path if path.is_dir() else path.parent, ENCODERS[0]), Provenance(source=path.name))
    if not path.is_file():
        raise FileNotFoundError(f"No LoRA at {path}. Expected a file, or a folder with {CONFIG}.")
    tensors, metadata = read_tensors(path, ADAPTER_LIMITS)
    return TextLora(_layers(tensors, path.name), _provenance(metadata, path.name))


def _adapter(folder: Path, encoder: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers of a PEFT adapter folder."""
    config = _peft_settings(folder / CONFIG)
    files = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"No {' or '.join(WEIGHTS)} in {folder}, expected one beside {CONFIG}.")
    tensors, _ = read_tensors(files[0], ADAPTER_LIMITS)
    renamed = {}
    for key, tensor in tensors.items():
        name = str(key).removeprefix("base_model.model.")
        renamed[canonical(encoder, name)] = tensor
    found = _layers(renamed, files[0].name)
    ranks = math.sqrt if config.get("use_rslora") else float
    return {name: (down, up * (config["lora_alpha"] / ranks(len(down)))) for name, (down, up) in found.items()}


def _peft_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"No {CONFIG} in {path.parent}, expected PEFT's adapter folder.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Got no valid JSON in {path} ({str(error)[:80]}).") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    odd = [name for name in ("use_dora", "alpha_pattern", "rank_pattern") if kind and config.get(name)]
    alpha = config.get("lora_alpha") if kind else None
    if kind != "LORA" or odd or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(
            f"Got {odd[0] if odd else f'peft_type {kind!r} and lora_alpha {alpha!r}'} in {path}, expected a plain LoRA."
        )
    return config


def _layers(tensors: Mapping[Any, Any], source: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The two factors of every layer, ``alpha / r`` taken into B where the file has an alpha."""
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        require_plain(f"{key!r:.100}", tensor)
        match, name = KEY.fullmatch(str(key)), str(key).removesuffix(".alpha")
        if match:
            halves.setdefault(_name(match[1], source), {})[SPELLINGS[match[2]]] = tensor.float()
        elif str(key).endswith(".alpha") and tensor.numel() == 1:
            alphas[_name(name, source)] = tensor.float().item()
        else:
            raise ValueError(f"Got the key {key!r:.100} in {source}, expected a LoRA of text encoders alone.")
    lacking = [name for name, pair in halves.items() if len(pair) < 2]
    if lacking:
        raise ValueError(f"Got half of a LoRA for {lacking[0]} in {source}, expected both factors.")
    pairs = {name: (pair["lora_A"], pair["lora_B"]) for name, pair in halves.items()}
    return {name: (down, up * (alphas.get(name, len(down)) / len(down))) for name, (down, up) in pairs.items()}


def _name(stem: str, source: str) -> str:
    """A file's name of a layer as the canonical one."""
    kohya = KOHYA.fullmatch(stem)
    if kohya:
        encoder = ENCODERS[kohya[1] == "2"]
        return f"{encoder}.text_model.encoder.layers.{kohya[2]}.{kohya[3]}.{kohya[4]}"
    encoder, dot, inside = stem.partition(".")
    if encoder in ENCODERS and dot:
        return canonical(encoder, inside)
    raise ValueError(
        f"Got a LoRA for {stem!r:.100} in {source}, expected layers of text encoders alone. Other parts are loaded "
        "with --lora, as diffusers reads them."
    )


def _provenance(metadata: Mapping[str, str], source: str) -> Provenance:
    """What our own files say, and the name of others'."""
    if metadata.get("format") != FORMAT:
        return Provenance(source=source)
    try:
        known = json.loads(metadata.get("provenance", "{}"))
        return Provenance(**{name: value for name, value in known.items() if name in Provenance.__dataclass_fields__})
    except (ValueError, AttributeError, TypeError):
        return Provenance(source=source)


def fuse(loras: Sequence[tuple[TextLora, float]]) -> TextLora:
    """One LoRA that adds ``sum_i weight_i B_i A_i`` to each layer, exactly: the ranks add up.

    Errors: ValueError for none, a weight that is no finite number, and layers of unequal sizes.
    """
    bad = [weight for _, weight in loras if not math.isfinite(weight)]
    if bad or not loras:
        raise ValueError(
            f"Got {f'the weight {bad[0]}' if bad else 'nothing to fuse'}, expected LoRAs with finite weights."
        )
    layers: dict[str, tuple[Tensor, Tensor]] = {}
    for lora, weight in loras:
        for name, (down, up) in lora.layers.items():
            before = layers.get(name)
            if before and (before[0].shape[1], before[1].shape[0]) != (down.shape[1], up.shape[0]):
                raise ValueError(
                    f"Got layers of {before[0].shape[1]}x{before[1].shape[0]} and {down.shape[1]}x{up.shape[0]} for "
                    f"{name}, expected LoRAs of the same text encoder."
                )
            scaled = (down, up * weight)
            layers[name] = (torch.cat([before[0], down]), torch.cat([before[1], scaled[1]], 1)) if before else scaled
    parts = [{"weight": weight, **asdict(lora.provenance)} for lora, weight in loras]
    return TextLora(layers, Provenance(source="fused", notes={"parts": parts}))
