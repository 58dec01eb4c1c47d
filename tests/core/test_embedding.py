"""The embedding file: round trips, every published layout, and one clear sentence for everything that is wrong."""

import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reneg_core import Conditioning, NegativeEmbedding, load_embedding
from reneg_core.conventions import family_of_width
from reneg_core.embedding import Provenance
from reneg_core.sampling import Sampling


def random(length: int = 77, width: int = 768, seed: int = 0, **options: object) -> NegativeEmbedding:
    tokens = torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed))
    return NegativeEmbedding(tokens, **options)


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    sampling = Sampling("dpmpp_2m", 10, "karras").at_scale(3.0)
    notes = {"lr": 0.005, "training": {"window": [0, 1]}}
    provenance = Provenance("sd15", "abc", "hpsv2.1", 100, 7.5, 3, "def", "0.1.0", "", notes, sampling.to_mapping())
    mask = torch.ones(1, 120)
    original = random(120, 4096, mask=mask, provenance=provenance)
    path = original.save(tmp_path / "new folder" / "e.safetensors")
    loaded = load_embedding(path)
    assert torch.equal(loaded.tokens, original.tokens) and torch.equal(loaded.mask, mask.long())
    assert loaded.family == "t5-xxl" and loaded.provenance == provenance and loaded.pooled is None
    assert loaded.sampling == sampling
    assert list(path.parent.iterdir()) == [path]


