"""Small random models of the real architectures, built in a second, for tests without weights."""

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32


def tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A byte-pair tokenizer over single letters: no merges, so every letter is a token."""
    letters = list(string.ascii_lowercase)
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[], model_max_length=max_length, pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def scheduler(prediction: str = "epsilon", **options: object) -> DDIMScheduler:
    """SD's published noise schedule."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction,
    }
    return DDIMScheduler(**{**settings, **options})


def text_encoder(words: CLIPTokenizer, width: int = WIDTH) -> CLIPTextModel:
    """A CLIP text encoder of two layers."""
    return CLIPTextModel(text_config(words, width))


def text_config(words: CLIPTokenizer, width: int, **options: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **options,
    )


def vae(**options: object) -> AutoencoderKL:
    """Pictures twice as large as latents."""
    return AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        sample_size=16,
        **options,
    )


def pipeline(
    prediction: str = "epsilon", width: int = WIDTH, seed: int = 0, tokens: int = 16
) -> StableDiffusionPipeline:
    """A whole random Stable Diffusion: 4x8x8 latents, 16x16 pictures, ``tokens`` tokens of ``width`` channels."""
    torch.manual_seed(seed)
    words = tokenizer(tokens)
    text = text_encoder(words, width)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=scheduler(prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pipeline_folder(folder: Path, **options: object) -> Path:
    """Such a pipeline saved as users have them."""
    pipeline(**options).save_pretrained(folder)
    return folder
