"""A folder of files that no command can use, by name, for the table of bad inputs."""

import json
import pickle
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from reneg_core import NegativeEmbedding
from reneg_core.embedding import Provenance


class Unsafe:
    """Runs something when it is unpickled by a reader that allows it."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("ran",)


def bad_files(folder: Path) -> Path:
    """Write them all and return the folder."""
    _texts(folder)
    _embeddings(folder)
    _pictures(folder)
    _workflows(folder)
    (folder / "empty_folder").mkdir()
    (folder / "no_pipeline").mkdir()
    (folder / "no_pipeline" / "README.md").write_text("nothing here")
    return folder


def _texts(folder: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    contents = {
        "binary.txt": bytes(range(256)), "latin.txt": "a café\n".encode("latin-1"), "empty.txt": b"",
        "blank.txt": b"\n \n",
        "zeros.txt": b"a fox\0\n", "half.txt": b"\xff\xfea", "long.txt": b"a" * 100_001, "good.txt": b"a red fox\n",
        "bad.json": b"{", "deep.json": deep.encode(), "numbers.json": b"[1, 2]", "text.json": b'"a fox"',
        "surrogate.json": b'["\\ud800"]', "names.json": b'{"whole.png": 7}', "binary.json": b"\xff\x00",
        "two.json": b'["a", "b"]', "columns.tsv": b"Text\tx\na\tb\n", "short.tsv": b"Category\tPrompt\nx\n",
        "empty.tsv": b"", "list.yaml": b"- 1\n", "bad.yaml": b"steps: [1\n", "tag.yaml": b"!!python/name:os.system\n",
        "binary.yaml": b"\x00\xff", "key.yaml": b"1: 2\n", "deep.yaml": b"a: " + b"[" * 9000,
        "self.yaml": b"betas: &a [*a]\n",
        "unknown.yaml": b"stepz: 3\n", "types.yaml": b"steps: many\nbetas: 3\n", "sampling.yaml": b"sampling: 3\n",
        "nested.yaml": b"sampling: {steps: x, 7: 1}\n", "not_python.py": b"def (", "no_reward.py": b"x = 1\n",
        "raises.py": b"raise RuntimeError('on import')\n",
    }  # fmt: skip
    for name, data in contents.items():
        (folder / name).write_bytes(data)


def _embeddings(folder: Path) -> None:
    plain = torch.ones(1, 3, 768)
    whole = NegativeEmbedding(plain).save(folder / "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:300])
    (folder / "noise.safetensors").write_bytes(bytes(range(200)))
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "code.bin").write_bytes(pickle.dumps(Unsafe()))
    torch.save({"tokens": plain, "x": Unsafe()}, folder / "code.pt")
    torch.save({"string_to_param": {"*": torch.ones(4, 768)}}, folder / "inversion.pt")
    torch.save({"a": plain, 1: plain}, folder / "two.pt")
    torch.save({"a": "text"}, folder / "none.pt")
    torch.save(torch.full((3, 768), float("nan")), folder / "nan.pt")
    torch.save(torch.ones(1).expand(2**40), folder / "expanded.pt")
    torch.save({"tokens": plain, "mask": torch.ones(1).expand(2**40)}, folder / "mask.pt")
    torch.save(torch.ones(3, 768).to_sparse(), folder / "sparse.pt")
    torch.save(torch.ones(3, 768, dtype=torch.int64), folder / "whole_numbers.pt")
    NegativeEmbedding(plain, provenance=Provenance(notes={"a": "\x1b[2J"})).save(folder / "escape.safetensors")
    own = {"format": "reneg-embedding", "format_version": "1"}
    for name, metadata in {
        "deep": {**own, "provenance": '{"notes":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}"},
        "listed": {**own, "provenance": "[1]"},
        "typed": {**own, "provenance": json.dumps({"steps": "many", "sampling": 3})},
        "newer": {**own, "format_version": "2"},
        "family": {**own, "family": "\x1b[2J"},
        "sampled": {**own, "provenance": json.dumps({"sampling": {"steps": -1}})},
    }.items():
        save_file({"tokens": plain}, folder / f"{name}.safetensors", metadata)


def _pictures(folder: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(folder / "whole.png")
    Image.new("RGB", (8, 8), "red").save(folder / "whole.jpg")
    data = (folder / "whole.png").read_bytes()
    (folder / "cut.png").write_bytes(data[:40])
    (folder / "text.png").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")


def _workflows(folder: Path) -> None:
    workflows = {
        "page": {"nodes": []}, "no_class": {"1": {"inputs": {}}}, "inputs": {"1": {"class_type": "A", "inputs": 3}},
        "listed": [1], "good": {"1": {"class_type": "A", "inputs": {"steps": 1}}},
    }  # fmt: skip
    for name, graph in workflows.items():
        (folder / f"workflow_{name}.json").write_text(json.dumps(graph))
