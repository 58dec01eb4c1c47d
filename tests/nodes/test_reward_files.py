"""Without a host: what the nodes say of missing and broken files, and what *automatic* finds among them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from reneg_core.rewards import weights
from reneg_core.rewards.published import TRANSFORMERS_PATCHES, VIT_H14, VIT_L14

from .fake_host import imported


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """nodes.host.files and nodes.host.rewards on folders of their own."""
    monkeypatch.delenv(weights.SEARCH_VARIABLE, raising=False)
    monkeypatch.setattr(weights, "_in_hub_cache", lambda file: None)
    folders = {name: tmp_path / name for name in ("reneg", "reward_models")}
    for folder in folders.values():
        folder.mkdir()
    with imported("host.files", "host.rewards") as [files, rewards]:
        for module in (files, rewards):
            module.folder_paths.get_folder_paths = lambda kind: [str(folders[kind])]
            module.folder_paths.get_filename_list = lambda kind: sorted(p.name for p in folders[kind].iterdir())
        yield SimpleNamespace(
            files=files, rewards=rewards, folder=folders["reward_models"], embeddings=folders["reneg"]
        )


def test_a_missing_embedding_names_folder_file_size_and_address(host: Any) -> None:
    (host.embeddings / "other.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        host.files.embedding_path("gone.safetensors")
    said = str(caught.value)
    assert str(host.embeddings) in said and "there is other.safetensors." in said and "sd1.5_reneg_emb.bin" in said
    assert "https://github.com/AMD-AIG-AIMA/ReNeg" in said
    for name in ("sd2.1_reneg_emb.bin", "sd2.1_reneg_emb.bin (not installed)"):
        with pytest.raises(FileNotFoundError) as caught:
            host.files.embedding_path(name)
        assert str(caught.value) == (
            f"sd2.1_reneg_emb.bin is not in {host.embeddings}. It is published at https://github.com/AMD-AIG-AIMA/ReNeg/"
            "raw/main/checkpoints/sd2.1_reneg_emb.bin (about 0.317 MB): put it there, or switch download on."
        )


def test_the_list_shows_what_is_installed_and_of_a_run_its_result_alone(host: Any, tmp_path: Path) -> None:
    run = ("best", "negative", "shown", "start", "checkpoints/step-1")
    listed = [f"run/{name}.safetensors" for name in run] + ["young/best.safetensors", "sd1.5_reneg_emb.bin", "link.pt"]
    for name in listed[:-1]:
        (host.embeddings / name).parent.mkdir(parents=True, exist_ok=True)
        (host.embeddings / name).write_bytes(b"")
    (tmp_path / "secret.pt").write_bytes(b"")
    (host.embeddings / "link.pt").symlink_to(tmp_path / "secret.pt")
    host.files.folder_paths.get_filename_list = lambda kind: listed
    absent = ("sd1.4_reneg_emb.bin", "sd2.1_reneg_emb.bin", "pixart-alpha_reneg_emb.bin")
    assert host.files.embedding_names() == [
        "run/negative.safetensors",
        "sd1.5_reneg_emb.bin",
        "young/best.safetensors",
        *(f"{name} (not installed)" for name in absent),
    ]
    (host.folder / "link.pt").symlink_to(tmp_path / "secret.pt")
    (host.folder / "own.pt").write_bytes(b"")
    assert host.files.reward_weight_names() == ["own.pt"]


def test_only_published_embeddings_are_downloaded(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, path: Path, **rest: Any) -> None:
        asked.append((url, path, rest["sha256"][:8]))
        path.write_bytes(b"x")

    monkeypatch.setattr(host.files, "fetch", fetch)
    name, target = "sd1.4_reneg_emb.bin", host.embeddings / "sd1.4_reneg_emb.bin"
    for _ in range(2):
        assert host.files.download_embedding(f"{name} (not installed)", print) == target
    address = f"https://github.com/AMD-AIG-AIMA/ReNeg/raw/main/checkpoints/{name}"
    assert asked == [(address, target, "5c00f225")], "what is there is not fetched again"
    for wrong in ("other.bin", "../sd1.5_reneg_emb.bin", "sub/sd1.5_reneg_emb.bin"):
        with pytest.raises((FileNotFoundError, ValueError)):
            host.files.download_embedding(wrong, print)
    assert len(asked) == 1


def test_a_reward_is_downloaded_only_when_it_is_allowed(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, path: Path, **rest: Any) -> None:
        asked.append((url, path, rest["told"]))
        raise OSError("far away")

    monkeypatch.setattr(weights, "fetch", fetch)
    with pytest.raises(FileNotFoundError, match="switch download on"):
        host.rewards.load("hpsv2.1", None, torch.float32)
    with pytest.raises(OSError, match="far away"):
        host.rewards.load("hpsv2.1", None, torch.float32, print)
    name = "HPS_v2.1_compressed.pt"
    address = f"https://huggingface.co/xswu/HPSv2/resolve/main/{name}"
    assert asked == [(address, host.folder / "HPSv2" / name, print)]


def test_the_rewards_that_are_installed_are_known_by_their_files(host: Any) -> None:
    assert host.rewards.installed("brightness") and not host.rewards.installed("hpsv2.1")
    (host.folder / "model.safetensors").write_bytes(b"")
    assert not host.rewards.installed("pickscore"), "that name is anybody's"
    (host.folder / "HPSv2").mkdir()
    (host.folder / "HPSv2" / "HPS_v2.1_compressed.pt").write_bytes(b"")
    assert host.rewards.installed("hpsv2.1") and not host.rewards.installed("hpsv2.0")


def test_a_missing_reward_names_places_of_its_own_and_no_download(host: Any) -> None:
    said = {}
    for name in ("pickscore", "clip_score", "clip_score_b32", "aesthetic"):
        with pytest.raises(FileNotFoundError) as caught:
            host.rewards.load(name, None, torch.float32)
        said[name] = str(caught.value)
        assert "--download" not in said[name] and "https://" in said[name]
    places = [text.split("put it at ")[1] for text in said.values()]
    assert len(set(places)) == 4 and all(place.startswith(str(host.folder)) for place in places)
    assert f"{host.folder / 'PickScore_v1' / 'model.safetensors'}, then run again, or switch" in said["pickscore"]
    assert "(about 3.71 MB)" in said["aesthetic"]


def test_missing_weights_chosen_by_hand_say_what_there_is(host: Any) -> None:
    (host.folder / "mine.safetensors").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"No reward weights 'gone\.pt' in .*; there is mine\.safetensors\. Try"
    ):
        host.files.reward_weights("gone.pt")


def test_one_broken_file_blocks_no_other_reward(host: Any) -> None:
    """Whatever lies in the folder, *automatic* asks for the reward's own file."""
    for name in ("broken.safetensors", "broken.pt", "broken.bin", "model.safetensors"):
        (host.folder / name).write_bytes(b"broken")
    for name in ("image_reward", "hpsv2.0", "hpsv2.1", "pickscore", "clip_score", "aesthetic"):
        with pytest.raises(FileNotFoundError, match="not found; looked in"):
            host.rewards.load(name, None, torch.float32)
    assert host.rewards.load("brightness", None, torch.float32).name == "brightness"


def test_a_foreign_file_of_a_shared_name_is_passed_over(host: Any) -> None:
    save_file({TRANSFORMERS_PATCHES: torch.zeros(VIT_L14)}, host.folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"passed over .*model\.safetensors holds a ViT-L/14"):
        host.rewards.load("pickscore", None, torch.float32)
    save_file({TRANSFORMERS_PATCHES: torch.zeros(VIT_H14)}, host.folder / "model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"passed over .*model\.safetensors holds a ViT-H/14"):
        host.rewards.load("clip_score", None, torch.float32)
