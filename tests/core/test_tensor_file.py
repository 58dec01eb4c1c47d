"""Tensor files that anybody may have made: their cost is bounded, no code runs, every refusal is a ValueError."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from reneg_core import NegativeEmbedding, load_embedding
from reneg_core.embedding import KEPT_NESTING, Provenance, nesting
from reneg_core.tensor_file import MAX_ELEMENTS, canonical, read_tensors

PLAIN = torch.ones(1, 4, 8)
QUICK = settings(
    derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(folder: Path, value: object, **options: object) -> Path:
    torch.save(value, folder / "e.pt", **options)
    return folder / "e.pt"


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(1).expand(2**40),
        torch.ones(1, 1, 1).expand(1, 2**12 + 1, 2**12),
        {"tokens": PLAIN, "mask": torch.ones(1).expand(2**40)},
        {"tokens": PLAIN, "pooled": torch.ones(1).expand(2**40)},
    ],
)
def test_expanded_tensors_are_refused_by_their_count(tmp_path: Path, value: object) -> None:
    """A file of 1.6 kB that would take terabytes; nothing of it is materialised."""
    assert written(tmp_path, value).stat().st_size < 2500
    with pytest.raises(ValueError, match=r"Got [\d,]+ numbers in the embedding's .*expected at most 16,777,216"):
        load_embedding(tmp_path / "e.pt")


def test_the_largest_embedding_that_is_taken() -> None:
    at_most = torch.zeros(1).expand(1, MAX_ELEMENTS // 8, 8)
    assert NegativeEmbedding(at_most).length * 8 == MAX_ELEMENTS
    with pytest.raises(ValueError, match="expected at most"):
        NegativeEmbedding(torch.zeros(1).expand(1, MAX_ELEMENTS // 8 + 1, 8))


def compressed(path: Path, method: int = zipfile.ZIP_DEFLATED, numbers: bytes | None = None) -> Path:
    """A tensor's archive written anew, compressed; ``numbers``: in place of the tensor's own."""
    stream = io.BytesIO()
    torch.save(PLAIN, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, numbers if numbers is not None and "/data/" in name else old.read(name))
    return path


def test_compressed_archives(tmp_path: Path) -> None:
    assert torch.equal(load_embedding(compressed(tmp_path / "small.pt")).tokens, PLAIN)
    bomb = compressed(tmp_path / "bomb.pt", numbers=bytes(3 * 2**26))
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ValueError, match=r"Refused bomb\.pt: it unpacks to 201,\d+,\d+ bytes, expected at most"):
        load_embedding(bomb)
    with pytest.raises(ValueError, match="compressed in another way"):
        load_embedding(compressed(tmp_path / "lzma.pt", zipfile.ZIP_LZMA))


def test_an_archive_of_thousands_of_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.pt", "w") as archive:
        for number in range(1001):
            archive.writestr(str(number), b"")
    with pytest.raises(ValueError, match="more than 1000 files"):
        load_embedding(tmp_path / "many.pt")


class Calls:
    """Calls something when it is unpickled by a reader that allows it."""

    def __init__(self, call: Callable, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call, self.arguments


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("call", [Calls(print, "ran"), Calls(bytearray, 10**10), Calls(set, [1])])
def test_a_pickle_may_name_nothing_but_tensors(
    tmp_path: Path, call: Calls, new_format: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """`bytearray` is allowed by torch's own reader, and ten billion bytes of it as well."""
    path = written(tmp_path, {"tokens": PLAIN, "x": call}, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"it asks for '\w+ (print|bytearray|set)', which could run code"):
        load_embedding(path)
    path.write_bytes(pickle.dumps(call))
    with pytest.raises(ValueError, match=r"Refused e\.pt"):
        load_embedding(path)
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["half", "bfloat16", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("new_format", [True, False])
def test_every_float_and_both_layouts_are_read(tmp_path: Path, kind: str, new_format: bool) -> None:
    tensor = torch.nn.Parameter(PLAIN) if kind == "half" else PLAIN.to(getattr(torch, kind))
    if kind == "float8_e4m3fn" and not new_format:
        pytest.skip("torch does not write these in the older layout")
    path = written(tmp_path, {"emb": tensor}, _use_new_zipfile_serialization=new_format)
    assert torch.equal(load_embedding(path).tokens, PLAIN)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", torch.ones(4, 8).to_sparse(), "sparse or quantized"),
        ("tokens", torch.empty(1, 4, 8, device="meta"), "meta tensor"),
        ("tokens", [1.0], "Got list for the embedding's tokens"),
        ("tokens", torch.zeros(1, 0, 8), r"shape \[1, 0, 8\]"),
        ("mask", [1, 1, 1, 1], "Got list for the embedding's mask"),
        ("mask", torch.tensor([1.0, 0.5, 0, 0]), "other values than 0 and 1"),
        ("mask", torch.full((1, 4), float("nan")), "other values than 0 and 1"),
        ("pooled", torch.ones(3).to_sparse(), "sparse or quantized"),
        ("pooled", torch.ones(1, 3, dtype=torch.complex64), "torch.complex64"),
        ("pooled", torch.zeros(1, 0), r"pooled vector of shape \[1, 0\]"),
    ],
)
def test_parts_that_are_no_plain_tensors(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NegativeEmbedding(**{"tokens": PLAIN, name: value})


def own(path: Path, **metadata: str) -> Path:
    """Our layout with other metadata."""
    save_file({"tokens": PLAIN}, path, {"format": "reneg-embedding", "format_version": "1", **metadata})
    return path


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ('{"notes":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}", "recursion|nested"),
        ('{"notes":{"a":' + "[" * 65 + "]" * 65 + "}}", "nested more than 64 deep"),
        ("[1]", "got list, expected names and values"),
        ("null", "got NoneType"),
        ("{", "Expecting property name"),
        ('{"notes": [1]}', "notes is list, no mapping"),
        ('{"steps": "many"}', "steps: got 'many', expected a whole number"),
        ('{"steps": 1' + "0" * 5000 + "}", "4300 digits"),
        ('{"base_model": ["x"]}', "base_model: got .*expected text"),
        ('"' + "x" * 2**20 + '"', "1,048,578 characters, expected at most 1,048,576"),
    ],
)
def test_provenance_of_any_kind_is_one_sentence(tmp_path: Path, provenance: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"Got unreadable provenance in e.safetensors.*({message})") as caught:
        load_embedding(own(tmp_path / "e.safetensors", provenance=provenance))
    assert len(str(caught.value)) < 400


