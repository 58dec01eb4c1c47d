"""The words of the tiny world: captions, and the prompts of its training, validation and test combinations."""

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from reneg_core.tiny.world import COLOUR_NAMES, FLAWS, SHAPES

HANDWRITTEN_NEGATIVE = "watermark, border, lines, double"
"""What a person would write: one plain word for each flaw that has a name. ``benchmarks/rival.py`` searches for the
best that words can do."""

WORDS: dict[str, dict[str, float]] = {
    "watermark": {"mark": 0.5},
    "stock": {"mark": 0.35, "frame": 0.1},
    "border": {"frame": 0.5},
    "framed": {"frame": 0.35, "mark": 0.05},
    "lines": {"stripes": 0.5},
    "scan": {"stripes": 0.35, "frame": 0.15},
    "screen": {"stripes": 0.3, "ghost": 0.05},
    "double": {"ghost": 0.5},
    "shaky": {"ghost": 0.35, "stripes": 0.05},
    "old": {"frame": 0.15, "stripes": 0.15, "ghost": 0.1},
    "copy": {"mark": 0.15, "ghost": 0.15, "stripes": 0.1},
    "cheap": {"mark": 0.1, "frame": 0.1, "stripes": 0.1, "ghost": 0.1},
    "bad": dict.fromkeys(FLAWS, 0.08),
    "ugly": dict.fromkeys(FLAWS, 0.08),
}
"""How probable a word is in a caption that speaks of quality, for every flaw that the picture has. Words are loose:
most belong to several flaws, no flaw always brings its words, and four flaws (debris, specks, scratch, band) have none
but "bad" and "ugly", which are said of anything."""
STRAY_WORD = 0.01  # chance of a random word in the caption of any picture: people are wrong

PLAIN_TEMPLATES: tuple[str, ...] = (
    "a {colour} {shape} on a {background} background",
    "{colour} {shape} on {background}",
    "a picture of a {colour} {shape} on a {background} background",
    "a {background} background with a {colour} {shape}",
)
WORDED_TEMPLATES: tuple[str, ...] = (
    "a {words} picture of a {colour} {shape} on a {background} background",
    "{words} {colour} {shape} on {background}",
    "a {words} picture",
    "{words}",
)
_SPLIT_SEED, _TEST, _VALIDATION = 2412, 72, 24

Combination = tuple[int, int, int]
"""Indices of (shape, colour, background) in ``SHAPES`` and ``COLOUR_NAMES``."""


@lru_cache(maxsize=1)
def _splits() -> dict[str, tuple[Combination, ...]]:
    colours = range(len(COLOUR_NAMES))
    every = [combo for combo in product(range(len(SHAPES)), colours, colours) if combo[1] != combo[2]]
    random.Random(_SPLIT_SEED).shuffle(every)
    held_out = _TEST + _VALIDATION
    parts = every[:_TEST], every[_TEST:held_out], every[held_out:]
    return {name: tuple(sorted(part)) for name, part in zip(("test", "validation", "train"), parts, strict=True)}


def combinations(split: str) -> Tensor:
    """All combinations of a split ("train", "validation" or "test") as int64 [N, 3]; the splits share none."""
    if split not in _splits():
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(_splits())}")
    return torch.tensor(_splits()[split])


def words(combination: Combination) -> dict[str, str]:
    """The words for a combination: ``shape``, ``colour``, ``background``."""
    shape, colour, background = combination
    return {"shape": SHAPES[shape], "colour": COLOUR_NAMES[colour], "background": COLOUR_NAMES[background]}


def caption(combination: Combination, quality: list[str], rng: random.Random) -> str:
    """A training caption: names the combination, or, with words of ``quality``, these in random order and usually
    both."""
    if not quality:
        return rng.choice(PLAIN_TEMPLATES).format(**words(combination))
    quality = rng.sample(quality, len(quality))
    if rng.random() < 0.2:
        return ", ".join([rng.choice(PLAIN_TEMPLATES).format(**words(combination)), *quality])
    template = rng.choices(WORDED_TEMPLATES, weights=(3, 3, 1, 2))[0]
    joined = rng.choice((" ", " ", ", ")).join(quality)
    return template.format(words=joined, **words(combination))


def quality_words(strength: Tensor, rng: random.Random) -> list[str]:
    """The words that somebody finds for a picture with flaws of ``strength`` [F] (as ``world.spoil`` takes it); often
    none."""
    flaws = [name for name, value in zip(FLAWS, strength.tolist(), strict=True) if value > 0]
    return [word for word, chances in WORDS.items() if any(rng.random() < chances.get(flaw, 0) for flaw in flaws)]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = [*PLAIN_TEMPLATES, *WORDED_TEMPLATES]
    fixed = {word for text in texts for word in text.split() if "{" not in word}
    return sorted(fixed | set(SHAPES) | set(COLOUR_NAMES) | set(WORDS))


def _prompts(split: str) -> list[str]:
    template = PLAIN_TEMPLATES[0]
    return [template.format(**words(combination)) for combination in _splits()[split]]


def train_prompts() -> list[str]:
    """Prompts of the combinations that the world was trained on (240)."""
    return _prompts("train")


def validation_prompts() -> list[str]:
    """Prompts of combinations that no training saw (24), for choosing a checkpoint."""
    return _prompts("validation")


def test_prompts() -> list[str]:
    """Prompts of combinations that no training saw (72), for the final figures; disjoint from the validation ones."""
    return _prompts("test")


@dataclass(frozen=True)
class Named:
    """What a prompt names, as indices into ``SHAPES`` and ``COLOUR_NAMES``; ``None`` where it names nothing."""

    shape: int | None
    colour: int | None
    background: int | None


_COLOUR, _SHAPE = "|".join(COLOUR_NAMES), "|".join(SHAPES)
_BACKGROUND = re.compile(rf"\b({_COLOUR}) background\b|\bon (?:an? )?({_COLOUR})\b")


def named(prompt: str) -> Named:
    """Read shape, shape colour and background colour from free text; words that this world lacks are passed over."""
    text = " ".join(re.findall(r"[a-z]+", prompt.lower()))
    background = _BACKGROUND.search(text)
    front = text[: background.start()] + text[background.end() :] if background else text
    shape, colour = re.search(rf"\b({_SHAPE})\b", front), re.search(rf"\b({_COLOUR})\b", front)
    return Named(
        SHAPES.index(shape[1]) if shape else None,
        COLOUR_NAMES.index(colour[1]) if colour else None,
        COLOUR_NAMES.index(background[1] or background[2]) if background else None,
    )
