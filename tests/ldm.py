"""A diffusers pipeline of ``builders`` or ``pipelines`` as a single checkpoint in the original key layout."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
}  # fmt: skip


def _unet_names(unet: object) -> dict[str, str]:
    """Where each part of the UNet stands: the original numbers residual blocks and resamplers in one row."""
    layers, levels, names, row = unet.config.layers_per_block, len(unet.down_blocks), dict(UNET), 0
    for i in range(levels):
        for j in range(layers):
            row += 1
            names |= {f"down_blocks.{i}.{kind}.{j}": f"input_blocks.{row}.{k}" for k, kind in enumerate(KINDS)}
        if i < levels - 1:
            row += 1
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{row}.0.op"
    for i, block in enumerate(unet.up_blocks):
        for j in range(layers + 1):
            row = i * (layers + 1) + j
            names |= {f"up_blocks.{i}.{kind}.{j}": f"output_blocks.{row}.{k}" for k, kind in enumerate(KINDS)}
        names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{row}.{1 + hasattr(block, 'attentions')}.conv"
    return names


KINDS = ("resnets", "attentions")


def _unet_key(key: str, names: dict[str, str]) -> str:
    ours = max((name for name in names if key.startswith(name + ".")), key=len)
    rest = key[len(ours) + 1 :]
    if ".resnets." in f".{ours}":
        part, _, tail = rest.partition(".")
        rest = f"{RESNET[part]}.{tail}"
    return f"model.diffusion_model.{names[ours]}.{rest}"


def _vae_entry(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    blocks = 2
    name = key.replace("down_blocks.", "down.").replace("resnets.", "block.").replace("downsamplers.0", "downsample")
    for i in range(blocks):
        name = name.replace(f"up_blocks.{i}.", f"up.{blocks - 1 - i}.")
    name = name.replace("upsamplers.0", "upsample").replace("mid_block.block.", "mid_block.resnets.")
    for ours in sorted(VAE, key=len, reverse=True):
        if not (ours.startswith("to_") or ours == "group_norm") or ".attentions." in key:
            name = name.replace(f"{ours}.", f"{VAE[ours]}.")
    if "attn_1" in name and tensor.ndim == 2:
        tensor = tensor[:, :, None, None]
    return f"first_stage_model.{name}", tensor


def _clip(encoder: object) -> dict[str, Tensor]:
    """A CLIP text encoder's weights under the names of transformers."""
    state = {k: v for k, v in encoder.state_dict().items() if "position_ids" not in k}
    return {k if k.startswith("text_") else f"text_model.{k}": v for k, v in state.items()}


OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.": "", "text_model.final_layer_norm": "ln_final", ".self_attn": ".attn",
    "text_model.encoder.layers.": "transformer.resblocks.", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "text_projection.weight": "text_projection", ".fc1.": ".c_fc.", ".fc2.": ".c_proj.",
}  # fmt: skip


def _open_clip(encoder: object) -> dict[str, Tensor]:
    """The same under the names of OpenCLIP, which joins query, key and value and transposes the projection."""
    found = {}
    for key, tensor in _clip(encoder).items():
        for ours, name in OPEN_CLIP.items():
            key = key.replace(ours, name)
        found[key] = tensor.T if key == "text_projection" else tensor
    for kind in ("weight", "bias"):
        for start in [key.removesuffix(f"q_proj.{kind}") for key in found if key.endswith(f"q_proj.{kind}")]:
            parts = [found.pop(f"{start}{letter}_proj.{kind}") for letter in "qkv"]
            found[f"{start}in_proj_{kind}"] = torch.cat(parts)
    return found


def save_checkpoint(pipeline: object, path: Path) -> Path:
    """Write a Stable Diffusion or Stable Diffusion XL pipeline as one ``.safetensors`` file."""
    names = _unet_names(pipeline.unet)
    state = {_unet_key(k, names): v for k, v in pipeline.unet.state_dict().items()}
    state |= dict(_vae_entry(k, v) for k, v in pipeline.vae.state_dict().items())
    if hasattr(pipeline, "text_encoder_2"):
        state |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in _clip(pipeline.text_encoder).items()}
        state |= {f"conditioner.embedders.1.model.{k}": v for k, v in _open_clip(pipeline.text_encoder_2).items()}
    else:
        state |= {f"cond_stage_model.transformer.{k}": v for k, v in _clip(pipeline.text_encoder).items()}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path
