"""Weights are recognised by what the file is; what is asked for has a place of its own."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from reneg_core.cli import main
from reneg_core.rewards import available_rewards, load_reward, recognition, weights
from reneg_core.rewards.published import (
    CLIP_BPE,
    HPSV20,
    HPSV21,
    OPEN_CLIP_PATCHES,
    PICKSCORE,
    TRANSFORMERS_PATCHES,
    VIT_H14,
    VIT_L14,
    WEIGHTS,
)
from reneg_core.rewards.registry import reward_class_of
from reneg_core.rewards.weights import MissingFile, Source, find_beside, find_file


@pytest.fixture(autouse=True)
def nothing_else_is_searched(monkeypatch):
    monkeypatch.delenv(weights.SEARCH_VARIABLE, raising=False)
    monkeypatch.setattr(weights, "_in_hub_cache", lambda file: None)


def patches(path, key, shape):
    """A file that has only the tensor that tells which network it is."""
    save_file({key: torch.zeros(shape)}, path)
    return path


@pytest.mark.parametrize(
    ("name", "key", "shape", "told"),
    [
        ("hpsv2.1", TRANSFORMERS_PATCHES, VIT_H14, r"a CLIP in the layout of transformers \(PickScore\)"),
        ("pickscore", OPEN_CLIP_PATCHES, VIT_H14, r"a CLIP in the layout of OpenAI and open_clip \(HPSv2\)"),
        ("clip_score", TRANSFORMERS_PATCHES, VIT_H14, r"a ViT-H/14 where the published weights are a ViT-L/14"),
        ("clip_score_b32", OPEN_CLIP_PATCHES, VIT_L14, r"a ViT-L/14 where the published weights are a ViT-B/32"),
        ("pickscore", TRANSFORMERS_PATCHES, VIT_L14, r"a ViT-L/14 where the published weights are a ViT-H/14"),
        ("image_reward", OPEN_CLIP_PATCHES, VIT_H14, r"a CLIP in the layout of OpenAI and open_clip \(HPSv2\)"),
        ("aesthetic", TRANSFORMERS_PATCHES, VIT_L14, r"a CLIP in the layout of transformers \(PickScore\)"),
    ],
)
def test_another_rewards_weights_are_told(tmp_path, name, key, shape, told):
    path = patches(tmp_path / "weights.safetensors", key, shape)
    with pytest.raises(ValueError, match=rf"weights\.safetensors holds {told}; expected .* Give the path of that file"):
        load_reward(name, weights=path)


def test_the_published_name_of_another_file_is_refused(open_clip_file, tmp_path):
    path = shutil.copy(open_clip_file, tmp_path / "HPS_v2_compressed.safetensors")
    options = {"config": open_clip_file.with_name("config.json"), "vocab": open_clip_file.parent}
    assert load_reward("hpsv2.0", weights=path, **options).name == "hpsv2.0"
    with pytest.raises(ValueError, match=r"is named as HPS_v2_compressed\.pt of xswu/HPSv2; expected HPS_v2\.1_compr"):
        load_reward("hpsv2.1", weights=path, **options)


def test_published_checksums_decide_where_they_are_known(open_clip_file, tmp_path, monkeypatch):
    """HPSv2.0 and 2.1 differ in nothing but their values."""
    path = shutil.copy(open_clip_file, tmp_path / "renamed.safetensors")
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    old = dataclasses.replace(HPSV20, size=size)
    new = dataclasses.replace(HPSV21, size=size, sha256=digest)
    monkeypatch.setattr(recognition, "WEIGHTS", (old, new))
    assert recognition.open_as(new, path).path == path
    with pytest.raises(
        ValueError, match=r"is HPS_v2\.1_compressed\.pt of xswu/HPSv2 \(by its SHA-256\); expected HPS_v2"
    ):
        recognition.open_as(old, path)
    other = dataclasses.replace(new, sha256="0" * 64)
    monkeypatch.setattr(recognition, "WEIGHTS", (old, other))
    with pytest.raises(ValueError, match=r"has the size of the published file but another SHA-256 .*damaged"):
        recognition.open_as(other, path)
    monkeypatch.setattr(recognition, "sha256", lambda path: pytest.fail("hashed without need"))
    monkeypatch.setattr(recognition, "WEIGHTS", (HPSV20, HPSV21))
    assert recognition.open_as(HPSV20, path).path == path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("every", [True, False])
def test_weights_that_are_no_numbers_are_refused(small_clip, tmp_path, value, every):
    shutil.copytree(small_clip.folder, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    for key in state if every else ["text_model.encoder.layers.1.mlp.fc1.bias"]:
        state[key].view(-1)[-1:] = value
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: .* holds NaN or infinite values in float32"):
        load_reward("pickscore", weights=tmp_path)


def test_weights_too_wide_for_half_precision_are_refused(small_clip, tmp_path):
    shutil.copytree(small_clip.folder, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    state["visual_projection.weight"][0, 0] = 1e5
    save_file(state, tmp_path / "model.safetensors")
    assert load_reward("pickscore", weights=tmp_path)
    with pytest.raises(ValueError, match=r"visual_projection\.weight holds .* in float16.*load it in fp32"):
        load_reward("pickscore", weights=tmp_path, dtype=torch.float16)


def test_a_head_without_numbers_is_refused(aesthetic_folder):
    path = aesthetic_folder / "sac+logos+ava1-l14-linearMSE.pth"
    head = torch.load(path, weights_only=True)
    head["layers.4.bias"][2] = torch.nan
    torch.save(head, path)
    with pytest.raises(ValueError, match=r"layers\.4\.bias holds NaN"):
        load_reward("aesthetic", weights=aesthetic_folder)


def test_no_two_rewards_ask_for_one_place():
    places = [file.place for file in WEIGHTS]
    assert len(set(places)) == len(places)
    own = [name for file in WEIGHTS for name in file.own_names]
    assert len(set(own)) == len(own)


def test_a_missing_file_names_a_place_of_its_own(tmp_path):
    asked = {}
    for name in ("pickscore", "clip_score", "clip_score_b32"):
        with pytest.raises(MissingFile) as caught:
            load_reward(name, search_dirs=[tmp_path])
        asked[name] = str(caught.value)
        assert "download=True" in str(caught.value) and "download" not in caught.value.plain
    assert f"put it at {tmp_path / 'PickScore_v1' / 'model.safetensors'}" in asked["pickscore"]
    assert f"put it at {tmp_path / 'clip-vit-large-patch14' / 'model.safetensors'}" in asked["clip_score"]
    assert f"put it at {tmp_path / 'clip-vit-base-patch32' / 'model.safetensors'}" in asked["clip_score_b32"]
    with pytest.raises(MissingFile, match=r"\(about 3\.71 MB\)"):
        load_reward("aesthetic", search_dirs=[tmp_path])


@pytest.mark.parametrize("place", ["PickScore_v1/model.safetensors", "PickScore_v1.safetensors", "model.safetensors"])
def test_old_places_and_names_are_found(small_clip, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    shutil.copy(small_clip.folder / "model.safetensors", tmp_path / place)
    assert find_file(PICKSCORE, Source(None, (tmp_path,))) == tmp_path / place


def test_a_shared_name_is_looked_into(tmp_path):
    """model.safetensors in the search folder itself may be anybody's."""
    patches(tmp_path / "model.safetensors", TRANSFORMERS_PATCHES, VIT_L14)
    assert reward_class_of("clip_score").locate(Source(None, (tmp_path,)))
    assert find_beside(PICKSCORE, Source(None, (tmp_path,))) is None
    with pytest.raises(MissingFile, match=r"passed over .*model\.safetensors holds a ViT-L/14 where"):
        find_file(PICKSCORE, Source(None, (tmp_path,)))


