"""PNG files: damaged, with wrong lengths and checksums, with hostile text in them, and too large."""

import contextlib
import io
import json
import random
import struct
import zlib
from pathlib import Path

from PIL import Image, PngImagePlugin

from reneg_core.cli import main

from .damage import Maker, Target, damaged, nested, odd_text, odd_value


def png_files(folder: Path) -> Maker:
    """PNG files: damaged, with wrong lengths and checksums, with hostile text in them, and too large."""
    path = folder / "case.png"
    wholes = [_png(mode, {"parameters": "a fox\nSteps: 3"}) for mode in ("RGB", "L", "P", "RGBA", "1", "I;16")]

    def make(chance: random.Random) -> tuple[str, Path]:
        kind = chance.choice((_damaged_png, _damaged_png, _odd_text_png, _odd_chunks, _large_png))
        path.write_bytes(kind(chance, wholes))
        return kind.__name__.strip("_"), path

    return make


def _png(mode: str, texts: dict[str, str]) -> bytes:
    info, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.linear_gradient("L").resize((9, 7)).convert(mode).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def _chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    size = len(content) if length is None else length
    return struct.pack(">I", size % 2**32) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _damaged_png(chance: random.Random, wholes: list[bytes]) -> bytes:
    return damaged(chance, chance.choice(wholes))


def _odd_text_png(chance: random.Random, wholes: list[bytes]) -> bytes:
    graph = {"1": {"class_type": "KSampler", "inputs": {"positive": ["1", 0], "text": odd_value(chance)}}}
    texts = (
        json.dumps({"prompt": odd_value(chance)}), json.dumps(graph), nested(chance), json.dumps(odd_value(chance)),
        odd_text(chance).replace("\x00", ""), json.dumps({"1": odd_value(chance), "2": {"inputs": odd_value(chance)}}),
    )  # fmt: skip
    name, text = chance.choice(("reneg", "prompt", "parameters", "reneg_scores")), chance.choice(texts)
    encoded = text.encode("utf-8", "ignore")
    kind = chance.choice((b"tEXt", b"iTXt", b"zTXt"))
    body = {
        b"tEXt": name.encode() + b"\0" + encoded,
        b"iTXt": name.encode() + b"\0\1\0\0\0" + zlib.compress(encoded),
        b"zTXt": name.encode() + b"\0\0" + zlib.compress(encoded if chance.random() < 0.7 else bytes(2**26)),
    }[kind]
    return _with_chunk(wholes[0], _chunk(kind, body))


def _odd_chunks(chance: random.Random, wholes: list[bytes]) -> bytes:
    kind = chance.choice((b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"zzzz", b"IEND"))
    content = chance.randbytes(chance.choice((0, 1, 3, 13, 300)))
    length = chance.choice((None, None, 0, 2**31 - 1, 2**32 - 1, len(content) + 3))
    return _with_chunk(chance.choice(wholes), _chunk(kind, content, length))


def _large_png(chance: random.Random, wholes: list[bytes]) -> bytes:
    width, height = chance.choice(((2**31 - 1, 2**31 - 1), (60_000, 60_000), (0, 5), (30_000, 2), (13_000, 13_000)))
    header = struct.pack(">IIBBBBB", width, height, 8, chance.choice((0, 2, 6)), 0, 0, 0)
    pixels = zlib.compress(bytes(chance.choice((10, 2**20))))
    return PngImagePlugin._MAGIC + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _with_chunk(data: bytes, chunk: bytes) -> bytes:
    """The chunk after the header."""
    return data[:33] + chunk + data[33:]


def read_png(path: Path) -> None:
    """Scored by the command line with the prompt of the file, and with the scores written into it."""
    for options in ([], ["--prompt", "a fox", "--write-metadata"]):
        _expect_sentence(["score", "--reward", "brightness", "--device", "cpu", *options, str(path)])


def _expect_sentence(arguments: list[str]) -> None:
    """AssertionError unless the command ends with 0, or with 1 and a message that is no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said = err.getvalue()
    if code not in (0, 1) or "Traceback" in said or (code == 1 and not said.startswith("reneg ")):
        raise AssertionError(f"exit code {code}: {said}")
    if "\x1b" in out.getvalue() + said:
        raise AssertionError("a terminal escape was printed")
    if code == 1:
        raise ValueError(said)


PNGS = Target("pngs", read_png, (ValueError,), png_files)
