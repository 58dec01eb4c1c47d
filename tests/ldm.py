"""A diffusers pipeline of ``builders`` as a single checkpoint in Stable Diffusion's original key layout."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op", "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.attentions.0": "output_blocks.2.1",
    "up_blocks.1.resnets.1": "output_blocks.3.0", "up_blocks.1.attentions.1": "output_blocks.3.1",
}  # fmt: skip
VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
}  # fmt: skip


def _unet_key(key: str) -> str:
    for ours in sorted(UNET, key=len, reverse=True):
        if key.startswith(ours + "."):
            rest = key[len(ours) + 1 :]
            if ".resnets." in f".{ours}":
                part, _, tail = rest.partition(".")
                rest = f"{RESNET[part]}.{tail}"
            return f"model.diffusion_model.{UNET[ours]}.{rest}"
    raise KeyError(key)


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


def save_checkpoint(pipeline: object, path: Path) -> Path:
    """Write ``pipeline`` (built by ``builders.pipeline``) as one ``.safetensors`` file."""
    state = {_unet_key(k): v for k, v in pipeline.unet.state_dict().items()}
    state |= dict(_vae_entry(k, v) for k, v in pipeline.vae.state_dict().items())
    text = pipeline.text_encoder.state_dict().items()
    named = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in text if "position_ids" not in k}
    state |= {f"cond_stage_model.transformer.{k}": v for k, v in named.items()}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path
