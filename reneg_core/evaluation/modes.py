"""The negatives that people compare, as modes: none, texts, embeddings, and one adapted to each pair.

The command line and the ComfyUI nodes build them here, so that both compare the same things.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..embedding import NegativeEmbedding
from ..guidance import strengthen
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import Sampling
from ..training import AdaptConfig, adapt
from ..training.workers import Workers
from .compare import Keep, Measure, Mode, PartsMeasure, evaluate
from .pairs import Pairs
from .results import Evaluation

NONE, TEXT, BEST_TEXT, EMBEDDING, ADAPTED = "none", "text", "best_text", "embedding", "adapted"
LABELS = {NONE: "empty prompt", EMBEDDING: "learned", ADAPTED: "learned + adapted"}


@dataclass(frozen=True)
class Words:
    """A handwritten negative: ``null + strength * (text - null)``; 1 is the text as it is."""

    text: str
    strength: float = 1.0

    def label(self) -> str:
        """In quotation marks, with its strength where it has one."""
        return f"“{self.text}”" + (f" × {self.strength:g}" if self.strength != 1 else "")


@dataclass(frozen=True)
class Rivals:
    """What to compare with what, by mode name.

    none: the empty prompt; texts: handwritten ones; encoded: negatives that were encoded elsewhere, one row each;
    embeddings: learned ones; tuned: tuned models of the one that is compared, each with the empty prompt and with the
    first embedding (``NAME+embedding``); adapted: how ``start`` (or else the first embedding) is adapted to each pair,
    None = it is not; samplings: modes that are sampled in their own way (the adapted mode is sampled as it is adapted);
    labels: names in words. Errors: ValueError for names that clash, samplings of no mode, and nothing to adapt.
    """

    none: bool = True
    texts: Mapping[str, Words] = field(default_factory=dict)
    encoded: Mapping[str, Conditioning] = field(default_factory=dict)
    embeddings: Mapping[str, NegativeEmbedding] = field(default_factory=dict)
    tuned: Mapping[str, DiffusionModel] = field(default_factory=dict)
    adapted: AdaptConfig | None = None
    start: NegativeEmbedding | None = None
    samplings: Mapping[str, Sampling] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"Got two modes called {twice[0]!r}, expected different names.")
        unknown = sorted(set(self.samplings) - set(names))
        if unknown:
            raise ValueError(f"Got a sampling for the mode {unknown[0]!r}, expected one of {', '.join(names)}.")
        if self.adapted and not self.adapted_from:
            raise ValueError("Got no embedding to adapt, expected one. Give one, or leave the adapted mode out.")
        if self.adapted and self.samplings.get(ADAPTED, self.adapted.sampling) != self.adapted.sampling:
            raise ValueError("Got another sampling for the adapted mode than for its adaptation, expected the same.")

    @property
    def names(self) -> list[str]:
        """The modes in the order of a comparison."""
        return [
            *([NONE] if self.none else []),
            *self.texts,
            *self.encoded,
            *self.embeddings,
            *([ADAPTED] if self.adapted else []),
            *(mode for name in self.tuned for mode in self._tuned_modes(name)),
        ]

    def _tuned_modes(self, name: str) -> list[str]:
        return [name, *([f"{name}+{EMBEDDING}"] if self.embeddings else [])]

    def tuned_modes(self, name: str, null: Conditioning) -> dict[str, Mode]:
        """The modes of the tuned model ``name``; null: what it says of the empty prompt."""
        model, learned = self.tuned[name], [fitted(one.conditioning(), null) for one in self.embeddings.values()][:1]
        modes, words = self._tuned_modes(name), ("", f" + {LABELS[EMBEDDING]}")
        return {
            mode: Mode(row, self.labels.get(mode, name + word), self.samplings.get(mode), model)
            for mode, row, word in zip(modes, [null, *learned], words, strict=False)
        }

    @property
    def adapted_from(self) -> NegativeEmbedding | None:
        """The embedding that adaptation starts from."""
        return self.start or next(iter(self.embeddings.values()), None)


@dataclass(frozen=True)
class Judges:
    """What a comparison is judged by: ``measures`` and ``parts`` as :func:`.evaluate` takes them, the reward that an
    adapted mode climbs, and measures' names in words."""

    measures: Mapping[str, Measure]
    parts: Mapping[str, PartsMeasure] = field(default_factory=dict)
    climbed: Reward | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def compare_rivals(
    model: DiffusionModel,
    pairs: Pairs,
    rivals: Rivals,
    judges: Judges,
    sampling: Sampling,
    *,
    keep: Keep | None = None,
    batch_size: int = 8,
    progress: Callable[[str, int, int], Any] | None = None,
    workers: Workers | None = None,
) -> Evaluation:
    """Build the modes, adapt where that is asked for, and evaluate.

    progress: called with ("adapting" or "judging", done, in all); workers: processes that share the work. Errors: as
    :func:`build_modes` and :func:`.evaluate`.
    """

    def stage(name: str) -> Callable[[int, int], Any] | None:
        return progress and (lambda done, total: progress(name, done, total))

    modes = build_modes(model, pairs, rivals, reward=judges.climbed, progress=stage("adapting"), workers=workers)
    evaluation = evaluate(
        model, pairs, modes, judges.measures, sampling, parts=judges.parts, keep=keep, batch_size=batch_size,
        progress=stage("judging"), workers=workers,
    )  # fmt: skip
    return evaluation.labelled(**{name: words for name, words in judges.labels.items() if name in judges.measures})


