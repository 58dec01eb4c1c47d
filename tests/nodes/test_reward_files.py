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


@pytest.mark.parametrize("name", ["none", "gone.safetensors"])
def test_a_missing_embedding_names_folder_and_address(host: Any, name: str) -> None:
    (host.embeddings / "other.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        host.files.embedding_path(name)
    assert str(host.embeddings) in str(caught.value)
    assert "https://huggingface.co/XiaominDLUT/ReNeg" in str(caught.value)
    assert ("other.safetensors" in str(caught.value)) == (name != "none")


def test_a_missing_reward_names_places_of_its_own_and_no_download(host: Any) -> None:
    said = {}
    for name in ("pickscore", "clip_score", "clip_score_b32", "aesthetic"):
        with pytest.raises(FileNotFoundError) as caught:
            host.rewards.load(name, None, torch.float32)
        said[name] = str(caught.value)
        assert "download" not in said[name] and "https://" in said[name]
    places = [text.split("put it at ")[1] for text in said.values()]
    assert len(set(places)) == 4 and all(place.startswith(str(host.folder)) for place in places)
    assert f"{host.folder / 'PickScore_v1' / 'model.safetensors'}, then run again." in said["pickscore"]
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
