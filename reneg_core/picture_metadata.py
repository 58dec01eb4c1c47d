"""Prompts and scores inside picture files: ComfyUI's graph, A1111's parameters, this project's own settings.

Reading needs Pillow. Writing scores inserts one text chunk into a PNG and leaves every other byte as it was.
"""

import json
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

from .files import write_bytes
from .picture_files import opened
from .text_file import prompt_fault

SCORES_KEY = "reneg_scores"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
USER_COMMENT = 0x9286  # Exif tag where A1111 puts its parameters in JPEG and WebP
EXIF_IFD = 0x8769
TEXT_INPUTS = ("text", "prompt", "string", "value", "text_g", "t5xxl", "clip_l", "text_l")
ASIDE = ("negative", "model", "clip", "vae", "image", "latent_image")
Graph = Mapping[str, Mapping[str, object]]


def read_prompt(path: Path) -> str | None:
    """The positive prompt that a picture file says it was made from, None if it says nothing that can be read.

    Raises PictureError for a file that is no picture.
    """
    texts, comment = _texts(path)
    if "reneg" in texts:
        prompt = _json(texts["reneg"]).get("prompt")
    elif "prompt" in texts and (graph := _json(texts["prompt"])):
        prompt = prompt_of_graph(graph)
    else:
        parameters = texts.get("parameters") or _user_comment(comment)
        prompt = None if parameters is None else prompt_of_parameters(parameters)
    return None if prompt_fault(prompt) else prompt


def _texts(path: Path) -> tuple[dict[str, str], object]:
    """The texts of a picture by name, and its Exif comment."""
    with opened(path) as picture:
        texts = {key: value for key, value in picture.info.items() if isinstance(value, str)}
        return texts, picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)


def prompt_of_parameters(parameters: str) -> str:
    """The positive prompt of A1111's parameter text: everything before "Negative prompt:" or the line of settings."""
    positive = re.split(r"\n(?=Negative prompt:|Steps: \d)", f"\n{parameters}", maxsplit=1)[0]
    return re.sub(r"<(lora|lyco|hypernet):[^<>]{0,300}>", "", positive).strip()


def prompt_of_graph(graph: Graph) -> str | None:
    """The positive prompt of ComfyUI's API graph: backwards from the outputs to the first node with a positive input,
    and from there to its text. None if no text is reached."""
    nodes = {
        str(key): node
        for key, node in graph.items()
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
    }
    conditioning = {key: _pruned(node) for key, node in nodes.items()}
    used = {target for node in nodes.values() for _, target in _links(node, nodes)}
    seen: set[str] = set()
    barren: set[str] = set()
    for key in (key for key in nodes if key not in used):
        for node in _backwards(key, nodes, seen):
            start = next((target for name, target in _links(node, nodes) if name == "positive"), None)
            start = start or next((target for name, target in _links(node, nodes) if name == "guider"), None)
            text = None if start is None else _text(start, conditioning, barren)
            if text is not None:
                return text
    return None


def write_scores(path: Path, scores: Mapping[str, float]) -> None:
    """Store {reward: score} as JSON in the PNG's text chunk `reneg_scores`, replacing an earlier one."""
    data = path.read_bytes()
    entry = SCORES_KEY.encode() + b"\0" + json.dumps(dict(scores)).encode("latin-1")
    kept = [chunk for chunk in _chunks(data, path) if not chunk[4:].startswith(b"tEXt" + SCORES_KEY.encode() + b"\0")]
    before_pixels = next((i for i, chunk in enumerate(kept) if chunk[4:8] == b"IDAT"), len(kept) - 1)
    kept.insert(before_pixels, _chunk(b"tEXt", entry))
    write_bytes(path, PNG_SIGNATURE + b"".join(kept))


def read_scores(path: Path) -> dict[str, float]:
    """Scores stored by `write_scores`, {} if there are none; PictureError for a file that is no picture."""
    return _json(_texts(path)[0].get(SCORES_KEY, "{}"))


def check_png(path: Path) -> None:
    """Raise ValueError unless scores can be written into `path`."""
    with path.open("rb") as stream:
        if stream.read(8) != PNG_SIGNATURE:
            raise ValueError(f"Got {path}, which is not a PNG: scores can be written into PNGs only. Try without it.")


def _chunks(data: bytes, path: Path) -> Iterator[bytes]:
    """The chunks of a PNG with their lengths and checksums."""
    if data[:8] != PNG_SIGNATURE:
        raise ValueError(f"Got {path}, which is not a PNG: scores can be written into PNGs only. Try without it.")
    position = 8
    while position + 12 <= len(data):
        size = struct.unpack_from(">I", data, position)[0] + 12
        yield data[position : position + size]
        position += size
        if data[position - size + 4 : position - size + 8] == b"IEND" and position <= len(data):
            return
    raise ValueError(f"Got {path}, which ends before its IEND chunk: the file is incomplete. Try copying it again.")


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _links(node: Mapping[str, object], nodes: Graph) -> list[tuple[str, str]]:
    """(input name, node key) for every input of `node` that is a link."""
    found = []
    for name, value in node["inputs"].items():
        key = value[0] if isinstance(value, list) and len(value) == 2 else None
        if isinstance(key, str | int) and str(key) in nodes:
            found.append((name, str(key)))
    return found


def _backwards(start: str, nodes: Graph, seen: set[str]) -> Iterator[Mapping[str, object]]:
    """Nodes that lead to `start`, nearest first, without those `seen` before; adds them to `seen`."""
    queue = deque([start] if start not in seen else [])
    seen.add(start)
    while queue:
        node = nodes[queue.popleft()]
        yield node
        for _, target in _links(node, nodes):
            if target not in seen:
                seen.add(target)
                queue.append(target)


def _text(key: str, conditioning: Graph, barren: set[str]) -> str | None:
    """The text at or behind a conditioning node; `barren` are the nodes behind which none was found before."""
    for node in _backwards(key, conditioning, barren):
        for name in TEXT_INPUTS:
            if isinstance(text := node["inputs"].get(name), str):
                return text
    return None


def _pruned(node: Mapping[str, object]) -> dict[str, object]:
    """A node without the inputs that lead into a negative, a model or a text encoder."""
    return {**node, "inputs": {name: value for name, value in node["inputs"].items() if name not in ASIDE}}


def _user_comment(comment: object) -> str | None:
    if not isinstance(comment, bytes) or len(comment) <= 8:
        return None
    encoding = "utf-16-be" if comment.startswith(b"UNICODE\0") else "utf-8"
    return comment[8:].decode(encoding, errors="replace")


def _json(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
