"""What every kind of fuzzed file is made with: targets, damage, and values that nobody expects."""

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Maker = Callable[[random.Random], tuple[str, Path]]


@dataclass(frozen=True)
class Target:
    """What is fuzzed. read: raises one of ``documented`` or nothing; maker: makes what makes a file in a folder."""

    name: str
    read: Callable[[Path], None]
    documented: tuple[type[Exception], ...]
    maker: Callable[[Path], Maker]


def damaged(chance: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, doubled, or put in; or the file cut short."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        place = (
            chance.randrange(len(found) + 1) if chance.random() < 0.5 else chance.randrange(min(400, len(found)) + 1)
        )
        length = chance.choice((1, 1, 4, 16, 200))
        action = chance.choice(("flip", "flip", "set", "cut", "double", "put", "end"))
        if action == "flip" and place < len(found):
            found[place] ^= 1 << chance.randrange(8)
        elif action == "set":
            found[place : place + length] = bytes([chance.choice((0, 1, 127, 128, 255))]) * length
        elif action == "cut":
            del found[place : place + length]
        elif action == "double":
            found[place:place] = found[place : place + length]
        elif action == "put":
            found[place:place] = chance.randbytes(length)
        elif action == "end" and chance.random() < 0.3:
            del found[place:]
    return bytes(found)


def spliced(chance: random.Random, first: bytes, second: bytes) -> bytes:
    """The beginning of one file with the end of another."""
    return first[: chance.randrange(len(first) + 1)] + second[chance.randrange(len(second) + 1) :]


def odd_text(chance: random.Random) -> str:
    """Text that printing, JSON and terminals have trouble with."""
    return chance.choice(
        ("", "\x1b[2J\x1b]0;owned\x07", "\ud800", "\x00", "‮abc", "a" * 100_000, "é" * 9, "\n\n", "=1+1", "../../x")
    )


def odd_value(chance: random.Random) -> Any:
    """A JSON value of a kind that nobody expects."""
    deep = "[" * 5 + "]" * 5
    return chance.choice(
        (None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, "", odd_text(chance), [], {}, [[1]], {"a": {}},
         json.loads(deep), ["x"] * 3, {"steps": -1}, {"steps": "x", "solver": 3}, -(2**63), 2**64)
    )  # fmt: skip


def nested(chance: random.Random) -> str:
    """JSON that is deep."""
    depth = chance.choice((60, 70, 900, 5_000, 100_000))
    return chance.choice(
        ('{"notes":' * depth + "{}" + "}" * depth, '{"notes":{"a":' + "[" * depth + "]" * depth + "}}")
    )


def raw_safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header; ``length``: what it says of the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + data
