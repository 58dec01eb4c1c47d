"""Embeddings in numbers worked out by hand: blends, strength, comparison, and what each layout of a file holds."""

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reneg_core import Conditioning, NegativeEmbedding, load_embedding
from reneg_core.conventions import describe_family
from reneg_core.embedding import KEPT_NESTING, MAX_PROVENANCE, Provenance

ONE = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
OTHER = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
MASK = torch.tensor([[1, 0]])
ONES = torch.ones(1, 2, dtype=torch.int64)


def made(tokens: torch.Tensor = ONE, base: str = "sd15", **options: object) -> NegativeEmbedding:
    return NegativeEmbedding(tokens, "own", provenance=Provenance(base, notes={"lr": 0.1}), **options)


def nested(depth: int) -> dict:
    """Provenance whose whole is ``depth`` levels deep."""
    notes: dict = {}
    for _ in range(depth - 2):
        notes = {"in": notes}
    return notes


def test_a_blend_says_what_it_was_made_of() -> None:
    found = made(mask=MASK).blend(made(OTHER, "sd21", mask=MASK), 0.25)
    assert found.tokens.tolist() == [[[3.0, 4.0], [0.75, 0.5]]] and torch.equal(found.mask, MASK)
    parents = [asdict(Provenance(base, notes={"lr": 0.1})) for base in ("sd15", "sd21")]
    assert found.provenance == Provenance("sd15", notes={"operation": "blend 0.25", "of": parents})


