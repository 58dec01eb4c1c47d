"""Handwritten negatives of the tiny world: the candidates of the search for the strongest, and who won it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from reneg_core.seeds import derive_seed
from reneg_core.tiny.prompts import HANDWRITTEN_NEGATIVE, WORDS, validation_prompts

SCALES = (2.0, 3.0, 4.0, 5.0, 7.0)
"""Guidance scales among which every negative gets the one that serves it best."""
STRENGTHS = (1.0, 1.5, 2.0, 2.5, 3.0)
"""Of ``null + strength * (text - null)``."""

_PLAIN = ("watermark", "border", "lines", "double")
_GROUPS = (
    ("watermark", "stock"),
    ("border", "framed"),
    ("lines", "scan", "screen"),
    ("double", "shaky"),
    ("bad", "ugly"),
    ("bad", "ugly", "cheap"),
    ("cheap", "old", "copy"),
    ("bad", "ugly", "cheap", "old", "copy"),
    ("watermark", "framed", "scan", "shaky"),
    ("stock", "border", "screen", "double", "bad"),
    tuple(WORDS),
    tuple(reversed(WORDS)),
)


def candidates() -> list[str]:
    """Every text that the search begins with, declared before anything was measured: single words, every subset of the
    plain words in both directions, words that belong together, repetitions, and the two wordings that captions use."""
    subsets = [subset for size in (2, 3, 4) for subset in combinations(_PLAIN, size)]
    several = [*subsets, *(subset[::-1] for subset in subsets), *_GROUPS]
    repeated = [(word,) * 3 for word in WORDS] + [_PLAIN * 2, ("bad", "ugly") * 3, ("old", "bad") * 3]
    phrases = [wording((word,)) for word in WORDS] + [wording(words) for words in (*subsets, *_GROUPS[:10])]
    bare = [" ".join(words) for words in ([(word,) for word in WORDS], several, repeated) for words in words]
    return list(dict.fromkeys([HANDWRITTEN_NEGATIVE, *bare, *phrases]))


def wording(words: Sequence[str]) -> str:
    """Words as a caption says them of a picture."""
    return f"a {' '.join(words)} picture"


@dataclass(frozen=True)
class Rival:
    """A negative as it is strongest on the validation prompts: ``text`` ("" = the empty prompt) at ``strength``,
    sampled at ``guidance_scale``."""

    text: str
    strength: float
    guidance_scale: float


def final_pairs() -> tuple[list[str], list[list[int]]]:
    """The validation prompts and eight noise seeds for each, on which the search's finalists met and every negative's
    guidance scale is chosen."""
    texts = validation_prompts()
    return texts, [[derive_seed("evaluation", 2, i, j) >> 10 for j in range(8)] for i in range(len(texts))]


def rivals() -> dict[str, Rival]:
    """``none``, ``text`` (the plain words) and ``best_text`` (the search's winner), from ``rivals.json``, which
    ``benchmarks/rival.py`` writes."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "rivals.json").read_text(encoding="utf-8"))
    return {name: Rival(**values) for name, values in found.items()}