def build_modes(
    model: DiffusionModel,
    pairs: Pairs,
    rivals: Rivals,
    *,
    reward: Reward | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: Workers | None = None,
) -> dict[str, Mode]:
    """The modes of ``rivals`` in their order, encoded and adapted.

    reward: what the adapted mode climbs; progress: called with (pairs adapted, pairs in all); workers: processes that
    share the adaptation.
    Errors: ValueError, before any work, for an embedding of another model and for an adapted mode without a reward.
    """
    for embedding in [*rivals.embeddings.values(), *([rivals.adapted_from] if rivals.adapted else [])]:
        embedding.require(model.family, model.width, model.max_tokens)
    if rivals.adapted and reward is None:
        raise ValueError("Got no reward for the adapted mode, expected the one that it is to climb.")
    null, texts = model.run(lambda prepared: _encoded(prepared, rivals.texts))
    negatives: dict[str, Conditioning] = {NONE: null} if rivals.none else {}
    negatives |= {name: exaggerate(null, texts[name], words.strength) for name, words in rivals.texts.items()}
    negatives |= {name: fitted(negative, null) for name, negative in rivals.encoded.items()}
    negatives |= {name: fitted(learned.conditioning(), null) for name, learned in rivals.embeddings.items()}
    samplings = dict(rivals.samplings)
    if rivals.adapted:
        negatives[ADAPTED] = adapt_all(model, reward, pairs, rivals.adapted_from, rivals.adapted, progress, workers)
        samplings[ADAPTED] = rivals.adapted.sampling
    words = {name: entry.label() for name, entry in rivals.texts.items()}
    labels = {**LABELS, **words, **rivals.labels}
    modes = {name: Mode(row, labels.get(name, ""), samplings.get(name)) for name, row in negatives.items()}
    for name, tuned in rivals.tuned.items():
        modes |= rivals.tuned_modes(name, tuned.encode([""]).to("cpu"))
    return modes


def _encoded(model: DiffusionModel, texts: Mapping[str, Words]) -> tuple[Conditioning, dict[str, Conditioning]]:
    """The empty prompt and every text, one row each, on the CPU."""
    return model.encode([""]).to("cpu"), {name: model.encode([w.text]).to("cpu") for name, w in texts.items()}


def exaggerate(null: Conditioning, negative: Conditioning, strength: float) -> Conditioning:
    """``null + strength * (negative - null)`` on tokens ``[1,L,D]`` and the pooled vector, with the negative's mask.

    Errors: ValueError where they have unequal shapes.
    """
    if strength == 1:
        return negative
    if null.tokens.shape != negative.tokens.shape:
        raise ValueError(
            f"Got a text of {negative.tokens.shape[1]} tokens where the empty prompt has {null.tokens.shape[1]}, "
            "expected equal numbers. Try a shorter text, or strength 1."
        )
    tokens = strengthen(null.tokens, negative.tokens, strength)
    pooled = None if negative.pooled is None else strengthen(null.pooled, negative.pooled, strength)
    return replace(negative, tokens=tokens, pooled=pooled)


def fitted(negative: Conditioning, null: Conditioning) -> Conditioning:
    """One row of ``negative`` with the parts that the model reads, which are those of its empty prompt ``null``.

    A pooled vector that it lacks is the empty prompt's, one that the model does not read is left out, and so is a mask
    that hides nothing. Errors: ValueError for a mask that hides tokens from a model that reads no masks.
    """
    mask = negative.mask
    if null.mask is None and mask is not None:
        if not mask.bool().all():
            raise ValueError(
                f"Got a mask that hides {int((~mask.bool()).sum())} tokens for a model that reads no masks; expected "
                "an embedding made for this model."
            )
        mask = None
    pooled = None if null.pooled is None else negative.pooled if negative.pooled is not None else null.pooled
    return Conditioning(negative.tokens, mask, pooled)[:1]


def adapt_all(
    model: DiffusionModel,
    reward: Reward,
    pairs: Pairs,
    start: NegativeEmbedding,
    config: AdaptConfig,
    progress: Callable[[int, int], None] | None = None,
    workers: Workers | None = None,
) -> Conditioning:
    """A negative of its own for each pair, a row per pair in their order (arXiv 2412.19637, per-sample negatives)."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(pairs))

    prompts, seeds = zip(*pairs, strict=True)
    return adapt(model, reward, prompts, seeds, start, config, progress=advance, workers=workers).negatives