def test_a_family_is_a_short_printable_name(tmp_path: Path) -> None:
    for family in ("\x1b[2J", "x" * 101):
        with pytest.raises(ValueError, match="expected a short name") as caught:
            load_embedding(own(tmp_path / "e.safetensors", family=family))
        assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 250


def test_keys_of_mixed_kinds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Got 3 tensors \('\\ud800', 1, 2\.5\)"):
        load_embedding(written(tmp_path, {1: PLAIN, "\ud800": PLAIN, 2.5: PLAIN}))


def test_a_long_header_is_refused_by_its_length(tmp_path: Path) -> None:
    path = tmp_path / "e.safetensors"
    path.write_bytes((5 * 2**20).to_bytes(8, "little") + b" " * (6 * 2**20))
    with pytest.raises(ValueError, match="Got a header of 5,242,880 bytes"):
        load_embedding(path)


def test_a_large_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    with path.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match=r"Got e\.pt of 1,099,511,627,776 bytes"):
        load_embedding(path)


def test_blends_of_blends_stay_readable(tmp_path: Path) -> None:
    found = NegativeEmbedding(PLAIN, provenance=Provenance("a", notes={"x": 1}))
    for _ in range(40):
        found = found.blend(NegativeEmbedding(PLAIN), 0.5)
    assert nesting(found.provenance.notes) <= KEPT_NESTING + 3
    assert load_embedding(found.save(tmp_path / "e.safetensors")).provenance == found.provenance


def test_equal_embeddings_are_equal_bytes(tmp_path: Path) -> None:
    """The library writes metadata in an order of its own, another at each call."""
    provenance = Provenance("sd15", rewards="a", notes={"x": [1, 2]})
    parts = {"mask": torch.ones(1, 4), "pooled": torch.ones(1, 3), "provenance": provenance}
    files = [NegativeEmbedding(PLAIN, **parts).save(tmp_path / f"{i}.safetensors").read_bytes() for i in range(8)]
    assert len(set(files)) == 1
    header = json.loads(files[0][8 : 8 + int.from_bytes(files[0][:8], "little")])
    assert next(iter(header)) == "__metadata__" and list(header["__metadata__"]) == sorted(header["__metadata__"])


@QUICK
@given(
    st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=20), max_size=6),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=4),
)
def test_canonical_keeps_everything(tmp_path: Path, metadata: dict[str, str], shapes: list[tuple[int, int]]) -> None:
    tensors = {f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    path = tmp_path / "c.safetensors"
    path.write_bytes(canonical(save(tensors, metadata)))
    found, told = read_tensors(path)
    assert told == metadata and found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@QUICK
@given(st.integers(1, 5), st.integers(1, 9), st.booleans(), st.text(max_size=30), st.integers(0, 2**64 - 1))
def test_whatever_is_saved_is_read_back(
    tmp_path: Path, length: int, width: int, masked: bool, text: str, seed: int
) -> None:
    """Also a prompt with lone surrogates or terminal escapes in the provenance."""
    provenance = Provenance(text, seed=seed, notes={"init": text})
    mask = torch.ones(1, length) if masked else None
    embedding = NegativeEmbedding(torch.randn(1, length, width), mask=mask, provenance=provenance)
    loaded = load_embedding(embedding.save(tmp_path / "e.safetensors", overwrite=True))
    assert torch.equal(loaded.tokens, embedding.tokens) and loaded.provenance == provenance


@QUICK
@given(st.binary(max_size=300), st.sampled_from([".safetensors", ".pt", ".bin", ""]))
def test_any_bytes_are_refused_with_one_sentence(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"e{suffix}"
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        load_embedding(path)
    assert "\n" not in str(caught.value)
