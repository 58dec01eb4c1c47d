"""A tiny decoder's pictures are those of diffusers' pipeline with it, from every layout of its file."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file

from reneg_core.backends import DiffusersModel
from reneg_core.backends.tiny_decoder import load_tiny_decoder


@pytest.fixture(scope="module")
def published() -> AutoencoderTiny:
    """Of the published sizes, with random numbers."""
    torch.manual_seed(0)
    return AutoencoderTiny().requires_grad_(False)


def layouts(network: AutoencoderTiny) -> dict[str, dict[str, torch.Tensor]]:
    """Its tensors as files name them: diffusers', the published decoder alone, and ComfyUI's of both halves. There the
    decoder begins with the clamp, which diffusers does not count."""
    own = {f"decoder.{name}": tensor for name, tensor in network.decoder.state_dict().items()}
    alone = {
        re.sub(r"decoder\.layers\.(\d+)", lambda match: str(int(match[1]) + 1), name): tensor
        for name, tensor in own.items()
    }
    both = {f"taesd_decoder.{name}": tensor for name, tensor in alone.items()}
    return {
        "diffusers": {**own, "encoder.layers.0.weight": torch.zeros(1)},
        "alone": alone,
        "both": {**both, "taesd_encoder.0.weight": torch.zeros(1), "vae_scale": torch.ones(())},
    }


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.25)])
def test_its_pictures_are_the_pipelines(model: DiffusersModel, tmp_path: Path, scale: float, shift: float) -> None:
    """diffusers' own pipeline with the tiny autoencoder as its VAE takes the denoiser's latents."""
    torch.manual_seed(0)
    network = AutoencoderTiny(
        latent_channels=4, scaling_factor=scale, shift_factor=shift, encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    network.save_pretrained(tmp_path)
    kind = type(model.pipeline)
    pipeline = kind(**{**model.pipeline.components, "vae": network}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def made(output: str) -> torch.Tensor:
        noise = torch.Generator().manual_seed(3)
        return pipeline("a red fox", num_inference_steps=1, height=16, width=16, generator=noise, output_type=output)[0]

    latents, pictures = made("latent"), made("pt")
    ours = load_tiny_decoder(tmp_path)(latents)
    assert ours.shape == pictures.shape and pictures.std() > 0.01
    assert torch.allclose(ours, pictures, atol=1e-5) is (shift == 0), "this pipeline knows no shift"
    assert torch.allclose(load_tiny_decoder(tmp_path)(latents - shift * scale), pictures, atol=1e-5)


def test_every_layout_is_the_same_decoder(published: AutoencoderTiny, tmp_path: Path) -> None:
    published.save_pretrained(tmp_path / "folder")
    expected, latents = load_tiny_decoder(tmp_path / "folder"), torch.randn(1, 4, 4, 4)
    assert expected(latents).shape == (1, 3, 32, 32)
    for name, tensors in layouts(published).items():
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
        found = load_tiny_decoder(tmp_path / f"{name}.safetensors")
        assert torch.equal(found(latents), expected(latents)) and found.digest() == expected.digest(), name
        assert found.name == f"{name}.safetensors"
    torch.save(layouts(published)["alone"], tmp_path / "taesd_decoder.pth")
    assert load_tiny_decoder(tmp_path / "taesd_decoder.pth").digest() == expected.digest()


def test_it_runs_in_the_precision_that_is_asked_for(published: AutoencoderTiny, tmp_path: Path) -> None:
    published.save_pretrained(tmp_path)
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    found = load_tiny_decoder(tmp_path, "cpu", torch.bfloat16)
    pictures = found(latents)
    assert pictures.dtype == torch.float32 and found.network.dtype == torch.bfloat16
    assert torch.allclose(pictures, load_tiny_decoder(tmp_path)(latents), atol=0.02)
    (gradient,) = torch.autograd.grad(pictures.sum(), latents)
    assert gradient.abs().max() > 0 and not any(p.requires_grad for p in found.network.parameters())


def test_what_is_none_is_refused(published: AutoencoderTiny, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No tiny decoder at .*nowhere\. Expected diffusers' folder"):
        load_tiny_decoder(tmp_path / "nowhere")
    for config, got in ((None, "no configuration"), ({"_class_name": "AutoencoderKL"}, "AutoencoderKL")):
        if config:
            (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"Got {got} in .*, expected diffusers' folder of an AutoencoderTiny"):
            load_tiny_decoder(tmp_path)
    alone = {name: tensor.contiguous() for name, tensor in layouts(published)["alone"].items()}
    wrong = {
        "missing": {name: tensor for name, tensor in alone.items() if name != "7.weight"},
        "unexpected": {**alone, "99.weight": torch.zeros(1)},
        "lacks the tensor '1.weight'": {"a.weight": torch.zeros(1)},
    }
    for words, tensors in wrong.items():
        save_file(tensors, tmp_path / "wrong.safetensors")
        with pytest.raises(ValueError, match=words):
            load_tiny_decoder(tmp_path / "wrong.safetensors")
