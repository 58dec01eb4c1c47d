"""VideoCrafter2 (Chen et al. 2024, arXiv 2401.09047): its denoiser in ZeroScope's pipeline.

Diffusers has no class for it. Others converted its weights to the layout of diffusers' UNet3DConditionModel, with one
input more: a frame rate, whose embedding is added to that of the timestep. For one frame rate that is a constant
vector, so it is added to a bias here and the network stays diffusers' own.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...rewards.checkpoint import Checkpoint

CLASSES = ("UNet3DConditionModel", "UNet3DVideoCrafterConditionModel")
"""What a denoiser's folder may call itself."""
PART = "fps_embedding."
FRAME_RATE = 28
"""What the denoiser is told, as the authors' own script tells it; it is not the rate at which clips are shown."""


def is_denoiser(folder: Path) -> bool:
    """Whether ``folder`` holds a video UNet alone and no pipeline."""
    config = folder / "config.json"
    if (folder / "model_index.json").exists() or not config.is_file():
        return False
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("_class_name") in CLASSES
    except (ValueError, AttributeError, RecursionError):
        return False


def load_denoiser(folder: Path, dtype: torch.dtype) -> Any:
    """The UNet of ``folder`` as diffusers' UNet3DConditionModel, told :data:`FRAME_RATE` where it reads a frame rate.

    Errors: FileNotFoundError without weights; ValueError for what is no file of tensors and for weights of another
    layout, naming a key.
    """
    from diffusers import UNet3DConditionModel

    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(UNet3DConditionModel.load_config(folder))
    weights = _weights(folder)
    rate = {key.removeprefix(PART): weights.pop(key) for key in list(weights) if key.startswith(PART)}
    own = unet.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or [k for k, t in weights.items() if t.shape != own[k].shape]
    if wrong:
        raise ValueError(
            f"Got weights in {folder} that differ from diffusers' UNet3DConditionModel in {len(wrong)} keys, for "
            f"example {wrong[0]!r}; expected VideoCrafter2 as converted to that layout."
        )
    unet.load_state_dict(weights, assign=True)
    if rate:
        bias = unet.time_embedding.linear_2.bias
        bias.data = bias.data.float() + embedded_rate(unet, rate, FRAME_RATE)
    return unet.to(dtype)


def embedded_rate(unet: Any, weights: dict[str, Tensor], frame_rate: float) -> Tensor:
    """What the frame rate adds to the timestep's embedding, float32."""
    from diffusers.models.embeddings import TimestepEmbedding

    channels = unet.config.block_out_channels[0]
    layer = TimestepEmbedding(channels, 4 * channels, act_fn=unet.config.act_fn)
    layer.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return layer(unet.time_proj(torch.tensor([frame_rate])).float())[0].detach()


def _weights(folder: Path) -> dict[str, Tensor]:
    name = "diffusion_pytorch_model"
    found = next((path for path in (folder / f"{name}.safetensors", folder / f"{name}.bin") if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"No {name}.safetensors in {folder}, where the denoiser's weights were expected.")
    checkpoint = Checkpoint(found)
    return {key: checkpoint.tensor(key) for key in checkpoint.keys()}  # noqa: SIM118
