"""Writing: whole files or none, nothing left behind, and folders that are tried before work."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from reneg_core.files import check_folder, remove_leftovers, write_bytes, write_picture, write_tensors, write_text

Usage = namedtuple("Usage", "total used free")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_replaced_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    assert write_text(path, "first") == path
    write_text(path, "zweite Fassung: ä")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: ä"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_keeps_the_earlier_file_and_says_what_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = write_bytes(tmp_path / "file", b"before")
    monkeypatch.setattr(os, broken, full)
    with pytest.raises(OSError, match=r"Could not write 5 bytes \(No space left on device\)\. Try another folder") as e:
        write_bytes(path, b"after")
    assert e.value.errno == errno.ENOSPC and e.value.filename == str(path)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interruption_leaves_nothing_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"data")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".best.safetensors.x1.part").write_bytes(b"half")
    (tmp_path / "notes.part").write_bytes(b"a user's own")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.part"]


def test_pictures_and_tensors_are_written_whole_too(tmp_path: Path) -> None:
    with Image.open(write_picture(tmp_path / "p.png", Image.new("RGB", (3, 2), "red"))) as picture:
        assert picture.size == (3, 2) and picture.getpixel((0, 0)) == (255, 0, 0)
    turned = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(load_file(write_tensors(tmp_path / "t.safetensors", {"a": turned}))["a"], turned)


def test_checking_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").write_text("kept")
    check_folder(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_folder_without_room_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9 << 20, 7 << 20, 2 << 20))
    check_folder(tmp_path, 2 << 20)
    with pytest.raises(OSError, match=r"Too little room .*3\.0 MiB are needed and 2\.0 are free") as error:
        check_folder(tmp_path / "new", 3 << 20)
    assert error.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="Could not write 10 bytes"):
        check_folder(tmp_path / "new", 10)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"):
        check_folder(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "a file"
