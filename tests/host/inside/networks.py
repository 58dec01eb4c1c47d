"""Small random networks of the host's own classes, one per architecture, without files: a MODEL of less than a million
parameters, a VAE, and a stand-in CLIP that gives each prompt random tokens in the shape of the family's encoder."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams
from torch import Tensor, nn

SMALL_FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "context_in_dim": 4096,
    "hidden_size": 48,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "axes_dim": [8, 8, 8],
    "theta": 10000,
    "qkv_bias": True,
    "depth": 2,
    "depth_single_blocks": 2,
}
SMALL_PIXART = {
    "in_channels": 4,
    "patch_size": 2,
    "hidden_size": 48,
    "num_heads": 2,
    "depth": 2,
    "caption_channels": 4096,
}
SMALL_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "legacy": False,
}


@dataclass(frozen=True)
class Text:
    """What a family's encoder gives. kind: the class that it is known by; pooled: 0 for none; length: of a prompt in
    tokens, 0 for as many as it has words and one more; mask: told beside them, as ``beside`` is."""

    kind: str
    width: int
    pooled: int = 0
    length: int = 0
    mask: bool = False
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """kind: the class of the host's configuration; side: of pictures in pixels; frames: of clips."""

    kind: str
    config: Mapping[str, Any]
    text: Text
    side: int = 64
    frames: int = 1
    gain: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)


T5 = Text("PixArtT5XXL", 4096)
NETWORKS = {
    "sdxl": Network(
        "SDXL",
        {**SMALL_UNET, "context_dim": 2048, "num_classes": "sequential", "adm_in_channels": 2816},
        Text("SDXLClipModel", 2048, 1280, 77),
    ),
    "sd3": Network(
        "SD3",
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,
            "input_size": None,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
            "num_patches": 64,
            "pos_embed_max_size": 8,
            "pos_embed_scaling_factor": None,
        },
        Text("SD3ClipModel", 4096, 2048, 77),
    ),
    "pixart": Network(
        "PixArtAlpha", {**SMALL_PIXART, "image_model": "pixart_alpha", "micro_condition": True}, T5, side=272
    ),
    "pixart_sigma": Network(
        "PixArtSigma", {**SMALL_PIXART, "image_model": "pixart_sigma", "micro_condition": False}, T5, side=272
    ),
    "flux": Network(
        "FluxSchnell",
        {**SMALL_FLUX, "image_model": "flux", "vec_in_dim": 768, "guidance_embed": False},
        Text("FluxClipModel", 4096, 768, 16),
        facts={"real_cfg": True},
    ),
    "flux_guided": Network(
        "Flux",
        {**SMALL_FLUX, "image_model": "flux", "vec_in_dim": 768, "guidance_embed": True},
        Text("FluxClipModel", 4096, 768, 16),
        facts={"real_cfg": True},
    ),
    "chroma": Network(
        "Chroma",
        {
            **SMALL_FLUX,
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 48,
            "hidden_dim": 32,
            "n_layers": 2,
        },
        T5,
    ),
    "qwen_image": Network(
        "QwenImage",
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "attention_head_dim": 24,
            "num_attention_heads": 2,
            "joint_attention_dim": 96,
            "axes_dims_rope": (8, 8, 8),
        },
        Text("QwenImageTEModel", 96),
    ),
    "lumina2": Network(
        "Lumina2",
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 48,
            "cap_feat_dim": 96,
            "n_layers": 2,
            "n_heads": 2,
            "n_kv_heads": 1,
            "qk_norm": True,
            "axes_dims": [8, 8, 8],
            "axes_lens": [64, 64, 64],
        },
        Text("LuminaModel", 96, mask=True),
    ),
    "ltxv": Network(
        "LTXV",
        {
            "image_model": "ltxv",
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "cross_attention_dim": 48,
            "caption_channels": 4096,
        },
        Text("MochiT5XXL", 4096, length=128, mask=True),
        frames=9,
    ),
    "wan": Network(
        "WAN21_T2V",
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": 48,
            "in_dim": 16,
            "out_dim": 16,
            "num_heads": 2,
            "ffn_dim": 64,
            "num_layers": 2,
            "patch_size": (1, 2, 2),
            "freq_dim": 32,
            "window_size": (-1, -1),
            "qk_norm": True,
            "cross_attn_norm": True,
            "eps": 1e-6,
            "text_dim": 96,
        },
        Text("WanT5Model", 96, length=16),
        frames=9,
    ),
    "hunyuan_video": Network(
        "HunyuanVideo",
        {
            **SMALL_FLUX,
            "image_model": "hunyuan_video",
            "patch_size": [1, 2, 2],
            "axes_dim": [8, 8, 8],
            "theta": 256,
            "vec_in_dim": 32,
            "context_in_dim": 96,
            "guidance_embed": False,
            "meanflow": False,
            "byt5": False,
        },
        Text("HunyuanVideoClipModel", 96, 32),
        frames=9,
    ),
}
OUTPUTS = ("final_layer.linear", "proj_out", "head.head", "final_layer.proj")