@pytest.mark.parametrize(("depth", "kept"), [(KEPT_NESTING, True), (KEPT_NESTING + 1, False)])
def test_a_blend_of_deep_blends_keeps_all_but_their_notes(depth: int, kept: bool) -> None:
    deep = replace(made(), provenance=Provenance("sd15", steps=7, notes=nested(depth)))
    parent = deep.blend(made(), 0.5).provenance.notes["of"][0]
    assert parent == asdict(Provenance("sd15", steps=7, notes=nested(depth) if kept else {}))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ({}, {"tokens": ONE[:, :1]}, "Got embeddings of 2 and 1 tokens, expected equal lengths."),
        (
            {"mask": MASK},
            {"mask": ONES},
            "Got embeddings with different attention masks; they cannot be blended token by token.",
        ),
        ({"mask": MASK}, {}, "Got embeddings with different attention masks; they cannot be blended token by token."),
        ({}, {"mask": MASK}, "Got embeddings with different attention masks; they cannot be blended token by token."),
        (
            {},
            {"pooled": torch.ones(1, 3)},
            "Got one embedding with a pooled vector and one without; expected both or neither.",
        ),
    ],
)
def test_what_cannot_be_blended_is_said(one: dict, other: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        made(**one).blend(made(**other), 0.5)


def test_strength_is_noted_beside_what_was_noted() -> None:
    found = made().toward_null(Conditioning(OTHER), 0.5)
    assert found.tokens.tolist() == [[[3.0, 4.0], [0.5, 1.0]]] and found.family == "own" and found.mask is None
    assert found.provenance == Provenance("sd15", notes={"lr": 0.1, "strength": 0.5})


def test_strength_moves_from_the_empty_prompt_as_training_began() -> None:
    """All of it attended to where the embedding attends to all; its own padding otherwise."""
    padded = Conditioning(OTHER, MASK)
    assert torch.equal(made(mask=ONES).toward_null(padded, 0.5).mask, ONES)
    assert torch.equal(made(mask=MASK).toward_null(padded, 0.5).mask, MASK)
    assert made().toward_null(padded, 0.5).mask is None
    assert torch.equal(made(mask=ONES).toward_null(Conditioning(OTHER), 0.5).mask, ONES)
    with pytest.raises(ValueError, match="different attention masks"):
        made(mask=MASK).toward_null(Conditioning(OTHER), 0.5)


def test_comparison_in_numbers() -> None:
    found = made().compare(made(OTHER))
    assert found == {
        "norm": pytest.approx(26**0.5),
        "norm_other": pytest.approx(29**0.5),
        "distance": pytest.approx(5**0.5),
        "cosine": pytest.approx(25 / (26 * 29) ** 0.5),
        "cosine_per_token": pytest.approx([1.0, 0.0]),
    }
    with pytest.raises(ValueError, match=r"^Got embeddings of 2 and 1 tokens, expected equal lengths\.$"):
        made().compare(made(ONE[:, :1]))


def test_a_mask_of_other_values_is_refused() -> None:
    message = "Got a mask of torch.float32 with other values than 0 and 1, expected 1 where to attend, else 0."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        made(mask=torch.tensor([[1.0, 0.5]]))


@pytest.mark.parametrize(
    "parts",
    [
        {"conditioning_data_0": ONE, "attention_mask_0": MASK},
        {"conditioning_data_0": ONE},
        {"tokens": ONE, "mask": MASK, "pooled": torch.ones(1, 3)},
        {"tokens": ONE},
        {"anything": ONE},
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_every_part_of_a_foreign_file_is_read(tmp_path: Path, parts: dict[str, torch.Tensor], suffix: str) -> None:
    path = tmp_path / f"e{suffix}"
    save_file(parts, path) if suffix == ".safetensors" else torch.save(parts, path)
    found = load_embedding(path, "own")
    assert torch.equal(found.tokens, ONE) and found.provenance == Provenance(source=path.name)
    mask, pooled = parts.get("mask", parts.get("attention_mask_0")), parts.get("pooled")
    assert (found.mask is None) if mask is None else torch.equal(found.mask, mask)
    assert (found.pooled is None) if pooled is None else torch.equal(found.pooled, pooled)


def test_a_file_of_several_tensors_or_none_lists_them(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    torch.save(dict.fromkeys(("g", "f", "e", "d", "c", "a" * 60), ONE), path)
    listed = f"'{'a' * 39}, 'c', 'd', 'e', 'f'"
    with pytest.raises(ValueError, match=rf"^Got 6 tensors \({listed}\) in e\.pt, expected one embedding tensor\.$"):
        load_embedding(path)
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match=r"^Got 0 tensors \(none\) in e\.pt, expected one embedding tensor\.$"):
        load_embedding(path)


def test_a_textual_inversion_is_told_where_it_belongs(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": ONE}}, tmp_path / "e.pt")
    message = (
        "e.pt is a textual-inversion embedding (vectors at the text encoder's input); a ReNeg embedding is the "
        "encoder's output. Try it in a prompt, as embedding:name."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_embedding(tmp_path / "e.pt")


def own(path: Path, tensors: dict | None = None, **metadata: str) -> Path:
    """A file of our own layout with whatever is in it."""
    save_file(tensors or {"tokens": ONE}, path, {"format": "reneg-embedding", "format_version": "1", **metadata})
    return path


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        (
            None,
            {"format_version": "9"},
            "Got format version 9 in e.safetensors, expected 1. Try a newer version of this package.",
        ),
        (
            {name: ONE.clone() for name in ("g", "f", "e", "d", "c", "a" * 60)},
            {},
            f"Got no tokens in e.safetensors, found '{'a' * 39}, 'c', 'd', 'e', 'f'; the file was altered.",
        ),
        (
            None,
            {"provenance": "[]"},
            "Got unreadable provenance in e.safetensors (got list, expected names and values). Try the file's "
            "original.",
        ),
        (
            None,
            {"provenance": '{"notes": 3, "sampling": [], "seed": "x"}'},
            "Got unreadable provenance in e.safetensors (seed: got 'x', expected a whole number or nothing. notes is "
            "int, no mapping. sampling is list, no mapping.). Try the file's original.",
        ),
    ],
)
def test_a_file_of_our_own_that_was_altered(tmp_path: Path, tensors: dict, metadata: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        load_embedding(own(tmp_path / "e.safetensors", tensors, **metadata))
    assert str(error.value) == message


def test_a_file_of_our_own_without_words_is_read(tmp_path: Path) -> None:
    found = load_embedding(own(tmp_path / "e.safetensors"))
    assert found.provenance == Provenance() and found.family == NegativeEmbedding(ONE).family
    bare = load_embedding(own(tmp_path / "f.safetensors", family="own", provenance='{"base_model": "sd15"}'))
    assert bare.provenance == Provenance("sd15") and bare.provenance.notes == {} and bare.family == "own"


@pytest.mark.parametrize("depth", [64, 65])
def test_how_deep_provenance_may_be(tmp_path: Path, depth: int) -> None:
    text = '{"notes": ' + '{"a": ' * (depth - 2) + "{}" + "}" * (depth - 2) + "}"
    path = own(tmp_path / "e.safetensors", provenance=text)
    if depth == 64:
        assert load_embedding(path).provenance.notes
        return
    with pytest.raises(ValueError, match=r"e\.safetensors \(nested more than 64 deep\)"):
        load_embedding(path)


def test_how_long_provenance_may_be(tmp_path: Path) -> None:
    long = json.dumps({"notes": {"a": "x" * (MAX_PROVENANCE - 20)}})
    fits = long[:-3] + "x" * (MAX_PROVENANCE - len(long)) + long[-3:]
    assert len(fits) == MAX_PROVENANCE
    assert load_embedding(own(tmp_path / "e.safetensors", provenance=fits)).provenance.notes
    more = fits[:-3] + "x" + fits[-3:]
    with pytest.raises(
        ValueError, match=rf"\({MAX_PROVENANCE + 1:,} characters, expected at most {MAX_PROVENANCE:,}\)"
    ):
        load_embedding(own(tmp_path / "f.safetensors", provenance=more))


def test_another_model_is_refused_word_for_word() -> None:
    with pytest.raises(ValueError, match=r"at most 1\. Try an embedding trained with this model\.$"):
        made().require("own", 2, 1)
    with pytest.raises(ValueError, match=r"\(published: one trained for this model\)\.$"):
        made().require("another", 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"tokens": torch.zeros(1, 0, 2)},
            "Got tokens of shape [1, 0, 2] and torch.float32, expected [1, tokens, width]",
        ),
        ({"tokens": torch.ones(1, 2, 2, dtype=torch.int64)}, "Got tokens of shape [1, 2, 2] and torch.int64, expected"),
        ({"tokens": None}, "Got NoneType for the embedding's tokens, expected a tensor."),
        ({"mask": torch.ones(1, 2).to_sparse()}, "Got a sparse or quantized tensor for the embedding's mask, expected"),
        ({"pooled": torch.ones(1, 2, device="meta")}, "Got a meta tensor for the embedding's pooled, expected a plain"),
        ({"mask": torch.ones(1, 3)}, "Got a mask for 3 tokens, expected 2, one per token."),
        (
            {"tokens": torch.tensor([[[1.0, math.nan]]])},
            "Got 1 NaN or infinite values in the embedding's tokens, expected",
        ),
        (
            {"pooled": torch.tensor([[math.inf, math.nan]])},
            "Got 2 NaN or infinite values in the embedding's pooled, exp",
        ),
        ({"family": 7}, "Got the text encoder 7, expected a short name, for example clip-l."),
        ({"family": "clip\nl"}, "Got the text encoder 'clip\\nl', expected a short name, for example clip-l."),
        ({"family": "a" * 101}, "Got the text encoder 'aaaa"),
        (
            {"tokens": torch.ones(1, 2, 768), "family": "openclip-h"},
            "Got width 768 for the text encoder openclip-h (Stable",
        ),
        (
            {"tokens": torch.ones(1, 2, 768), "family": "openclip-h"},
            f"A width of 768 belongs to {describe_family('clip-l')}.",
        ),
    ],
)
def test_what_is_no_embedding_is_said(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NegativeEmbedding(**{"tokens": ONE, "family": "own", **parts})


def test_a_mask_is_a_row_of_whole_numbers() -> None:
    found = NegativeEmbedding(ONE, "a" * 100, torch.tensor([True, False]))
    assert found.mask.tolist() == [[1, 0]] and found.mask.dtype == torch.int64 and found.family == "a" * 100


def test_ltx_has_no_place_for_a_pooled_vector(tmp_path: Path) -> None:
    embedding = NegativeEmbedding(torch.ones(1, 2, 4096), "t5", pooled=torch.ones(1, 3))
    with pytest.raises(ValueError) as error:
        embedding.save(tmp_path / "x.safetensors", layout="ltx")
    assert str(error.value) == "The ltx layout has no place for a pooled vector; try the layout 'reneg'."