def test_broken_files_in_the_folder_block_nothing(small_clip, tmp_path):
    for name in ("model.safetensors", "pickscore-old.safetensors", "pickscore.pt", "anything.safetensors", "x.bin"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(MissingFile, match=r"passed over .*pickscore-old\.safetensors is not a complete safetensors"):
        load_reward("pickscore", search_dirs=[tmp_path])
    shutil.copytree(small_clip.folder, tmp_path / "PickScore_v1")
    assert load_reward("pickscore", search_dirs=[tmp_path]).name == "pickscore"
    shutil.copy(small_clip.folder / "model.safetensors", tmp_path / "pickscore-new.safetensors")
    shutil.rmtree(tmp_path / "PickScore_v1")
    assert find_file(PICKSCORE, Source(None, (tmp_path,))) == tmp_path / "pickscore-new.safetensors"
    (tmp_path / "PickScore_v1").mkdir()
    (tmp_path / "PickScore_v1" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"PickScore_v1/model\.safetensors is not a complete safetensors file"):
        load_reward("pickscore", search_dirs=[tmp_path])


def test_weights_without_a_telling_name_are_taken_only_from_a_folder_given_for_them(small_clip, tmp_path):
    shutil.copy(small_clip.folder / "model.safetensors", tmp_path / "some.safetensors")
    assert find_file(PICKSCORE, Source(tmp_path)) == tmp_path / "some.safetensors"
    with pytest.raises(MissingFile):
        find_file(PICKSCORE, Source(None, (tmp_path,)))


@pytest.mark.parametrize("packed", [False, True])
def test_reneg_rewards_finds_what_loading_finds(small_clip, small_blip, tmp_path, capsys, packed):
    """The vocabulary lies beside the weights, not in the search folder itself."""
    shutil.copytree(small_clip.folder, tmp_path / "PickScore_v1", ignore=shutil.ignore_patterns("open_clip"))
    shutil.copytree(small_blip.folder, tmp_path / "ImageReward")
    if packed:
        (tmp_path / "PickScore_v1" / CLIP_BPE.name).write_bytes(b"")
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / "PickScore_v1" / name).unlink()
    assert main(["rewards", "--format", "json", "--search-dir", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["pickscore"]["ready"] and rows["image_reward"]["ready"]
    assert not rows["clip_score"]["ready"]
    if not packed:
        load_reward("pickscore", search_dirs=[tmp_path])
        (tmp_path / "PickScore_v1" / "merges.txt").unlink()
        assert main(["rewards", "--format", "json", "--search-dir", str(tmp_path)]) == 0
        rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
        assert [entry["file"] for entry in rows["pickscore"]["missing"]] == ["merges.txt"]


def test_reneg_rewards_says_what_is_ambiguous(small_clip, tmp_path, capsys):
    for name in ("pickscore-a.safetensors", "pickscore-b.safetensors"):
        shutil.copy(small_clip.folder / "model.safetensors", tmp_path / name)
    assert main(["rewards", "--search-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "holds several files that could be model.safetensors: pickscore-a.safetensors, pickscore-b" in out
    assert len(out.split("\n")) > len(available_rewards())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class A(Reward):\n    name = 'a'\n", r"A has no _score\(images, prompts\); expected one that returns"),
        ("def broken(:\n", r"cannot be imported \(SyntaxError"),
        ("import no_such_package_here\n", r"cannot be imported \(ModuleNotFoundError: No module named 'no_such"),
    ],
)
def test_a_users_file_that_cannot_score_is_refused(tmp_path, capsys, body, message):
    path = tmp_path / "mine.py"
    path.write_text("from reneg_core.rewards import Reward\n" + body)
    with pytest.raises(ValueError, match=rf"mine\.py.*{message}"):
        load_reward(str(path))
    assert main(["score", "--reward", str(path), "--prompt", "x", str(path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_an_option_that_a_reward_does_not_take_is_refused(small_clip):
    with pytest.raises(ValueError, match=r"reward 'pickscore' takes no variant; it takes checkpointing, config"):
        load_reward("pickscore", weights=small_clip.folder, variant="hessel")
    assert load_reward("brightness", search_dirs=["somewhere"]).name == "brightness", "where to look is not an option"
