"""Checkpoints of SDXL's family and of SD3 that the stock loader recognises, small and random."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.sd3_clip
import folder_paths
import torch
from networks import NETWORKS, SMALL_UNET, model_of, randomised, vae_of
from safetensors.torch import save_file

import nodes

KOALA = {
    **SMALL_UNET,
    "model_channels": 320,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 1, 1],
    "transformer_depth": [0, 2, 5],
    "transformer_depth_output": [0] * 6,
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}
"""What the stock loader takes for KOALA 700M: the smallest of SDXL's relatives that it knows."""
LAYERS = {"num_hidden_layers": 3, "intermediate_size": 256}


def checkpoint(network: SimpleNamespace) -> tuple[Any, Any]:
    """MODEL and VAE by way of a file in half precision."""
    model = model_of(network)
    state = {f"model.diffusion_model.{k}": v for k, v in model.model.diffusion_model.state_dict().items()}
    state |= {f"first_stage_model.{k}": v for k, v in vae_of(model).first_stage_model.state_dict().items()}
    path = Path(folder_paths.get_folder_paths("checkpoints")[0]) / f"family-{network.kind}.safetensors"
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}, path)
    found = nodes.CheckpointLoaderSimple().load_checkpoint(path.name)
    path.unlink()
    return found[0], found[2]


def text_encoder(tokenizer: type, encoder: type) -> Any:
    """The host's own encoder, of full width and few layers."""
    widths = {"clip_l": 768, "clip_g": 1280}
    sizes = {f"{name}_model_config": {**LAYERS, "hidden_size": width} for name, width in widths.items()}
    target = SimpleNamespace(params={}, tokenizer=tokenizer, clip=encoder)
    clip = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    randomised(clip.cond_stage_model, 5)
    return clip


def build(name: str) -> tuple[Any, Any, Any]:
    if name == "KOALA_700M":
        model, vae = checkpoint(SimpleNamespace(kind=name, config=KOALA, gain=1.0))
        return model, text_encoder(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel), vae
    model, vae = checkpoint(NETWORKS["sd3"])
    small = comfy.text_encoders.sd3_clip.sd3_clip(clip_l=True, clip_g=False, t5=False)
    return model, text_encoder(comfy.text_encoders.sd3_clip.SD3Tokenizer, small), vae
