"""Small random checkpoints of Stable Diffusion's architecture in the original key layout, made with the host's own
network classes: ``python checkpoints.py COMFYUI FOLDER`` writes what the host tests load.

The UNet is narrow in depth only (model_channels stays 320, which is how the host recognises the family), the text
encoder has its full size, the autoencoder is the tiny one (TAESD layout).
"""

import sys
from pathlib import Path

import torch

SD15 = "reneg-test-sd15.safetensors"
SD21 = "reneg-test-sd21.safetensors"
CONTROL = "reneg-test-control.safetensors"
LORA = "reneg-test-lora.safetensors"
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
}


def randomise(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dict of unit gain: weights by fan-in, norms 1, biases 0."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
        elif tensor.ndim >= 2:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        else:
            state[name] = torch.ones_like(tensor) if name.endswith("weight") else torch.zeros_like(tensor)
    return state


def unet(context: int, linear: bool, seed: int) -> dict[str, torch.Tensor]:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    heads = {"num_head_channels": 64, "num_heads": -1} if linear else {"num_heads": 8}
    model = UNetModel(
        **UNET,
        **heads,
        out_channels=4,
        context_dim=context,
        use_linear_in_transformer=linear,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    return {f"model.diffusion_model.{key}": value for key, value in randomise(model, seed).items()}


def autoencoder(seed: int) -> dict[str, torch.Tensor]:
    from comfy.taesd.taesd import TAESD

    state = randomise(TAESD(), seed)
    state |= {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    return {f"first_stage_model.{key}": value for key, value in state.items()}


def clip_l(seed: int) -> dict[str, torch.Tensor]:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768
    )
    with torch.device("meta"):
        model = CLIPTextModel(config)
    state = randomise(model.to_empty(device="cpu"), seed)
    prefix = "cond_stage_model.transformer."
    named = {k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in state.items()}
    return {prefix + key: value for key, value in named.items() if "position_ids" not in key}


def clip_h(seed: int) -> dict[str, torch.Tensor]:
    """OpenCLIP-H in the layout of SD2 checkpoints; the host converts the keys itself."""
    width, layers = 1024, 24
    shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, width),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        shapes |= {
            block + "ln_1.weight": (width,),
            block + "ln_1.bias": (width,),
            block + "ln_2.weight": (width,),
            block + "ln_2.bias": (width,),
            block + "attn.in_proj_weight": (3 * width, width),
            block + "attn.in_proj_bias": (3 * width,),
            block + "attn.out_proj.weight": (width, width),
            block + "attn.out_proj.bias": (width,),
            block + "mlp.c_fc.weight": (4 * width, width),
            block + "mlp.c_fc.bias": (4 * width,),
            block + "mlp.c_proj.weight": (width, 4 * width),
            block + "mlp.c_proj.bias": (width,),
        }
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            state[name] = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        else:
            state[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return {f"cond_stage_model.model.{key}": value for key, value in state.items()}


def control_net(seed: int) -> dict[str, torch.Tensor]:
    import comfy.ops
    from comfy.cldm.cldm import ControlNet

    options = {k: v for k, v in UNET.items() if k != "transformer_depth_output"}
    model = ControlNet(
        **options,
        hint_channels=3,
        num_heads=8,
        context_dim=768,
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    return {f"control_model.{key}": value for key, value in randomise(model, seed).items()}


def lora(state: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Rank-2 changes of every cross-attention query of the UNet, in the kohya naming of diffusers modules."""
    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
    weight = state["model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_q.weight"]
    rows, columns = weight.shape
    return {
        f"{name}.lora_up.weight": torch.randn(rows, 2, generator=generator),
        f"{name}.lora_down.weight": torch.randn(2, columns, generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }


def write(folder: Path, version_2: bool = True) -> None:
    """checkpoints/, controlnet/ and loras/ below ``folder``, as the host's models folder has them."""
    from safetensors.torch import save_file

    for kind in ("checkpoints", "controlnet", "loras"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    small = unet(768, False, 1) | autoencoder(2)
    save_file(half(small | clip_l(3)), folder / "checkpoints" / SD15)
    save_file(half(control_net(4)), folder / "controlnet" / CONTROL)
    save_file(lora(small, 5), folder / "loras" / LORA)
    if version_2:
        save_file(half(unet(1024, True, 6) | autoencoder(2) | clip_h(7)), folder / "checkpoints" / SD21)


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Half precision and contiguous, as most checkpoints are published."""
    return {k: v.half().contiguous() if v.is_floating_point() else v for k, v in state.items()}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    write(Path(sys.argv[2]), version_2="--no-sd21" not in sys.argv)