def randomised(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """``module`` with random weights of unit gain, norms of 1, biases of 0, and a small last layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(float(name.endswith(("weight", "scale", "gamma"))))
                continue
            scale = 0.3 if "table" in name else gain * parameter[0].numel() ** -0.5
            scale *= 0.3 if name.removesuffix(".weight").endswith(OUTPUTS) else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


NEWER = {
    "txt_ids_dims": [],
    "vec_in_dim": None,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
PARAMETERS = {"flux": FluxParams, "chroma": ChromaParams, "hunyuan_video": HunyuanVideoParams}


def config_of(network: Any) -> dict[str, Any]:
    """The configuration with what a newer host's networks ask for besides, as its detection fills it in."""
    kind = PARAMETERS.get(network.config.get("image_model"))
    known = {part.name for part in fields(kind)} if kind else set()
    return {name: value for name, value in NEWER.items() if name in known} | dict(network.config)


def model_of(network: Any) -> Any:
    """The MODEL of a :class:`Network`."""
    config = getattr(comfy.supported_models, network.kind)(config_of(network))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    for name, buffer in model.diffusion_model.named_buffers():
        if name.endswith("pos_embed"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(9)))
    randomised(model.diffusion_model, 1, network.gain)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


VIDEO_VAE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "blocks": [["compress_all", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]],
    "scaling_factor": 1.0,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "causal_decoder": False,
}


def vae_of(model: Any) -> Any:
    """The VAE: TAESD's layout for pictures; LTX-Video's for clips, of whatever channels, which stands in for others."""
    channels = model.model.latent_format.latent_channels
    if model.model.latent_format.latent_dimensions == 2:
        from comfy.taesd.taesd import TAESD

        state = randomised(TAESD(latent_channels=channels), 2).state_dict()
        # what a random network leaves of noise is large; without a small scale every pixel is saturated
        return comfy.sd.VAE(sd={**state, "vae_scale": torch.tensor(0.05), "vae_shift": torch.tensor(0.0)})
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    config = {**VIDEO_VAE, "latent_channels": channels}
    state = randomised(VideoVAE(config=config), 2).state_dict()
    vae = comfy.sd.VAE(sd=dict(state), metadata={"config": json.dumps({"vae": config})})
    vae.latent_channels = channels
    statistics = vae.first_stage_model.per_channel_statistics
    for name, _ in list(statistics.named_buffers()):
        statistics.register_buffer(name, torch.full((channels,), float("std" in name)))
    return vae


class Clip:
    """A CLIP of random tokens: the same ones for the same prompt."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.cond_stage_model = type(text.kind, (), {})()

    def tokenize(self, text: str, tokenizer_options: Mapping[str, int] | None = None, **_: Any) -> tuple[str, int]:
        return text, (tokenizer_options or {}).get("t5xxl_min_length", 0)

    def encode_from_tokens_scheduled(self, tokens: tuple[str, int], **_: Any) -> list[list[Any]]:
        prompt, least = tokens
        live = len(prompt.split()) + 1
        length = max(self.text.length or live, least, 77 * -(-live // 77) if self.text.length == 77 else 0)
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        found = torch.randn(1, length, self.text.width, generator=generator) * 0.7
        pooled = torch.randn(1, self.text.pooled, generator=generator) if self.text.pooled else None
        extra: dict[str, Any] = {"pooled_output": pooled}
        if self.text.mask:
            extra["attention_mask"] = (torch.arange(length) < (live if self.text.length else length)).long()[None]
        for name in self.text.beside:
            extra[name] = torch.randn(1, 4, self.text.width, generator=generator)
        return [[found, extra]]


def build(name: str) -> SimpleNamespace:
    """MODEL (with what the user says of it), CLIP and VAE of one architecture."""
    from reneg_pack.nodes.host.families import Facts, with_facts

    network = NETWORKS[name]
    model = model_of(network)
    vae = vae_of(model)
    model = with_facts(model, Facts(**{"frames": network.frames, **network.facts}))
    return SimpleNamespace(network=network, parts=(model, Clip(network.text), vae), model=model)


def empty_latent(built: SimpleNamespace) -> dict[str, Tensor]:
    """Zeros of the network's size for KSampler."""
    from reneg_pack.nodes.host.latents import Latents

    from reneg_core.settings import Size

    network = built.network
    shape = Latents(built.model, built.parts[2], Size(network.side, network.side, network.frames)).shape(Size())
    return {"samples": torch.zeros(1, *shape)}
