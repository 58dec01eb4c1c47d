"""The world's words as its networks learned them: another wording would be another world."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reneg_core import tiny
from reneg_core.tiny import prompts, world

CAPTIONS = [
    ([], "a picture of a blue square on a yellow background"),
    ([], "blue square on yellow"),
    (["bad"], "a bad picture of a blue square on a yellow background"),
    (["bad", "old"], "bad old"),
    (["bad", "old"], "a bad old picture of a blue square on a yellow background"),
    (["ugly", "old", "scan"], "a scan old ugly picture of a blue square on a yellow background"),
    (["bad", "stock"], "blue square on yellow, bad, stock"),
    (["bad"], "a bad picture of a blue square on a yellow background"),
    (["bad"], "bad blue square on yellow"),
    (["old", "bad"], "old bad blue square on yellow"),
]
FOUND = [
    ["border", "lines", "old", "ugly"], ["border", "cheap"], ["framed", "lines", "copy"],
    ["stock", "border", "scan", "old"], ["watermark", "stock", "framed", "scan", "screen", "copy"],
    ["framed", "lines", "scan", "old", "copy", "cheap"],
]  # fmt: skip


VOCABULARY = """a background bad black blue border cheap circle copy cross cyan diamond double framed green lines of old
on picture purple red ring scan screen shaky square stock triangle ugly watermark white with yellow"""


@pytest.fixture(autouse=True)
def anew() -> None:
    """The splits are made again and not remembered."""
    prompts._splits.cache_clear()


def test_captions_are_those_that_were_trained_on() -> None:
    rng = random.Random(7)
    assert [prompts.caption((1, 2, 3), quality, rng) for quality, _ in CAPTIONS] == [text for _, text in CAPTIONS]
    flawed = torch.tensor([0.0, 0, 0.5, 0, 0, 0, 1.0, 1.0])
    assert [prompts.quality_words(flawed, random.Random(seed)) for seed in range(6)] == FOUND


def test_wordings_are_as_frequent_as_in_training() -> None:
    """A fifth has the words behind a plain caption; of the others 3, 3, 1 and 2 of 9 have one of the worded forms."""
    rng, counts = random.Random(1), [0] * 5
    for _ in range(5000):
        text = prompts.caption((0, 0, 2), ["old"], rng)
        kinds = (
            text.endswith(", old"),
            text.endswith("background"),
            text == "old red circle on blue",
            "picture" in text,
        )
        counts[kinds.index(True) if any(kinds) else 4] += 1
    expected = [0.2, 0.8 * 3 / 9, 0.8 * 3 / 9, 0.8 / 9, 0.8 * 2 / 9]
    assert [count / 5000 for count in counts] == pytest.approx(expected, abs=0.02)


def test_the_vocabulary() -> None:
    assert prompts.vocabulary() == sorted(VOCABULARY.split())


def test_the_prompts_of_each_split() -> None:
    ends = [("green", "white"), ("yellow", "cyan"), ("cyan", "yellow")]
    for texts, (first, last), split in zip(
        (tiny.train_prompts(), tiny.validation_prompts(), prompts.test_prompts()), ends,
        ("train", "validation", "test"), strict=True,
    ):  # fmt: skip
        assert texts[0] == f"a red circle on a {first} background"
        assert texts[-1] == f"a black cross on a {last} background"
        rows = prompts.combinations(split)
        assert rows.dtype == torch.int64 and rows.shape == (len(texts), 3) and (rows[:, 1] != rows[:, 2]).all()


@given(st.sampled_from(world.SHAPES), st.sampled_from(world.COLOUR_NAMES), st.sampled_from(world.COLOUR_NAMES))
def test_what_a_text_names_is_read(shape: str, colour: str, ground: str) -> None:
    whole = prompts.Named(world.SHAPES.index(shape), *map(world.COLOUR_NAMES.index, (colour, ground)))
    for text in (
        f"{colour} {shape} on {ground}", f"A {colour.upper()} {shape}, on a {ground} background!",
        f"{ground} background; {colour} {shape}", f"{colour} {shape} on an {ground}",
        f"a {ground} background with a {colour} {shape}", f"old_{colour}\n{shape} 7 on the {ground} background",
    ):  # fmt: skip
        assert prompts.named(text) == whole, text
    assert prompts.named(f"{shape} on {ground}") == prompts.Named(whole.shape, None, whole.background)
    assert prompts.named(f"{colour} {shape}") == prompts.Named(whole.shape, whole.colour, None)
    assert prompts.named(f"x{shape} {colour}ish") == prompts.Named(None, None, None)
