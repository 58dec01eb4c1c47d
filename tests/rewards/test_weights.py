"""Finding, refusing, downloading and verifying weight files."""

import hashlib
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import save_file

from reneg_core.rewards import load_reward, weights
from reneg_core.rewards.checkpoint import Checkpoint
from reneg_core.rewards.weights import PublishedFile, Source, find_file, verify


def test_a_missing_file_says_which_where_and_how(tmp_path, monkeypatch):
    monkeypatch.delenv(weights.SEARCH_VARIABLE, raising=False)
    with pytest.raises(FileNotFoundError) as caught:
        load_reward("image_reward", weights=tmp_path)
    message = str(caught.value)
    for part in (
        "ImageReward.pt not found",
        str(tmp_path),
        "https://huggingface.co/zai-org/ImageReward",
        "about 1.79 GB",
        "put it at",
        "download=True, --download",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match=r"HPS_v2\.1_compressed\.pt .*RENEG_REWARD_MODELS"):
        load_reward("hpsv2.1")
    with pytest.raises(FileNotFoundError, match=r"does not exist; expected a file or a directory"):
        load_reward("pickscore", weights=tmp_path / "none")


def test_search_directories_and_environment(small_clip, tmp_path, monkeypatch, images):
    folder = tmp_path / "models" / "PickScore_v1"
    shutil.copytree(small_clip.folder, folder)
    expected = load_reward("pickscore", weights=small_clip.folder).score(images, ["a fox"])
    found = load_reward("pickscore", search_dirs=[tmp_path / "empty", tmp_path / "models"])
    assert torch.equal(found.score(images, ["a fox"]), expected)
    monkeypatch.setenv(weights.SEARCH_VARIABLE, str(tmp_path / "models"))
    assert torch.equal(load_reward("pickscore").score(images, ["a fox"]), expected)


def test_another_versions_file_is_never_taken(open_clip_file, tmp_path):
    """A folder with only HPSv2.0 must not serve HPSv2.1, nor another reward's file."""
    shutil.copytree(open_clip_file.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "weights.safetensors").rename(tmp_path / "HPS_v2_compressed.safetensors")
    with pytest.raises(FileNotFoundError, match=r"HPS_v2\.1_compressed\.pt not found"):
        load_reward("hpsv2.1", weights=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors not found"):
        load_reward("pickscore", weights=tmp_path)
    assert load_reward("hpsv2.0", weights=tmp_path, config=tmp_path / "config.json").name == "hpsv2.0"
    (tmp_path / "HPS_v2_compressed.safetensors").rename(tmp_path / "HPS_v2.1_compressed.safetensors")
    with pytest.raises(FileNotFoundError, match=r"HPS_v2_compressed\.pt not found"):
        load_reward("hpsv2.0", weights=tmp_path)


def test_renamed_copies_are_recognised_and_ambiguity_is_refused(small_clip, tmp_path, images):
    shutil.copytree(small_clip.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "PickScore copy.safetensors")
    save_file({"unrelated": torch.zeros(1)}, tmp_path / "pickscore_notes.safetensors")
    config = tmp_path / "config.json"
    assert load_reward("pickscore", weights=tmp_path, config=config).score(images, ["fox"]).shape == (3,)
    shutil.copy(tmp_path / "PickScore copy.safetensors", tmp_path / "other.safetensors")
    shutil.copy(tmp_path / "PickScore copy.safetensors", tmp_path / "third.safetensors")
    with pytest.raises(ValueError, match=r"several files that could be model\.safetensors: other.*third"):
        load_reward("clip_score", weights=tmp_path)
    assert load_reward("pickscore", weights=tmp_path).name == "pickscore", "the name tells which of the three"
    with pytest.raises(FileNotFoundError, match=r"passed over .*other\.safetensors holds a CLIP in the layout"):
        load_reward("hpsv2.1", weights=tmp_path)


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_pickles_that_run_code_are_refused(tmp_path, capsys):
    path = tmp_path / "ImageReward.pt"
    torch.save({"state_dict": {"a": Payload()}}, path)
    with pytest.raises(ValueError, match=r"a pickle that may run code, which is never loaded") as caught:
        load_reward("image_reward", weights=path)
    assert "weights_only" not in str(caught.value) and "trust" not in str(caught.value)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"cannot be read as plain tensors"):
        load_reward("image_reward", weights=path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short"])
def test_incomplete_files_are_refused(tmp_path, content):
    for name in ("model.safetensors", "model.pt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="download"):
            Checkpoint(tmp_path / name)


def test_other_contents_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a state dict"):
        Checkpoint(tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a weight file ending in"):
        Checkpoint(tmp_path / "weights.ckpt2")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"holds no weights of this reward \(lacks vision_model\.embeddings"):
        load_reward("pickscore", weights=tmp_path / "a.safetensors")


def test_the_relu_head_is_refused_by_name(tmp_path):
    path = tmp_path / "ava+logos-l14-reluMSE.pth"
    torch.save({"layers.0.weight": torch.zeros(1, 1)}, path)
    with pytest.raises(ValueError, match=r"ReLU activations, another network"):
        load_reward("aesthetic", weights=path)


def test_digest_is_recorded_once_and_checked_ever_after(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert verify(path) == digest
    assert json.loads((tmp_path / weights.DIGESTS).read_text()) == {"model.safetensors": digest}
    assert verify(path, digest) == digest
    with pytest.raises(OSError, match="expected 00"):
        verify(path, "00")
    path.write_bytes(b"weightz")
    with pytest.raises(OSError, match=f"SHA-256 is .*, expected {digest}; delete the file and download it again"):
        verify(path)


@pytest.fixture
def fetched(monkeypatch):
    """What is asked of the network, which gives one file; `digest` is what is published beside it."""
    content = b"published"
    state = {"digest": hashlib.sha256(content).hexdigest(), "calls": []}

    def fetch(url, path, *, sha256="", told=None):
        state["calls"].append((url, sha256))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        told(path.name, len(content), len(content))
        return sha256 or state["digest"]

    monkeypatch.setattr(weights, "fetch", fetch)
    return state


def test_download_only_when_asked_into_the_first_directory(tmp_path, fetched):
    file = PublishedFile("w.safetensors", "someone/some-model", sha256="ab")
    with pytest.raises(FileNotFoundError):
        find_file(file, Source(None, (tmp_path,)))
    assert fetched["calls"] == []
    path = find_file(file, Source(None, (tmp_path,), download=True))
    assert path == tmp_path / "some-model" / "w.safetensors"
    assert fetched["calls"] == [("https://huggingface.co/someone/some-model/resolve/main/w.safetensors", "ab")]
    assert find_file(file, Source(None, (tmp_path,), download=True)) == path
    assert len(fetched["calls"]) == 1


def test_a_download_is_told_of_and_without_a_published_digest_its_own_is_recorded(tmp_path, fetched):
    told = []
    fetched["digest"] = ""
    file = PublishedFile("w.safetensors", homepage="https://example.org/page", url="https://example.org/w.safetensors")
    path = find_file(file, Source(None, (tmp_path,), download=lambda *now: told.append(now)))
    assert told == [("w.safetensors", 9, 9)] and fetched["calls"] == [("https://example.org/w.safetensors", "")]
    digest = hashlib.sha256(b"published").hexdigest()
    assert json.loads((path.parent / weights.DIGESTS).read_text()) == {"w.safetensors": digest}
