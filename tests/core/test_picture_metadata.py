"""Texts inside picture files that anybody may have made."""

import json
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reneg_core.picture_metadata import prompt_of_graph, prompt_of_parameters, read_prompt, read_scores, write_scores


def picture(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "texts",
    [
        {"reneg": json.dumps({"prompt": 7})},
        {"reneg": '{"prompt": "\\ud800"}'},
        {"reneg": "[" * 100_000},
        {"prompt": '{"1": {"class_type": "A", "inputs": [1, 2]}}'},
        {"prompt": json.dumps({"1": {"inputs": {"positive": ["2", 0]}}, "2": {"inputs": "x"}})},
        {"prompt": json.dumps({"1": {"inputs": {"positive": [["2"], 0]}}})},
        {"prompt": '{"1": {"inputs": {"positive": [' + "[" * 950 + "]" * 950 + ", 0]}}}"},
    ],
)
def test_what_is_no_prompt_is_none(tmp_path: Path, texts: dict[str, str]) -> None:
    assert read_prompt(picture(tmp_path / "p.png", **texts)) is None


def test_a_large_graph_is_walked_once() -> None:
    """Every node of a chain is a sampler without a text: walked from each of them anew this takes minutes."""
    graph = {str(i): {"inputs": {"positive": [str(i + 1), 0], "next": [str(i + 1), 0]}} for i in range(20_000)}
    clock = time.process_time()
    assert prompt_of_graph(graph) is None
    assert prompt_of_graph({**graph, "20000": {"inputs": {"text": "a fox"}}}) == "a fox"
    assert time.process_time() - clock < 5


def test_unclosed_tags_take_no_time() -> None:
    clock = time.process_time()
    assert prompt_of_parameters("a fox <lora:x:1> <lora:" + "<lora:" * 100_000).startswith("a fox  <lora:")
    assert time.process_time() - clock < 2


def broken(kind: str) -> bytes:
    """A PNG whose second chunk is not what it should be."""
    chunks = {
        "huge": b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0",
        "short": b"IHDR\0",
        "text": b"zTXta\0\0" + zlib.compress(bytes(2**26)),
    }
    body = chunks[kind]
    whole = b"IHDR" + (4).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    parts = [body] if kind != "text" else [whole, body]
    data = b"".join((len(p) - 4).to_bytes(4, "big") + p + zlib.crc32(p).to_bytes(4, "big") for p in parts)
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("kind", ["huge", "short", "text"])
def test_a_damaged_picture_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(broken(kind))
    for read in (read_prompt, read_scores):
        with pytest.raises(ValueError, match=r"p\.png (cannot be read as|is not) a picture"):
            read(path)


@pytest.mark.parametrize("cut", [10, 30, 60, -1])
def test_scores_are_not_written_into_half_a_picture(tmp_path: Path, cut: int) -> None:
    path = picture(tmp_path / "p.png")
    path.write_bytes(path.read_bytes()[:cut])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="the file is incomplete"):
        write_scores(path, {"a": 1.0})
    assert path.read_bytes() == before


def test_written_scores_keep_who_may_read_the_file(tmp_path: Path) -> None:
    path = picture(tmp_path / "p.png")
    path.chmod(0o600)
    write_scores(path, {"a": 1.0})
    assert path.stat().st_mode & 0o777 == 0o600 and read_scores(path) == {"a": 1.0}
