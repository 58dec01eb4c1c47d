"""The published architectures at full size, on any device and in any precision, with random weights or none."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from pipelines import build

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.model import Conditioning
from reneg_core.rewards.clip import ImageTower, TextTower, TextTransformer
from reneg_core.rewards.hpsv2 import HPSv21
from reneg_core.rewards.transformer import Stack, VisionTransformer
from reneg_core.sampling import Size

META = torch.device("meta")


class Full(NamedTuple):
    """A published model: what it is called, the small pipeline it is like, pixels, tokens, pooled width, its parts,
    whether it reads a mask, and of a video its height and frames."""

    label: str
    like: str
    pixels: int
    tokens: int
    pooled: int
    parts: Callable[[], dict[str, Any]]
    masked: bool = False
    height: int = 0
    frames: int | None = None

    @property
    def size(self) -> Size:
        return Size(self.height or self.pixels, self.pixels, self.frames)


def vae(pixels: int, channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=pixels, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=channels == 4, use_post_quant_conv=channels == 4,
        **({} if channels == 4 else {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    )  # fmt: skip


def clip(width: int, layers: int, heads: int, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return kind(CLIPTextConfig(hidden_size=width, num_hidden_layers=layers, intermediate_size=4 * width,
                               num_attention_heads=heads, projection_dim=width))  # fmt: skip


def t5_xxl() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128,
                                   feed_forward_proj="gated-gelu"))  # fmt: skip


def sd15() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    return {"unet": unet, "vae": vae(512), "text_encoder": clip(768, 12, 12)}


def sd21() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    return {"unet": unet, "vae": vae(768), "text_encoder": clip(1024, 23, 16)}


def sdxl() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048, attention_head_dim=(5, 10, 20), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    encoders = {"text_encoder": clip(768, 12, 12), "text_encoder_2": clip(1280, 32, 20, True)}
    return {"unet": unet, "vae": vae(1024), **encoders}


def pixart() -> dict[str, Any]:
    from diffusers import PixArtTransformer2DModel

    return {
        "transformer": PixArtTransformer2DModel(sample_size=128, caption_channels=4096),
        "vae": vae(512),
        "text_encoder": t5_xxl(),
    }


def sd3() -> dict[str, Any]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=128, in_channels=16, out_channels=16, num_layers=24, attention_head_dim=64, num_attention_heads=24,
        joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
    )  # fmt: skip
    encoders = {"text_encoder": clip(768, 12, 12, True), "text_encoder_2": clip(1280, 32, 20, True)}
    return {"transformer": transformer, "vae": vae(1024, 16), **encoders, "text_encoder_3": t5_xxl()}


def flux() -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    encoders = {"text_encoder": clip(768, 12, 12), "text_encoder_2": t5_xxl()}
    return {"transformer": FluxTransformer2DModel(guidance_embeds=True), "vae": vae(1024, 16), **encoders}


def chroma() -> dict[str, Any]:
    from diffusers import ChromaTransformer2DModel

    return {"transformer": ChromaTransformer2DModel(), "vae": vae(1024, 16), "text_encoder": t5_xxl()}


def zeroscope() -> dict[str, Any]:
    from diffusers import UNet3DConditionModel

    return {"unet": UNet3DConditionModel(sample_size=32), "vae": vae(256), "text_encoder": clip(1024, 23, 16)}


def ltx() -> dict[str, Any]:
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    return {"transformer": LTXVideoTransformer3DModel(), "vae": AutoencoderKLLTXVideo(), "text_encoder": t5_xxl()}


FULL = {
    "sd15": Full("Stable Diffusion 1.5", "sd15", 512, 77, 0, sd15),
    "sd15_768": Full("Stable Diffusion 1.5", "sd15", 768, 77, 0, sd15),
    "sd21": Full("Stable Diffusion 2.1", "sd21", 768, 77, 0, sd21),
    "sdxl": Full("Stable Diffusion XL", "sdxl", 1024, 77, 1280, sdxl),
    "pixart": Full("PixArt-alpha", "pixart_told", 1024, 120, 0, pixart, True),
    "sd3": Full("Stable Diffusion 3 medium", "sd3", 1024, 333, 2048, sd3),
    "flux": Full("Flux (dev)", "flux_guided", 1024, 512, 768, flux),
    "chroma": Full("Chroma", "chroma", 1024, 512, 0, chroma, True),
    "zeroscope": Full("ZeroScope, VideoCrafter2; 24 frames", "zeroscope", 576, 77, 0, zeroscope, False, 320, 24),
    "ltx": Full("LTX-Video; 97 frames", "ltx", 704, 128, 0, ltx, True, 512, 97),
    "ltx_short": Full("LTX-Video; 25 frames", "ltx", 704, 128, 0, ltx, True, 512, 25),
}


def full_size(kind: Full, device: torch.device = META, dtype: torch.dtype = torch.bfloat16) -> DiffusersModel:
    """The published architecture, with random numbers unless the device is meta; tokenizer and scheduler are a small
    pipeline's."""
    small, before = build(kind.like), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            parts = kind.parts()
    finally:
        torch.set_default_dtype(before)
    parts = {name: nn.Module.to(part, dtype) for name, part in parts.items()}
    return wrap(type(small)(**{**small.components, **parts}), kind.label)


def said(kind: Full, model: DiffusersModel) -> Conditioning:
    """One row as that model's text encoders give it: random tokens, and the other parts where it reads them."""
    device = model.device
    tokens = torch.randn(1, kind.tokens, model.width, device=device)
    mask = torch.ones(1, kind.tokens, dtype=torch.int64, device=device) if kind.masked else None
    return Conditioning(tokens, mask, torch.randn(1, kind.pooled, device=device) if kind.pooled else None)


def tiny_decoder(model: DiffusersModel, folder: str | Path) -> str:
    """TAESD's architecture for that model's latents with random numbers, saved in ``folder``; the setting that names
    it."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    levels = model.pipeline.vae_scale_factor.bit_length()
    blocks = {f"{half}_block_out_channels": (64,) * levels for half in ("encoder", "decoder")}
    AutoencoderTiny(
        latent_channels=model.pipeline.vae.config.latent_channels, **blocks,
        num_encoder_blocks=(1, *(3,) * (levels - 1)), num_decoder_blocks=(*(3,) * (levels - 1), 1),
    ).save_pretrained(folder)  # fmt: skip
    return f"tiny:{folder}"


def hpsv21(device: torch.device = META, dtype: torch.dtype = torch.bfloat16) -> HPSv21:
    """HPSv2.1's networks (CLIP ViT-H/14); without a vocabulary, prompts are anything."""
    with device:
        vision = VisionTransformer(
            Stack(width=1280, depth=32, heads=16, hidden=5120, eps=1e-5, act="gelu"),
            image_size=224, patch_size=14, pre_norm=True, patch_bias=False, first_only=True,
        )  # fmt: skip
        stack = Stack(width=1024, depth=24, heads=16, hidden=4096, eps=1e-5, act="gelu")
        text = TextTransformer(stack, rows=49408, context=77)
        reward = HPSv21(ImageTower(vision, 1024), TextTower(text, 1024), None, 100.0)
    return reward.to(dtype).requires_grad_(False).eval()
