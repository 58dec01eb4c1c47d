"""Prompts and scores inside picture files: ComfyUI's graph, A1111's parameters, this project's own settings.

Reading needs Pillow. Writing scores inserts one text chunk into a PNG and leaves every other byte as it was.
"""

import json
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from .picture_files import opened

SCORES_KEY = "reneg_scores"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
USER_COMMENT = 0x9286  # Exif tag where A1111 puts its parameters in JPEG and WebP
EXIF_IFD = 0x8769
TEXT_INPUTS = ("text", "prompt", "string", "value", "text_g", "t5xxl", "clip_l", "text_l")
Graph = Mapping[str, Mapping[str, object]]


def read_prompt(path: Path) -> str | None:
    """The positive prompt that a picture file says it was made from, None if it says nothing that can be understood.

    Raises PictureError for a file that is no picture.
    """
    with opened(path) as picture:
        texts = {key: value for key, value in picture.info.items() if isinstance(value, str)}
        comment = picture.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if "reneg" in texts:
        prompt = _json(texts["reneg"]).get("prompt")
        return prompt if isinstance(prompt, str) else None
    if "prompt" in texts and (graph := _json(texts["prompt"])):
        return prompt_of_graph(graph)
    parameters = texts.get("parameters") or _user_comment(comment)
    return None if parameters is None else prompt_of_parameters(parameters)


def prompt_of_parameters(parameters: str) -> str:
    """The positive prompt of A1111's parameter text: everything before "Negative prompt:" or the line of settings."""
    positive = re.split(r"\n(?=Negative prompt:|Steps: \d)", f"\n{parameters}", maxsplit=1)[0]
    return re.sub(r"<(lora|lyco|hypernet):[^>]*>", "", positive).strip()


def prompt_of_graph(graph: Graph) -> str | None:
    """The positive prompt of ComfyUI's API graph: backwards from the outputs to the first node with a positive input,
    and from there to its text. None if no text is reached."""
    nodes = {
        str(key): {**node, "inputs": node["inputs"]}
        for key, node in graph.items()
        if isinstance(node, Mapping) and isinstance(node.get("inputs"), Mapping)
    }
    used = {target for node in nodes.values() for _, target in _links(node, nodes)}
    for key in (key for key in nodes if key not in used):
        for node in _backwards(key, nodes):
            start = next((target for name, target in _links(node, nodes) if name == "positive"), None)
            start = start or next((target for name, target in _links(node, nodes) if name == "guider"), None)
            text = None if start is None else _text(start, nodes)
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
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(PNG_SIGNATURE + b"".join(kept))
        os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_scores(path: Path) -> dict[str, float]:
    """Scores stored by `write_scores`, {} if there are none; PictureError for a file that is no picture."""
    with opened(path) as picture:
        return _json(picture.info.get(SCORES_KEY, "{}"))


def check_png(path: Path) -> None:
    """Raise ValueError unless scores can be written into `path`."""
    with path.open("rb") as stream:
        if stream.read(8) != PNG_SIGNATURE:
            raise ValueError(f"{path} is not a PNG; scores are written into PNG files only")


def _chunks(data: bytes, path: Path) -> Iterator[bytes]:
    """The chunks of a PNG with their lengths and checksums."""
    if data[:8] != PNG_SIGNATURE:
        raise ValueError(f"{path} is not a PNG; scores are written into PNG files only")
    position = 8
    while position + 12 <= len(data):
        size = struct.unpack(">I", data[position : position + 4])[0] + 12
        yield data[position : position + size]
        if data[position + 4 : position + 8] == b"IEND":
            return
        position += size
    raise ValueError(f"{path} ends before its IEND chunk; the file is incomplete")


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _links(node: Mapping[str, object], nodes: Graph) -> list[tuple[str, str]]:
    """(input name, node key) for every input of `node` that is a link."""
    found = []
    for name, value in node["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in nodes:
            found.append((name, str(value[0])))
    return found


def _backwards(start: str, nodes: Graph) -> Iterator[Mapping[str, object]]:
    """Nodes that lead to `start`, nearest first."""
    queue, seen = [start], {start}
    while queue:
        node = nodes[queue.pop(0)]
        yield node
        for _, target in _links(node, nodes):
            if target not in seen:
                seen.add(target)
                queue.append(target)


def _text(key: str, nodes: Graph) -> str | None:
    """The text at or behind a conditioning node."""
    for node in _backwards_through_conditioning(key, nodes):
        inputs = node["inputs"]
        for name in TEXT_INPUTS:
            if isinstance(inputs.get(name), str):
                return inputs[name]
    return None


def _backwards_through_conditioning(start: str, nodes: Graph) -> Iterator[Mapping[str, object]]:
    """Like `_backwards`, never into a negative, a model or a text encoder."""
    pruned = {
        key: {
            **node,
            "inputs": {
                name: value
                for name, value in node["inputs"].items()
                if name not in ("negative", "model", "clip", "vae", "image", "latent_image")
            },
        }
        for key, node in nodes.items()
    }
    return _backwards(start, pruned)


def _user_comment(comment: object) -> str | None:
    if not isinstance(comment, bytes) or len(comment) <= 8:
        return None
    encoding = "utf-16-be" if comment.startswith(b"UNICODE\0") else "utf-8"
    return comment[8:].decode(encoding, errors="replace")


def _json(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        return {}
    return value if isinstance(value, dict) else {}
