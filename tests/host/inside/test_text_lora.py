"""A text encoder's LoRA as the core saves it, in the host's stock LoraLoader: every key is known, the outputs agree."""

import logging
from typing import Any

import folder_paths
import pytest
import torch

import nodes
from reneg_core.texforce.lora import LAYOUTS, TextLora, load_text_lora

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
PROMPT = "a red house on a blue background"


def encoder_of(clip: Any) -> Any:
    """CLIP ViT-L."""
    return clip.cond_stage_model.clip_l.transformer


def random_lora(clip: Any, rank: int = 4) -> TextLora:
    generator, layers = torch.Generator().manual_seed(0), {}
    for number, layer in enumerate(encoder_of(clip).text_model.encoder.layers):
        for name in PROJECTIONS:
            out, width = getattr(layer.self_attn, name).weight.shape
            down, up = (torch.randn(shape, generator=generator) for shape in ((rank, width), (out, rank)))
            key = f"text_encoder.text_model.encoder.layers.{number}.self_attn.{name}"
            layers[key] = (down / width**0.5, 0.2 * up / rank**0.5)
    return TextLora(layers)


def tokens_of(clip: Any) -> torch.Tensor:
    return nodes.CLIPTextEncode().encode(clip, PROMPT)[0][0][0]


def by_hand(clip: Any, lora: TextLora) -> torch.Tensor:
    """The tokens with ``W + B A`` written into the weights."""
    layers, before = encoder_of(clip).text_model.encoder.layers, {}
    tokens_of(clip)  # loads it
    for name, delta in lora.deltas().items():
        number, projection = name.split(".")[4], name.rpartition(".")[2]
        weight = getattr(layers[int(number)].self_attn, projection).weight
        before[weight] = weight.data.clone()
        weight.data.copy_(weight.float() + delta.to(weight.device))
    try:
        return tokens_of(clip)
    finally:
        for weight, data in before.items():
            weight.data.copy_(data)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_stock_loader_knows_every_key_and_the_outputs_agree(
    layout: str, checkpoint: tuple[Any, Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The whole CLIP ViT-L of Stable Diffusion 1.x."""
    model, clip, _ = checkpoint
    plain, lora = tokens_of(clip), random_lora(clip)
    expected = by_hand(clip, lora)
    assert torch.equal(tokens_of(clip), plain), "what was written by hand is undone"
    folder = folder_paths.get_folder_paths("loras")[0]
    name = f"text-{layout}.safetensors"
    path = lora.save(f"{folder}/{name}", layout)
    assert load_text_lora(path).digest() == lora.digest()
    folder_paths.filename_list_cache.clear()
    with caplog.at_level(logging.DEBUG):
        _, tuned = nodes.LoraLoader().load_lora(model, clip, name, 1.0, 1.0)
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    found = tokens_of(tuned)
    assert (found - expected).abs().max() < 1e-4 and (found - plain).abs().max() > 0.01
    _, half = nodes.LoraLoader().load_lora(model, clip, name, 1.0, 0.0)
    assert torch.equal(tokens_of(half), plain), "strength 0 is the encoder as it was"
