"""Embedding files: valid, odd, damaged and hostile, of every layout."""

import contextlib
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from reneg_core.commands import inspect
from reneg_core.embedding import NegativeEmbedding, Provenance, load_embedding
from reneg_core.sampling import Sampling

from .damage import Maker, Target, damaged, nested, odd_text, odd_value, raw_safetensors, spliced


class Hostile:
    """Calls something when it is unpickled by a reader that allows it."""

    def __init__(self, call: Callable, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def embedding_files(folder: Path) -> Maker:
    """Valid, odd, damaged and hostile embedding files of every layout."""
    wholes = _whole_embeddings(folder)
    kinds: tuple[Callable[[random.Random, dict[str, bytes]], tuple[str, bytes]], ...] = (
        _damaged_embedding, _damaged_embedding, _damaged_embedding, _spliced_embedding, _odd_provenance, _odd_header,
        _odd_tensors, _odd_tensors, _odd_dictionary, _odd_archive, _hostile_pickle, _hostile_opcodes, _noise,
    )  # fmt: skip

    def make(chance: random.Random) -> tuple[str, Path]:
        kind = chance.choice(kinds)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kinds of tensors that torch is about to give up are made on purpose
            suffix, data = kind(chance, wholes)
        path = folder / f"case{suffix}"
        path.write_bytes(data)
        return kind.__name__.strip("_"), path

    return make


def _saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _whole_embeddings(folder: Path) -> dict[str, bytes]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 4, 8, generator=generator)
    own = NegativeEmbedding(
        tokens, mask=torch.ones(1, 4), pooled=torch.ones(1, 3),
        provenance=Provenance("tiny", rewards="a", steps=3, sampling=Sampling(steps=4).to_mapping(), notes={"a": [1]}),
    )  # fmt: skip
    return {
        "own.safetensors": own.save(folder / "own.safetensors").read_bytes(),
        "plain.safetensors": save({"x": tokens}),
        "ltx.safetensors": save({"conditioning_data_0": tokens, "attention_mask_0": torch.ones(1, 4).long()}),
        "plain.pt": _saved(tokens),
        "dictionary.bin": _saved({"emb": torch.nn.Parameter(tokens)}),
        "legacy.pth": _saved({"emb": tokens.half()}, _use_new_zipfile_serialization=False),
    }


