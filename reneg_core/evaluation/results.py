"""What a comparison found: scores with their means, differences and win rates, and their JSON form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from typing import Any

import numpy as np
from torch import Tensor

from ..sampling import Sampling
from .pairs import Pairs
from .statistics import Estimate, better_half, estimate, share, wins, within

Table = Sequence[Sequence[float]]
"""A row per prompt, a number per noise."""

RESERVED = (
    "win_rate",
    "pairs",
    "prompts",
    "seeds",
    "shared_noise",
    "settings",
    "versions",
    "scores",
    "parts",
    "labels",
    "confidence",
    "baseline",
    "run",
)
"""Keys of the JSON form that no mode may be called."""


@dataclass(frozen=True)
class Pictures:
    """Pictures kept: ``pairs`` are (prompt index, noise index); ``images`` maps each mode to ``[len(pairs),3,H,W]``
    (of a video the judged frames, ``[len(pairs),T,3,H,W]``) float32 in [0,1] on the CPU."""

    pairs: tuple[tuple[int, int], ...] = ()
    images: Mapping[str, Tensor] = field(default_factory=dict)


def judge_of(measures: Sequence[str]) -> str:
    """The measure that decides: ``independent``, else the last."""
    return "independent" if "independent" in measures else measures[-1]


def subject_of(modes: Sequence[str]) -> str:
    """The mode that the comparison is about: ``embedding``, else the last."""
    return "embedding" if "embedding" in modes else modes[-1]


def baseline_of(modes: Sequence[str], chosen: str = "") -> str:
    """The mode that losses are counted against: the chosen one, else ``none``, else the first."""
    if chosen and chosen not in modes:
        raise ValueError(f"Got the baseline {chosen!r}, expected one of the modes {', '.join(modes)}.")
    return chosen or ("none" if "none" in modes else modes[0])


@dataclass(frozen=True)
class Halves:
    """A mean difference in each half of the pairs; an odd pair out belongs to the lower one."""

    lower: Estimate
    upper: Estimate


@dataclass(frozen=True)
class Evaluation:
    """What was measured: ``scores[measure][mode]`` and ``parts[measure][part][mode]`` are tables, a row per prompt.

    samplings: how each mode's pictures were made; labels: mode and measure names in words; settings and versions:
    whatever else is needed to sample the same again; baseline: the mode that losses are counted against ("": ``none``,
    else the first). ``pictures`` (evenly spread pairs) and ``losses`` (the pairs that lose most against the baseline)
    are not part of the JSON form.
    """

    pairs: Pairs
    scores: Mapping[str, Mapping[str, Table]]
    parts: Mapping[str, Mapping[str, Mapping[str, Table]]] = field(default_factory=dict)
    samplings: Mapping[str, Sampling] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 0.95
    baseline: str = ""
    pictures: Pictures = field(default_factory=Pictures, compare=False)
    losses: Pictures = field(default_factory=Pictures, compare=False)

    @property
    def measures(self) -> list[str]:
        return list(self.scores)

    @property
    def modes(self) -> list[str]:
        return list(next(iter(self.scores.values())))

    @property
    def judge(self) -> str:
        """The measure that decides."""
        return judge_of(self.measures)

    @property
    def subject(self) -> str:
        """The mode that the comparison is about."""
        return subject_of(self.modes)

    @property
    def rival(self) -> str:
        """The mode that losses are counted against."""
        return baseline_of(self.modes, self.baseline)

    def label(self, name: str) -> str:
        """A mode or measure in words."""
        return self.labels.get(name) or name

    def labelled(self, **labels: str) -> "Evaluation":
        """The same with these names in words."""
        return replace(self, labels={**self.labels, **labels})

    def mean(self, measure: str, mode: str) -> Estimate:
        """Mean score of a mode."""
        return self._estimate(self.table(measure, mode))

    def part(self, measure: str, part: str, mode: str) -> Estimate:
        """Mean of one part of a measure."""
        found = self.parts.get(measure, {})
        if part not in found:
            raise ValueError(
                f"Got the part {part!r} of {measure!r}, expected one of {', '.join(found) or 'none: it has no parts'}."
            )
        return self._estimate(found[part][_known(mode, found[part], "mode")])

    def win_rate(self, measure: str, first: str, second: str) -> Estimate:
        """Share of pairs in [0,1] on which ``first`` scores higher than ``second``; a tie counts half."""
        won = wins(self.table(measure, first), self.table(measure, second))
        return share(won, crossed=self.pairs.crossed, confidence=self.confidence)

    def difference(self, measure: str, first: str, second: str) -> Estimate:
        """Mean of score(first) - score(second) over pairs."""
        return self._estimate(self._differences(measure, first, second))

    def halves(self, measure: str, first: str, second: str) -> Halves | None:
        """:meth:`difference` in the half of the pairs where ``second`` scores lower, and in the half where it scores
        higher; None for a single pair.

        A picture is in the upper half partly by luck that the other mode need not share, so a difference of nothing
        looks like a small loss there, and like a gain in the lower half: what is left of a loss is at most that large.
        """
        if len(self.pairs) < 2:
            return None
        differences, by = self._differences(measure, first, second), self.table(measure, second)
        upper = better_half(by)
        return Halves(*(self._estimate(within(differences, chosen, by)) for chosen in (~upper, upper)))

    def worst(self, measure: str, first: str, second: str, count: int) -> list[tuple[int, int]]:
        """At most ``count`` pairs (prompt index, noise index) on which ``first`` loses most against ``second``."""
        differences = self._differences(measure, first, second).ravel()
        order = np.argsort(differences, kind="stable")[:count]
        return [self.pairs.place(int(index)) for index in order if differences[index] < 0]

    def table(self, measure: str, mode: str) -> Table:
        """The scores of a mode, a row per prompt."""
        tables = self.scores[_known(measure, self.scores, "measure")]
        return tables[_known(mode, tables, "mode")]

    @cached_property
    def comparisons(self) -> dict[str, dict[str, dict[str, Any]]]:
        """``[measure]["first>second"]`` for every ordered pair: rate, interval, difference, difference_interval, and
        ``halves`` (``lower`` and ``upper`` by the second's score, each with difference and interval)."""
        return {
            measure: {f"{a}>{b}": self._comparison(measure, a, b) for a, b in permutations(self.modes, 2)}
            for measure in self.measures
        }

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain data.

        A key per mode with ``<measure>_mean``, ``<measure>_interval``, ``<measure>_parts`` where there are any, and its
        ``sampling``; then ``win_rate`` (:attr:`comparisons`), the number of pairs, prompts, the table of noise seeds
        and whether prompts share it, and the scores that all of it is computed from.
        """
        return {
            **{mode: self._mode_summary(mode) for mode in self.modes},
            "win_rate": self.comparisons,
            "pairs": len(self.pairs),
            "prompts": list(self.pairs.prompts),
            "seeds": [list(row) for row in self.pairs.seeds],
            "shared_noise": self.pairs.crossed,
            "confidence": self.confidence,
            "baseline": self.baseline,
            "labels": dict(self.labels),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "scores": {measure: dict(tables) for measure, tables in self.scores.items()},
            "parts": {measure: {part: dict(t) for part, t in parts.items()} for measure, parts in self.parts.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        """The evaluation behind :meth:`to_json`; every figure is computed again from the scores.

        Files from before noises were listed per prompt are read as what they are: the same noises for all prompts.
        """
        names = ("labels", "settings", "versions", "confidence")
        missing = [key for key in ("prompts", "seeds", "scores", *names) if key not in data]
        if missing:
            raise ValueError(f"Got an evaluation without {', '.join(missing)}; expected a report.json as written here.")
        prompts, seeds = data["prompts"], data["seeds"]
        rows = all(isinstance(row, Sequence) for row in seeds)
        modes = next(iter(data["scores"].values()), {})
        samplings = {mode: data[mode]["sampling"] for mode in modes if "sampling" in data.get(mode, {})}
        return cls(
            Pairs(tuple(prompts), tuple(map(tuple, seeds))) if rows else Pairs.shared(prompts, seeds),
            data["scores"],
            data.get("parts", {}),
            {mode: Sampling.from_mapping(values) for mode, values in samplings.items()},
            **{name: data[name] for name in names},
            baseline=data.get("baseline", ""),
        )

    def _differences(self, measure: str, first: str, second: str) -> np.ndarray:
        a, b = (np.asarray(self.table(measure, mode), dtype=np.float64) for mode in (first, second))
        return a - b

    def _estimate(self, values: Any) -> Estimate:
        return estimate(values, crossed=self.pairs.crossed, confidence=self.confidence)

    def _comparison(self, measure: str, first: str, second: str) -> dict[str, Any]:
        rate, difference = self.win_rate(measure, first, second), self.difference(measure, first, second)
        halves = self.halves(measure, first, second)
        return {
            "rate": rate.value,
            "interval": _listed(rate.interval),
            "difference": difference.value,
            "difference_interval": _listed(difference.interval),
            "halves": {
                name: {"difference": half.value, "interval": _listed(half.interval)}
                for name, half in (vars(halves) if halves else {}).items()
            },
        }

    def _mode_summary(self, mode: str) -> dict[str, Any]:
        summary: dict[str, Any] = {"label": self.label(mode)}
        for measure in self.measures:
            mean = self.mean(measure, mode)
            summary |= {f"{measure}_mean": mean.value, f"{measure}_interval": _listed(mean.interval)}
        for measure, parts in self.parts.items():
            found = {part: self.part(measure, part, mode) for part in parts}
            summary[f"{measure}_parts"] = {
                part: {"mean": mean.value, "interval": _listed(mean.interval)} for part, mean in found.items()
            }
        if mode in self.samplings:
            summary["sampling"] = self.samplings[mode].to_mapping()
        return summary


def _known(name: str, names: Mapping[str, Any], what: str) -> str:
    if name not in names:
        raise ValueError(f"Got the {what} {name!r}, expected one of {', '.join(names)}.")
    return name


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
