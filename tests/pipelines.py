"""Small random pipelines of every model family: the real architectures with small sizes, a few hundred thousand
parameters each, built in a second. Stable Diffusion itself is in ``builders``."""

import string
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from builders import WIDTH, scheduler, text_config, text_encoder, tokenizer, vae
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def t5_tokenizer(max_length: int = 24) -> T5Tokenizer:
    """A unigram tokenizer over single letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary = [*special, *((letter, -3.0) for letter in string.ascii_lowercase)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=max_length)


def t5(words: T5Tokenizer, width: int = WIDTH, inner: int | None = None) -> T5EncoderModel:
    """A T5 encoder of two layers, without dropout; its output is about as large as CLIP's."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(words),
            d_model=width,
            d_kv=8,
            d_ff=inner or 2 * width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )


def clip_with_projection(words: Any, width: int, pooled: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(text_config(words, width, projection_dim=pooled))


def sd15() -> Any:
    from builders import pipeline

    return pipeline()


def sd21() -> Any:
    from builders import pipeline

    return pipeline("v_prediction")


def sdxl(levels: tuple[int, ...] = (0, 1, 2), middle: bool = True) -> Any:
    """levels: transformer blocks a level, 0 for none; middle: whether there is a middle block (KOALA has none)."""
    words = tokenizer()
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in levels]
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32)[: len(levels)],
        layers_per_block=1,
        down_block_types=tuple(down),
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        mid_block_type="UNetMidBlock2DCrossAttn" if middle else None,
        transformer_layers_per_block=tuple(max(depth, 1) for depth in levels),
        cross_attention_dim=WIDTH + 16,
        attention_head_dim=8,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text_encoder(words),
        text_encoder_2=clip_with_projection(words, 16, 16),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**SCALED, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def koala() -> Any:
    return sdxl((0, 2), middle=False)


def pixart(kind: str = "PixArtAlphaPipeline", told_size: bool = False, width: int = WIDTH) -> Any:
    words = t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=width,
        sample_size=128 if told_size else 8,
        use_additional_conditions=told_size,
    )
    return getattr(diffusers, kind)(
        tokenizer=words,
        text_encoder=t5(words, width, 2 * WIDTH),
        vae=vae(),
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(**LINEAR),
    )


def pixart_told() -> Any:
    return pixart(told_size=True)


def pixart_sigma() -> Any:
    return pixart("PixArtSigmaPipeline")


def sd3(with_t5: bool = True) -> Any:
    words, long = tokenizer(), t5_tokenizer()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=24 + 16,
        out_channels=4,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_with_projection(words, 24, 24),
        tokenizer=words,
        text_encoder_2=clip_with_projection(words, 16, 16),
        tokenizer_2=words,
        text_encoder_3=t5(long, 2 * WIDTH) if with_t5 else None,
        tokenizer_3=long if with_t5 else None,
    )


def flux(guidance: bool = False) -> Any:
    words, long = tokenizer(), t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return diffusers.FluxPipeline(
        scheduler=dynamic_flow(),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=text_encoder(words),
        tokenizer=words,
        text_encoder_2=t5(long),
        tokenizer_2=long,
        transformer=transformer,
    )


def flux_guided() -> Any:
    return flux(guidance=True)


def dynamic_flow() -> Any:
    """Flux's schedule with anchors that small pictures lie between."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
    )


def chroma() -> Any:
    words = t5_tokenizer()
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=8,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    return diffusers.ChromaPipeline(
        scheduler=dynamic_flow(),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=t5(words),
        tokenizer=words,
        transformer=transformer,
    )


def zeroscope(width: int = WIDTH, tokens: int = 16) -> Any:
    words = tokenizer(tokens)
    return diffusers.TextToVideoSDPipeline(
        vae=vae(),
        text_encoder=text_encoder(words, width),
        tokenizer=words,
        unet=unet_3d(width),
        scheduler=scheduler(),
    )


def unet_3d(width: int = WIDTH) -> diffusers.UNet3DConditionModel:
    return diffusers.UNet3DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
    )


def ltx(width: int = WIDTH) -> Any:
    """Latents of two frames and four pixels a side."""
    words = t5_tokenizer()
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=12,
        cross_attention_dim=48,
        num_layers=2,
        caption_channels=width,
    )
    return diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64, base_shift=0.95, max_shift=2.05,
            shift_terminal=0.1,
        ),
        vae=ltx_vae(),
        text_encoder=t5(words, width, 2 * WIDTH),
        tokenizer=words,
        transformer=transformer,
    )  # fmt: skip


def ltx_vae(**options: object) -> diffusers.AutoencoderKLLTXVideo:
    """With a mean and a spread of its latents that are no neutral ones."""
    made = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        upsample_residual=(False,) * 2,
        upsample_factor=(1,) * 2,
        patch_size=2,
        **options,
    )
    made.latents_mean += torch.linspace(-0.3, 0.3, 8)
    made.latents_std *= torch.linspace(0.5, 1.5, 8)
    return made


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd15": sd15,
    "sd21": sd21,
    "sdxl": sdxl,
    "koala": koala,
    "pixart": pixart,
    "pixart_told": pixart_told,
    "pixart_sigma": pixart_sigma,
    "sd3": sd3,
    "flux": flux,
    "flux_guided": flux_guided,
    "chroma": chroma,
    "ltx": ltx,
    "zeroscope": zeroscope,
}


def build(name: str, seed: int = 0) -> Any:
    """The random pipeline called ``name`` in ``BUILDERS``."""
    torch.manual_seed(seed)
    return BUILDERS[name]()
