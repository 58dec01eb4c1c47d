"""Which models an embedding fits, from configurations alone, and that loading and running them agrees."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from builders import pipeline, tokenizer
from ldm import save_checkpoint
from PIL import Image
from pipelines import build
from transformers import CLIPTextConfig

from reneg_core import load_embedding
from reneg_core.backends import load_model, wrap
from reneg_core.backends.outline import Outline, outline, outline_of
from reneg_core.embedding import NegativeEmbedding
from reneg_core.sampling import Sampling, Size
from reneg_core.transfer import comparison_clip, fit_of

KINDS = ("sd15", "sdxl", "koala", "pixart", "pixart_sigma", "sd3", "flux", "chroma", "ltx", "zeroscope")


@pytest.mark.parametrize("name", KINDS)
def test_the_outline_of_a_folder_without_weights_is_that_of_the_loaded_model(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    build(name).save_pretrained(folder)
    expected = outline_of(load_model(folder, device="cpu"))
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    assert outline(folder) == expected
    assert expected.kind == json.loads((folder / "model_index.json").read_text())["_class_name"]


@pytest.mark.parametrize("name", KINDS)
def test_the_verdict_agrees_with_what_the_model_takes(name: str) -> None:
    model = wrap(build(name), name)
    null, what = model.encode([""]), outline_of(model)
    own = NegativeEmbedding(null.tokens, model.family, None, null.pooled)
    hiding = replace(own, mask=torch.arange(own.length)[None] < 3)
    pooled = replace(own, pooled=None if own.pooled is not None else torch.ones(1, 8))
    longer = replace(own, tokens=own.tokens.repeat(1, 8, 1))
    other = replace(own, family="another")
    wider = NegativeEmbedding(torch.ones(1, 4, 48), "another", None, own.pooled)
    tried = {"own": own, "hiding": hiding, "pooled": pooled, "longer": longer, "other": other, "wider": wider}
    verdicts = {}
    for kind, one in tried.items():
        fit = fit_of(one, what)
        verdicts[kind] = fit.fits
        size = Size(32, 32, 3 if name in ("ltx", "zeroscope") else None)
        try:
            one.require(model.family, model.width, model.max_tokens)
            model.denoise(model.noise([0], size), torch.tensor(0.5), one.conditioning())
            assert fit.fits, fit.reasons
        except ValueError as error:
            assert not fit.fits, error
    assert verdicts["own"] and not verdicts["pooled"] and not verdicts["other"] and not verdicts["wider"]


def test_a_single_file_is_read_by_its_keys(tmp_path: Path) -> None:
    for name, kind in (("sd15", "StableDiffusionPipeline"), ("sdxl", "StableDiffusionXLPipeline")):
        built = build(name)
        file = save_checkpoint(built, tmp_path / f"{name}.safetensors")
        found = outline(file)
        assert (found.kind, found.width) == (kind, built.unet.config.cross_attention_dim)
        assert found.family == f"width-{found.width}" and found.max_tokens == 77


def full_size(folder: Path, layers: int, width: int = 1024) -> Path:
    """Stable Diffusion's configurations with a text encoder of full size, and no weights."""
    built = pipeline("v_prediction", width=width, tokens=77)
    built.save_pretrained(folder)
    words = tokenizer(77)
    CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=16, max_position_embeddings=77,
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def test_the_published_sd21_file_fits_by_layer(shared_data: Path, tmp_path: Path) -> None:
    published = {name: load_embedding(shared_data / "reneg" / f"{name}_reneg_emb.bin") for name in ("sd1.5", "sd2.1")}
    right, last = (outline(full_size(tmp_path / str(layers), layers)) for layers in (23, 24))
    assert right.family == last.family == "openclip-h" and fit_of(published["sd2.1"], right).fits
    assert fit_of(published["sd2.1"], last).reasons == (
        "layer: openclip-h is layer 23 of its encoder, this model's encoder ends with layer 24",
    )
    assert fit_of(published["sd1.5"], right).reasons == (
        "convention: it is of CLIP ViT-L/14, last layer and final norm, the model reads OpenCLIP ViT-H/14, penultimate "
        "layer and final norm",
        "width: it has 768, the model reads 1024 (published for that: sd2.1_reneg_emb.bin)",
    )


def test_notes_say_what_is_different_where_it_fits() -> None:
    pixart = NegativeEmbedding(torch.ones(1, 120, 4096), "t5-xxl")
    ltx = Outline("ltx", "LTXPipeline", "ltx-video", 4096, reads_mask=True, layers=24)
    assert fit_of(pixart, ltx).fits and fit_of(pixart, ltx).notes == (
        "made for t5-xxl (PixArt-alpha and other T5-v1.1-xxl models)",
        "120 tokens beside prompts of 128: two passes of the denoiser",
        "no mask: all tokens are attended to",
    )
    flux = Outline("flux", "FluxPipeline", "flux", 4096, pooled=768, layers=24)
    assert fit_of(pixart, flux).reasons == ("pooled vector: it has none, the model reads one of width 768",)
    hiding = replace(pixart, mask=torch.arange(120)[None] < 20)
    reasons = fit_of(hiding, replace(flux, pooled=0)).reasons
    assert reasons == ("mask: it hides 100 tokens, the model reads no mask",)
    sd15 = Outline("sd", "StableDiffusionPipeline", "clip-l", 768, max_tokens=77, layers=12)
    long = NegativeEmbedding(torch.ones(1, 80, 768))
    assert fit_of(long, sd15).reasons == ("tokens: it has 80, the model takes 77",)


def test_videocrafters_denoiser_is_read_by_its_configuration(tmp_path: Path) -> None:
    config = {"_class_name": "UNet3DVideoCrafterConditionModel", "cross_attention_dim": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = outline(tmp_path)
    assert (found.family, found.width, found.max_tokens) == ("openclip-h", 1024, 77)
    assert fit_of(NegativeEmbedding(torch.ones(1, 77, 1024)), found).fits


def test_what_is_no_model_is_refused_as_loading_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No model at"):
        outline(tmp_path / "nothing")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MochiPipeline"}))
    with pytest.raises(ValueError, match=r"Got MochiPipeline in .*, which is not supported"):
        outline(tmp_path)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="Could not load"):
        outline(tmp_path)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["os", "system"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="Could not load"):
        outline(tmp_path)


def test_a_comparison_clip_has_both_side_by_side(tmp_path: Path) -> None:
    model = wrap(build("zeroscope"), "mine")
    embedding = NegativeEmbedding(5 * torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0)), model.family)
    sampling = Sampling(steps=2, size=Size(16, 16, 3)).at_scale(4.0)
    with Image.open(comparison_clip(model, embedding, "fox", 3, sampling, tmp_path / "clip.gif")) as found:
        assert found.size == (32, 16) and found.n_frames == 3
        picture = torch.frombuffer(bytearray(found.convert("RGB").tobytes()), dtype=torch.uint8).reshape(16, 2, 16, 3)
    assert (picture[:, 0].int() - picture[:, 1].int()).abs().max() > 5
    with pytest.raises(ValueError, match="which makes single pictures, expected a model of video"):
        comparison_clip(wrap(pipeline(), "p"), embedding, "fox", 3, Sampling(steps=1), tmp_path / "clip.gif")


def test_no_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build("sd15").save_pretrained(tmp_path)
    monkeypatch.setattr(diffusers.ModelMixin, "from_pretrained", lambda *args, **options: pytest.fail("weights read"))
    outline(tmp_path)