def _damaged_embedding(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    name = chance.choice(list(wholes))
    return Path(name).suffix, damaged(chance, wholes[name])


def _spliced_embedding(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    first, second = (chance.choice(list(wholes)) for _ in range(2))
    return Path(chance.choice((first, second))).suffix, spliced(chance, wholes[first], wholes[second])


def _noise(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    start = chance.choice((b"", b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 50) + b"{"))
    return chance.choice((".safetensors", ".pt", ".bin", "")), start + chance.randbytes(chance.choice((0, 1, 9, 3000)))


def _odd_provenance(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    fields = {name: odd_value(chance) for name in chance.sample(sorted(Provenance.__dataclass_fields__), 3)}
    text = chance.choice((json.dumps(fields), json.dumps(odd_value(chance)), nested(chance), odd_text(chance), "{" * 9))
    metadata = {"format": "reneg-embedding", "format_version": chance.choice(("1", "1", "1", "2", "x"))}
    metadata |= {"provenance": text, "family": chance.choice(("", "clip-l", "width-8", odd_text(chance)))}
    tokens = {"dtype": "F32", "shape": [1, 4, 8], "data_offsets": [0, 128]}
    return ".safetensors", raw_safetensors({"__metadata__": metadata, "tokens": tokens}, bytes(128))


def _odd_header(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    kind = chance.choice(("F32", "F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "U8", "BOOL", "C64", "F4", "Q"))
    side = chance.choice((0, 1, 8, -1, 2**31, 2**62, 1.5, "8", None))
    end = chance.choice((128, 0, 2**40, -4, "x"))
    entry = {"dtype": kind, "shape": chance.choice(([1, 4, side], [side], [], [4, 8])), "data_offsets": [0, end]}
    name = chance.choice(("tokens", "conditioning_data_0", odd_text(chance)))
    header = {name: chance.choice((entry, entry, [], None, "x"))}
    if chance.random() < 0.2:
        header |= {f"{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(2000)}
    text = json.dumps(header).encode()
    if chance.random() < 0.1:
        text = b'{"a":' + b"[" * 100_000
    length = chance.choice((None, None, None, 0, 2**63, len(text) + 7, 2**40))
    return ".safetensors", raw_safetensors(text, bytes(chance.choice((128, 0, 127, 4096))), length)


def _odd_tensor(chance: random.Random) -> Any:
    one = torch.ones(1, 1, 1)
    huge = chance.choice((2**24, 2**31, 2**33))
    makers = (
        lambda: one.expand(1, huge, 8), lambda: one.expand(1, 4, huge), lambda: torch.ones(1).expand(huge),
        lambda: torch.ones(4, 8).to_sparse(), lambda: torch.ones(4, 8).to_sparse_csr(),
        lambda: torch.empty(1, 4, 8, device="meta"), lambda: torch.empty(2**40, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(4, 8), 0.1, 0, torch.quint8),
        lambda: torch.ones(1, 4, 8, dtype=torch.complex64), lambda: torch.ones(4, 8, dtype=torch.bool),
        lambda: torch.full((1, 4, 8), 1e300, dtype=torch.float64), lambda: torch.ones(4, 8, dtype=torch.int8),
        lambda: torch.ones(4, 8, dtype=torch.float8_e4m3fn), lambda: torch.full((4, 8), float("nan")),
        lambda: torch.zeros(0, 8), lambda: torch.zeros(1, 0, 8), lambda: torch.tensor(1.0), lambda: torch.ones(2, 4, 8),
        lambda: torch.ones(8, 4).t(), lambda: torch.ones(1, 4, 8).half(), lambda: torch.ones(1, 1, 1, 1, 4, 8),
        lambda: torch.ones(4, 8).conj(), lambda: torch.ones(4, 8).requires_grad_(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: [1.0, 2.0], lambda: "text", lambda: None, lambda: 7, lambda: {"a": torch.ones(4, 8)},
    )  # fmt: skip
    return chance.choice(makers)()


def _odd_tensors(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    parts = {"tokens": torch.ones(1, 4, 8), "mask": torch.ones(1, 4), "pooled": torch.ones(1, 3)}
    for name in chance.sample(sorted(parts), chance.choice((1, 1, 2))):
        parts[name] = _odd_tensor(chance)
    value = chance.choice((parts, parts, parts["tokens"], OrderedDict(parts), list(parts.values())))
    return chance.choice((".pt", ".bin")), _any_saved(chance, value)


def _any_saved(chance: random.Random, value: Any) -> bytes:
    with contextlib.suppress(Exception):  # some kinds cannot be saved in the older layout
        return _saved(value, _use_new_zipfile_serialization=chance.random() < 0.8)
    return _saved(value)


def _odd_dictionary(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    keys = [1, None, "tokens", "string_to_param", "clip_l", (1, 2), 2.5, odd_text(chance), b"x", True]
    values = {key: chance.choice((torch.ones(4, 8), odd_value(chance))) for key in chance.sample(keys, 3)}
    data = _saved(OrderedDict(values) if chance.random() < 0.5 else values)
    if chance.random() < 0.3:  # attributes in place of a mapping's own functions
        values = OrderedDict(values)
        values.hooks = values.those = "none"
        data = _saved(values).replace(b"hooks", b"items").replace(b"those", b"keys\x00")
    return ".pt", data


def _odd_archive(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    old, anew = zipfile.ZipFile(io.BytesIO(wholes["plain.pt"])), io.BytesIO()
    how = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(anew, "w", how) as new:
        for name in old.namelist():
            content = old.read(name)
            if "data/" in name and chance.random() < 0.5:
                content = bytes(chance.choice((0, 2**10, 2**22)))
            other = "a" + odd_text(chance)[:40].replace("\ud800", "")
            new.writestr(name if chance.random() < 0.95 else other, content)
        if chance.random() < 0.2:
            new.writestr("other/data.pkl", old.read("archive/data.pkl"))
        if chance.random() < 0.1:
            for number in range(1500):
                new.writestr(f"archive/{number}", b"")
    data = bytearray(anew.getvalue())
    if chance.random() < 0.5:  # sizes in the directory that are not so
        place = data.find(b"PK\x01\x02", chance.randrange(len(data)))
        if place >= 0:
            struct.pack_into(
                "<I", data, place + chance.choice((20, 24)), chance.choice((0, 1, 2**20, 2**31, 2**32 - 1))
            )
    return chance.choice((".pt", ".bin")), bytes(data)


def _hostile_pickle(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    calls = (
        (os.system, "true"), (eval, "__import__('os').system('true')"), (exec, "import os; os.system('true')"),
        (bytearray, 10**10), (set, [1]), (complex, 1), (torch.zeros, 10**10), (open, "/dev/zero"), (print, "ran"),
        (os.getenv, "HOME"), (torch.load, "x"), (__import__, "antigravity"), (range, 10), (bytes, 10**10),
    )  # fmt: skip
    call, *arguments = chance.choice(calls)
    value = chance.choice((Hostile(call, *arguments), {"tokens": torch.ones(4, 8), "x": Hostile(call, *arguments)}))
    if chance.random() < 0.3:
        return ".bin", pickle.dumps(Hostile(call, *arguments), protocol=chance.choice((0, 2, 4)))
    return ".bin", _saved(value, _use_new_zipfile_serialization=chance.random() < 0.6, pickle_protocol=2)


def _hostile_opcodes(chance: random.Random, wholes: dict[str, bytes]) -> tuple[str, bytes]:
    """Pickles that no pickler writes: huge lengths, memory positions, endless structure."""
    codes = (
        b"\x80\x02" + b"]" * 50_000 + b"." , b"\x80\x02r" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x02X" + struct.pack("<I", 2**31) + b"a.", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", b"\x80\x02" + b"(" * 9000 + b"t" * 9000 + b".",
        b"\x80\x02]q\x00" + b"(h\x00e" * 4000 + b".", b"\x80\x02}q\x00" + b"h\x00" * 4000 + b"0" * 4000 + b".",
        b"\x80\x02ccollections\nOrderedDict\nq\x00](" + b"K\x01K\x02\x86" * 900 + b"eq\x01" + b"h\x00h\x01\x85R0" * 2000
        + b"h\x00)R.", b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.", b"I" + b"9" * 6000 + b"\n.", b".", b"", b"(",
        b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R.",
    )  # fmt: skip
    code = chance.choice(codes)
    if chance.random() < 0.4:
        return ".pt", code
    anew, old = io.BytesIO(), zipfile.ZipFile(io.BytesIO(wholes["plain.pt"]))
    with zipfile.ZipFile(anew, "w") as new:
        for name in old.namelist():
            new.writestr(name, code if name.endswith("data.pkl") else old.read(name))
    return ".pt", anew.getvalue()


def read_embedding(path: Path) -> None:
    """All that is done with an embedding: read, described in words and as JSON, written and read again."""
    embedding = load_embedding(path)
    facts = inspect.describe(embedding)
    inspect.as_text(facts).encode()
    inspect.as_json(facts).encode()
    again = load_embedding(embedding.save(path.with_name("again.safetensors"), overwrite=True))
    if not torch.equal(again.tokens, embedding.tokens) or again.family != embedding.family:
        raise AssertionError("what was written is not what was read")


EMBEDDINGS = Target("embeddings", read_embedding, (ValueError,), embedding_files)
