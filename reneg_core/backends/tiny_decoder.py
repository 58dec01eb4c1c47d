"""A tiny decoder (TAESD, Bohan 2023): a few convolutions that were distilled from a model's own decoder."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..digests import digest_of
from ..rewards.checkpoint import Checkpoint, check_keys
from .diffusers import decoded
from .loading import quiet_loading

CLASS = "AutoencoderTiny"
_LAYOUTS = {"decoder.layers.": 0, "taesd_decoder.": 1, "": 1}
"""How keys begin in diffusers' file, in ComfyUI's joined one and in the published decoder's own, and the number of the
first convolution there."""


class TinyDecoder:
    """diffusers' AutoencoderTiny; it takes the latents of the denoiser as they are, of its own scale where its
    configuration has one. network: frozen, where and in which precision it is to run."""

    def __init__(self, network: Any, name: str) -> None:
        self.network, self.name = network.requires_grad_(False).eval(), name
        self.channels: int = network.config.latent_channels

    def __call__(self, latents: Tensor, frames: int = 0) -> Tensor:
        """Pictures ``[B,3,H,W]`` float32 in [0,1] of the denoiser's latents ``[B,C,h,w]``, with a gradient.

        Errors: ValueError for latents of a video or with another number of channels.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(
                f"Got latents {list(latents.shape)} for the tiny decoder {self.name}, expected [B,{self.channels},h,w]."
                " It belongs to another model, or the model makes videos; try crop:0.5."
            )
        return decoded(self.network, latents)

    def digest(self) -> str:
        return digest_of(self.network.decoder.state_dict())


def load_tiny_decoder(
    path: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> TinyDecoder:
    """diffusers' folder of an AutoencoderTiny, or a file with the published one's decoder in either layout.

    Errors: FileNotFoundError; ValueError for another class, other keys or no file of tensors.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"No tiny decoder at {path}. Expected diffusers' folder of an {CLASS} or a file such as "
            "taesd_decoder.safetensors; each belongs to one family of models."
        )
    with quiet_loading():
        network = _from_folder(path) if path.is_dir() else _from_file(path)
    return TinyDecoder(nn.Module.to(network, device, dtype), path.name)


def _from_folder(folder: Path) -> Any:
    from diffusers import AutoencoderTiny

    config = folder / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name") if config.is_file() else None
    except (ValueError, AttributeError, RecursionError):
        kind = None
    if kind != CLASS:
        raise ValueError(f"Got {kind or 'no configuration'} in {folder}, expected diffusers' folder of an {CLASS}.")
    return AutoencoderTiny.from_pretrained(folder, use_safetensors=True, local_files_only=True)


def _from_file(path: Path) -> Any:
    from diffusers import AutoencoderTiny

    file = Checkpoint(path)
    keys = file.keys()
    prefix = next((p for p in _LAYOUTS if any(key.startswith(p) for key in keys)), "")
    first = _LAYOUTS[prefix]
    network = AutoencoderTiny(latent_channels=file.shape(f"{prefix}{first}.weight")[1])
    sources = {name: _renumbered(name, prefix, first) for name in network.decoder.state_dict()}
    check_keys(file, sources.values(), ["encoder\\..*", "taesd_encoder\\..*", "vae_(scale|shift)"] if prefix else [])
    network.decoder.load_state_dict({name: file.tensor(key) for name, key in sources.items()})
    return network


def _renumbered(name: str, prefix: str, first: int) -> str:
    """The key in the file of ``layers.N.rest``."""
    _, number, rest = name.split(".", 2)
    return f"{prefix}{int(number) + first}.{rest}"
