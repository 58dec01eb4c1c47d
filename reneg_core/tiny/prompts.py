"""The words of the tiny world: captions, and the prompts of its training, validation and test combinations."""

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import torch
from torch import Tensor

from reneg_core.tiny.world import COLOUR_NAMES, DEGRADATIONS, SHAPES

HANDWRITTEN_NEGATIVE = "blurry noisy faded"
"""The best handwritten negative prompt of this world: every degradation word, combined as the captions combine them."""

PLAIN_TEMPLATES: tuple[str, ...] = (
    "a {colour} {shape} on a {background} background",
    "{colour} {shape} on {background}",
    "a picture of a {colour} {shape} on a {background} background",
    "a {background} background with a {colour} {shape}",
)
DEGRADED_TEMPLATES: tuple[str, ...] = (
    "a {flaws} picture of a {colour} {shape} on a {background} background",
    "{flaws} {colour} {shape} on {background}",
    "a {flaws} picture",
    "{flaws}",
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


def caption(combination: Combination, flaws: list[str], rng: random.Random) -> str:
    """A training caption: names the combination, or, with ``flaws``, the flaws in random order and usually both."""
    if not flaws:
        return rng.choice(PLAIN_TEMPLATES).format(**words(combination))
    flaws = rng.sample(flaws, len(flaws))
    if rng.random() < 0.2:
        return ", ".join([rng.choice(PLAIN_TEMPLATES).format(**words(combination)), *flaws])
    template = rng.choices(DEGRADED_TEMPLATES, weights=(3, 3, 1, 2))[0]
    joined = rng.choice((" ", " ", ", ")).join(flaws)
    return template.format(flaws=joined, **words(combination))


def flaw_words(strength: Tensor) -> list[str]:
    """The degradation words that apply to a picture with ``strength`` [3] (as ``world.degrade`` takes it)."""
    return [word for word, value in zip(DEGRADATIONS, strength.tolist(), strict=True) if value > 0]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    texts = [*PLAIN_TEMPLATES, *DEGRADED_TEMPLATES]
    fixed = {word for text in texts for word in text.split() if "{" not in word}
    return sorted(fixed | set(SHAPES) | set(COLOUR_NAMES) | set(DEGRADATIONS))


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
