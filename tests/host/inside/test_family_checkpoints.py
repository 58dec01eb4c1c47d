"""Checkpoints of SDXL's family and of SD3 that the stock loader recognises: a negative is trained by the node, and the
stock KSampler draws better pictures with what it hands on."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.text_encoders.sd3_clip
import folder_paths
import pytest
import torch
from family_checks import TRAIN as QUICK
from family_checks import run_node
from networks import NETWORKS, SMALL_UNET, model_of, randomised, vae_of
from reneg_pack.nodes.host import rewards
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
TRAIN = {**QUICK, "width": 64, "height": 64, "steps": 4, "sampling_steps": 2, "last_steps": 2, "learning_rate": 0.2}
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


@pytest.mark.parametrize("name", ["KOALA_700M", "SD3"])
def test_a_negative_is_trained_end_to_end(name: str) -> None:
    model, clip, vae = build(name)
    assert type(model.model.model_config).__name__ == name
    brightness = rewards.load("brightness", None, torch.float32)
    parts = {"model": model, "clip": clip, "vae": vae, "reward": brightness, "run_name": f"checkpoint_{name}"}
    out = run_node("ReNegTrainEmbedding", **parts, **TRAIN)
    report = json.loads(out[4])
    assert report["best_reward"] > report["start_reward"]
    assert out[1].pooled is not None and out[1].family == ("sd3" if name == "SD3" else "sdxl")

    channels = model.model.latent_format.latent_channels
    [positive], [empty] = (nodes.CLIPTextEncode().encode(clip, text) for text in ("a red house", ""))
    found = {}
    for title, negative in (("empty", empty), ("learned", out[0])):
        latent = {"samples": torch.zeros(4, channels, 8, 8)}
        drawn = nodes.KSampler().sample(model, 11, 2, 3.0, "euler", "simple", positive, negative, latent)[0]
        pictures = nodes.VAEDecode().decode(vae, drawn)[0].movedim(-1, 1)
        found[title] = float(brightness.reward.score(pictures, ["a red house"] * 4).mean())
    print(f"{name}: {report['start_reward']:.4f} to {report['best_reward']:.4f}, KSampler {found}")
    assert found["learned"] > found["empty"]