def test_file_explains_itself(tmp_path: Path) -> None:
    path = random(2, 2048, pooled=torch.ones(1, 1280)).save(tmp_path / "e.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata()["family"] == "sdxl" and "base_model" in json.loads(file.metadata()["provenance"])
        assert sorted(file.keys()) == ["pooled", "tokens"]


@pytest.mark.parametrize(
    ("name", "family", "length", "width"),
    [
        ("sd1.4", "clip-l", 77, 768),
        ("sd1.5", "clip-l", 77, 768),
        ("sd2.1", "openclip-h", 77, 1024),
        ("pixart-alpha", "t5-xxl", 120, 4096),
    ],
)
def test_published_files(shared_data: Path, name: str, family: str, length: int, width: int) -> None:
    found = load_embedding(shared_data / "reneg" / f"{name}_reneg_emb.bin")
    assert (found.family, found.length, found.width) == (family, length, width)
    assert found.provenance.source == f"{name}_reneg_emb.bin"


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_tensors(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    tokens, path = random().tokens, tmp_path / f"e{suffix}"
    if suffix == ".safetensors":
        save_file({"anything": tokens}, path)
    else:
        torch.save({"emb": tokens} if wrapped else tokens[0], path)
    assert torch.equal(load_embedding(path).tokens, tokens)


def test_ltx_layout_both_ways(tmp_path: Path) -> None:
    embedding = random(128, 4096, mask=torch.tensor([[1] * 100 + [0] * 28]))
    path = embedding.save(tmp_path / "ltx.safetensors", layout="ltx")
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["attention_mask_0", "conditioning_data_0"]
    assert torch.equal(load_embedding(path).mask, embedding.mask)
    save_file({"conditioning_data_0": embedding.tokens, "attention_mask_0": embedding.mask}, tmp_path / "b.safetensors")
    assert load_embedding(tmp_path / "b.safetensors").family == "t5-xxl"
    unmasked = random(7, 4096).save(tmp_path / "unmasked.safetensors", layout="ltx")
    with safe_open(unmasked, "pt") as file:
        mask = file.get_tensor("attention_mask_0")
    assert mask.dtype == torch.int64 and mask.tolist() == [[1] * 7], "without a mask all tokens are attended to"
    pooled = random(2, 2048, pooled=torch.ones(1, 1280))
    with pytest.raises(ValueError, match="ltx layout has no place for a pooled vector"):
        pooled.save(tmp_path / "c.safetensors", layout="ltx")


def test_never_overwrites_unasked(tmp_path: Path) -> None:
    path = random(seed=1).save(tmp_path / "e.safetensors")
    with pytest.raises(FileExistsError, match=r"exists already\. Try another name, or ask to overwrite it"):
        random(seed=2).save(path)
    random(seed=2).save(path, overwrite=True)
    assert torch.equal(load_embedding(path).tokens, random(seed=2).tokens)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = random(seed=1).save(tmp_path / "e.safetensors")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"Could not write \d+ bytes \(No space left on device\)"):
        random(seed=2).save(path, overwrite=True)
    assert torch.equal(load_embedding(path).tokens, random(seed=1).tokens)
    assert list(tmp_path.iterdir()) == [path]


class Unsafe:
    def __reduce__(self):
        return print, ("ran",)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name to (file, expected message)."""
    whole = random().save(folder / "whole.safetensors").read_bytes()
    torch.save(random().tokens, folder / "whole.pt")
    (folder / "cut.safetensors").write_bytes(whole[:5000])
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:5000])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.bin").write_bytes(b"hello, no embedding here")
    (folder / "unsafe.pt").write_bytes(pickle.dumps(Unsafe()))
    torch.save({"string_to_param": {"*": torch.zeros(4, 768)}}, folder / "inversion.pt")
    torch.save({"a": torch.zeros(77, 768), "b": torch.zeros(77, 768)}, folder / "two.pt")
    torch.save(torch.full((1, 77, 768), float("nan")), folder / "nan.pt")
    torch.save(torch.zeros(2, 77, 768), folder / "batch.pt")
    expected = {
        "cut.safetensors": "Got a damaged or truncated safetensors file cut.safetensors",
        "cut.pt": "cut.pt",
        "empty.safetensors": "Got a damaged or truncated safetensors file",
        "text.bin": "text.bin",
        "unsafe.pt": "Refused unsafe.pt: it is no plain tensor file",
        "inversion.pt": "textual-inversion embedding",
        "two.pt": "Got 2 tensors",
        "nan.pt": "Got 59136 NaN or infinite values in the embedding's tokens",
        "batch.pt": r"Got tokens of shape \[2, 77, 768\]",
    }
    return {name: (folder / name, message) for name, message in expected.items()}


def test_bad_files_get_one_clear_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path, message in bad_files(tmp_path).values():
        with pytest.raises(ValueError, match=message) as caught:
            load_embedding(path)
        assert "\n" not in str(caught.value)
    assert "ran" not in capfd.readouterr().out
    with pytest.raises(ValueError, match="Got the directory"):
        load_embedding(tmp_path)
    with pytest.raises(FileNotFoundError, match="No embedding file at"):
        load_embedding(tmp_path / "absent.safetensors")


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(ValueError) as caught:
        random(77, 1024).require("clip-l", 768)
    text = str(caught.value)
    assert "openclip-h (Stable Diffusion 2.x" in text and "clip-l (Stable Diffusion 1.x)" in text
    assert "sd1.5_reneg_emb.bin" in text
    with pytest.raises(ValueError, match="Got an embedding of 77 tokens, this model takes at most 16"):
        random().require("clip-l", 768, 16)
    with pytest.raises(ValueError, match=r"Got width 1024 for the text encoder clip-l.*expected 768"):
        random(77, 1024, family="clip-l")


def test_a_convention_decides_who_reads_what() -> None:
    """Not the width: T5's tokens of one family are read by others, CLIP with T5 is something else as wide."""
    pixart = random(120, 4096)
    assert pixart.family == "t5-xxl"
    for family in ("t5-xxl", "pixart-sigma", "chroma"):
        pixart.require(family, 4096)
    with pytest.raises(ValueError, match=r"text encoder t5-xxl \(PixArt.*this model uses sd3 \(Stable Diffusion 3\)"):
        pixart.require("sd3", 4096)
    half = random(120, 4096).blend(random(120, 4096, family="flux"), 0.5)
    assert half.family == "t5-xxl"


def test_a_width_is_looked_up_among_the_families_that_can_be() -> None:
    assert family_of_width(4096) == "t5-xxl" and family_of_width(4096, ("sd3",)) == "sd3"
    assert family_of_width(2048, ("clip-l", "openclip-h")) == "width-2048"


def test_blend_and_strength() -> None:
    a, b = random(seed=1), random(seed=2)
    assert torch.equal(a.blend(b, 0).tokens, a.tokens) and torch.equal(a.blend(b, 1).tokens, b.tokens)
    assert torch.allclose(a.blend(b, 0.25).tokens, 0.75 * a.tokens + 0.25 * b.tokens, atol=1e-6)
    null = Conditioning(b.tokens)
    assert torch.equal(a.toward_null(null, 1).tokens, a.tokens)
    assert torch.equal(a.toward_null(null, 0).tokens, b.tokens)
    assert torch.allclose(a.toward_null(null, 2).tokens, 2 * a.tokens - b.tokens, atol=1e-5)
    with pytest.raises(ValueError, match="expected equal lengths"):
        a.blend(random(10), 0.5)


def test_a_file_of_an_older_version_has_no_sampling(tmp_path: Path) -> None:
    older = {"base_model": "sd15", "guidance_scale": 7.5, "notes": {}, "rewards": "hpsv2.1", "seed": 0, "steps": 9}
    metadata = {"format": "reneg-embedding", "format_version": "1", "family": "clip-l", "provenance": json.dumps(older)}
    save_file({"tokens": random().tokens}, tmp_path / "e.safetensors", metadata)
    loaded = load_embedding(tmp_path / "e.safetensors")
    assert loaded.sampling is None and loaded.provenance.guidance_scale == 7.5


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ([1], "Got unreadable provenance in e.safetensors (sampling is list"),
        ({"steps": -1}, "Got an embedding with unreadable sampling settings (Got -1 sampling steps"),
    ],
)
def test_a_sampling_that_cannot_be_is_one_clear_sentence(tmp_path: Path, recorded: object, message: str) -> None:
    metadata = {"format": "reneg-embedding", "format_version": "1", "provenance": json.dumps({"sampling": recorded})}
    save_file({"tokens": random().tokens}, tmp_path / "e.safetensors", metadata)
    with pytest.raises(ValueError, match=re.escape(message)):
        _ = load_embedding(tmp_path / "e.safetensors").sampling


