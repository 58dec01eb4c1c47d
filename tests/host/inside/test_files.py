"""Names from a graph stay in the pack's folders; embeddings come and go as files."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch
from reneg_pack.nodes.embedding import BlendEmbeddings, ConditioningToEmbedding, LoadEmbedding, SaveEmbedding
from reneg_pack.nodes.host import files, rewards
from reneg_pack.nodes.layout import to_host

import nodes

ESCAPES = [
    "/etc/passwd",
    "../x.safetensors",
    "a/../../x.safetensors",
    "C:/x.safetensors",
    "\\\\server\\x.bin",
    "a\x00.safetensors",
    "..",
    "",
    "~/x.bin",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_name_leaves_the_folders(name) -> None:
    for function in (files.embedding_path, files.new_file, files.run_folder, files.reward_weights, files.prompt_path):
        with pytest.raises((ValueError, FileNotFoundError)):
            function(name)
    assert isinstance(LoadEmbedding.validate_inputs(embedding_name=name), str)


def test_links_that_leave_the_folder_are_refused(tmp_path) -> None:
    outside = tmp_path / "secret.safetensors"
    outside.write_bytes(b"x")
    link = Path(folder_paths.models_dir) / "reneg" / "link.safetensors"
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    folder = files.output_root() / "linked"
    if folder.is_symlink():
        folder.unlink()
    folder.symlink_to(tmp_path, target_is_directory=True)
    try:
        with pytest.raises(ValueError, match=r"links to a place outside.*extra_model_paths"):
            files.embedding_path("link.safetensors")
        with pytest.raises(ValueError, match="links to a place outside"):
            files.new_file("linked/new")
    finally:
        link.unlink()
        folder.unlink()


def test_save_then_load_gives_the_same_and_never_overwrites(call, embedding, checkpoint) -> None:
    for name in (call(SaveEmbedding, embedding=embedding, filename="mine/test", layout="reneg")[0] for _ in range(2)):
        assert name in files.embedding_names()
        conditioning, loaded = call(LoadEmbedding, embedding_name=name, strength=1.0, clip=checkpoint[1]).args
        assert torch.equal(loaded.tokens, embedding.tokens)
        assert torch.equal(conditioning[0][0], embedding.tokens)
    assert name.startswith("mine/test_0")


def test_loading_says_what_the_embedding_was_learned_for(call, embedding) -> None:
    from reneg_core.embedding import Provenance
    from reneg_core.sampling import Sampling

    def told(name: str, origin: Provenance) -> str:
        made = replace(embedding, provenance=origin)
        made.save(files.output_root() / f"{name}.safetensors", overwrite=True)
        return call(LoadEmbedding, embedding_name=f"{name}.safetensors", strength=1.0).ui["text"][0]

    sampling = Sampling("dpmpp_2m", 20, "karras").at_scale(5)
    text = told("says", Provenance(base_model="SD15 (scheduler karras)", sampling=sampling.to_mapping()))
    assert "trained on SD15 (scheduler karras)" in text
    assert f"learned for {sampling.describe()} (in KSampler: dpmpp_2m and karras)" in text
    old = told("old", Provenance(base_model="SD15", guidance_scale=7.5))
    assert "does not say for which sampler, steps and guidance it was learned; it was learned at" in old
    assert "learned" not in told("words", Provenance(source="conditioning"))


def test_a_pickle_with_code_is_refused(call) -> None:
    class Evil:
        def __reduce__(self):
            return (os.system, ("true",))

    path = Path(folder_paths.models_dir) / "reneg" / "evil.pt"
    path.write_bytes(pickle.dumps(Evil()))
    try:
        with pytest.raises(ValueError, match=r"Refused evil\.pt|damaged or truncated file evil\.pt"):
            call(LoadEmbedding, embedding_name="evil.pt", strength=1.0)
    finally:
        path.unlink()


def test_wrong_family_names_the_file_that_fits(call, checkpoint) -> None:
    from reneg_core import NegativeEmbedding

    NegativeEmbedding(torch.ones(1, 77, 1024)).save(files.output_root() / "wide.safetensors", overwrite=True)
    with pytest.raises(ValueError, match=r"openclip-h.*clip-l.*sd1\.5_reneg_emb\.bin"):
        call(LoadEmbedding, embedding_name="wide.safetensors", strength=1.0, clip=checkpoint[1])
    (files.output_root() / "wide.safetensors").unlink()


def test_strength_is_measured_from_the_empty_prompt(call, embedding, checkpoint) -> None:
    name = call(SaveEmbedding, embedding=embedding, filename="strength", layout="reneg")[0]
    null = nodes.CLIPTextEncode().encode(checkpoint[1], "")[0][0][0]
    zero = call(LoadEmbedding, embedding_name=name, strength=0.0, clip=checkpoint[1])[0][0][0]
    assert torch.allclose(zero, null, atol=1e-6)
    with pytest.raises(ValueError, match=r"strength 0.5 without a text encoder.*Connect CLIP"):
        call(LoadEmbedding, embedding_name=name, strength=0.5)


def test_prompt_becomes_an_embedding_and_blends(call, checkpoint, embedding) -> None:
    ugly = call(
        ConditioningToEmbedding,
        conditioning=nodes.CLIPTextEncode().encode(checkpoint[1], "ugly")[0],
        clip=checkpoint[1],
    )[0]
    assert ugly.family == "clip-l" and ugly.length == 77
    halfway = call(BlendEmbeddings, first=ugly, second=embedding, weight=0.5)[1]
    assert torch.allclose(halfway.tokens, (ugly.tokens + embedding.tokens) / 2, atol=1e-5)
    assert ugly.pooled is None
    two = [*nodes.CLIPTextEncode().encode(checkpoint[1], "a")[0] * 2]
    with pytest.raises(ValueError, match="conditioning of 2 entries"):
        call(ConditioningToEmbedding, conditioning=two)


def test_masked_tokens_are_cut_and_the_pooled_vector_is_kept() -> None:
    from reneg_core import NegativeEmbedding

    mask = torch.ones(1, 120, dtype=torch.int64)
    mask[:, 50:] = 0
    [[tokens, extra]] = to_host(NegativeEmbedding(torch.randn(1, 120, 4096), mask=mask))
    assert tokens.shape == (1, 50, 4096) and extra["attention_mask"].tolist() == [[1] * 50]
    pooled = torch.randn(1, 1280)
    [[_, extra]] = to_host(NegativeEmbedding(torch.randn(1, 77, 2048)), {"pooled_output": pooled, "control": 1})
    assert torch.equal(extra["pooled_output"], pooled) and extra["control"] == 1


def test_a_new_file_changes_the_fingerprint_and_the_list(call, embedding) -> None:
    name = call(SaveEmbedding, embedding=embedding, filename="print", layout="reneg")[0]
    before = LoadEmbedding.fingerprint_inputs(embedding_name=name)
    os.utime(files.embedding_path(name), ns=(1, 1))
    assert LoadEmbedding.fingerprint_inputs(embedding_name=name) != before
    options = LoadEmbedding.define_schema().inputs[0].options
    assert name in options


def test_reward_is_loaded_once_and_missing_weights_say_where() -> None:
    first = rewards.load("sharpness", None, torch.float32)
    assert rewards.load("sharpness", None, torch.float32) is first
    with pytest.raises(FileNotFoundError, match="reward_models"):
        rewards.load("pickscore", None, torch.float32)
    with pytest.raises(ValueError, match=r"Got reward '/elsewhere/x\.py'"):
        rewards.load("/elsewhere/x.py", None, torch.float32)


def test_an_embedding_is_text_only_and_what_is_left_out_is_named(call, checkpoint, caplog) -> None:
    [[tokens, extra]] = nodes.CLIPTextEncode().encode(checkpoint[1], "ugly")[0]
    made = call(ConditioningToEmbedding, conditioning=[[tokens, {**extra, "control": object(), "strength": 0.5}]])[0]
    assert torch.equal(made.tokens, tokens) and "left out: control, strength" in caplog.text
    caplog.clear()
    call(ConditioningToEmbedding, conditioning=[[tokens, extra]])
    assert not caplog.text