def test_settings_of_a_newer_version_are_left_out() -> None:
    recorded = {**Sampling(steps=12).to_mapping(), "tiles": 4}
    assert random(provenance=Provenance(sampling=recorded)).sampling == Sampling(steps=12)


def test_a_blend_was_learned_for_what_both_were() -> None:
    ten, twenty = (Provenance(sampling=Sampling(steps=steps).to_mapping()) for steps in (10, 20))
    assert random(provenance=ten).blend(random(provenance=ten), 0.5).sampling == Sampling(steps=10)
    assert random(provenance=ten).blend(random(provenance=twenty), 0.5).sampling is None
    null = Conditioning(random(seed=3).tokens)
    assert random(provenance=ten).toward_null(null, 0.5).sampling == Sampling(steps=10)


def test_strength_keeps_mask_and_pooled() -> None:
    full = random(mask=torch.ones(1, 77), pooled=torch.full((1, 4), 3.0))
    null = Conditioning(random(seed=2).tokens, None, torch.ones(1, 4))
    half = full.toward_null(null, 0.5)
    assert torch.equal(half.mask, full.mask) and torch.equal(half.pooled, torch.full((1, 4), 2.0))
    hidden = replace(full, mask=torch.tensor([[1] * 70 + [0] * 7]))
    with pytest.raises(ValueError, match="different attention masks"):
        hidden.toward_null(null, 0.5)
    padded = Conditioning(null.tokens, torch.tensor([[1] * 3 + [0] * 74]), null.pooled)
    assert torch.equal(full.toward_null(padded, 0.5).mask, full.mask)
    with pytest.raises(ValueError, match="Got one embedding with a pooled vector and one without"):
        full.toward_null(Conditioning(null.tokens), 0.5)
    with pytest.raises(ValueError, match="Got one embedding with a pooled vector and one without"):
        random().toward_null(null, 0.5)


def test_compare() -> None:
    a = random(seed=1)
    doubled = replace(a, tokens=2 * a.tokens)
    found = a.compare(doubled)
    assert found["cosine"] == pytest.approx(1, abs=1e-6) and len(found["cosine_per_token"]) == 77
    assert found["norm_other"] == pytest.approx(2 * found["norm"])
    assert found["distance"] == pytest.approx(found["norm"])
