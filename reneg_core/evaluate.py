"""Compare negatives (none, text, embedding, adapted, ...) on the same prompts and the same noise."""

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from .guidance import Guidance
from .model import Conditioning, DiffusionModel
from .sampling import Sampling, Size, sample, solver_named
from .statistics import Estimate, estimate, wins

Measure = Callable[[Tensor, list[str]], Tensor]
"""Images ``[B,3,H,W]`` in [0,1] and B prompts to ``[B]`` numbers, higher is better: a reward's ``score``, for one."""

RESERVED = ("win_rate", "pairs", "prompts", "seeds", "settings", "versions", "scores", "labels", "confidence", "run")
"""Keys of the JSON form that no mode may be called."""


@dataclass(frozen=True)
class Mode:
    """One negative to compare: ``negative`` has 1 row, or one per (prompt, seed) pair with all seeds of the first
    prompt first; ``label`` is its name in words for reports."""

    negative: Conditioning
    label: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures kept for a grid: ``pairs`` are (prompt index, seed index); ``images`` maps each mode to
    ``[len(pairs),3,H,W]`` float32 in [0,1] on the CPU."""

    pairs: tuple[tuple[int, int], ...] = ()
    images: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What was measured: ``scores[measure][mode]`` is a list of rows, one per prompt, one number per seed.

    labels: mode and measure names in words; settings and versions: whatever is needed to sample the same again.
    ``pictures`` are not part of the JSON form.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scores: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 0.95
    pictures: Pictures = field(default_factory=Pictures, compare=False)

    @property
    def measures(self) -> list[str]:
        return list(self.scores)

    @property
    def modes(self) -> list[str]:
        return list(next(iter(self.scores.values())))

    @property
    def pairs(self) -> int:
        """Number of (prompt, seed) pairs, each sampled once per mode."""
        return len(self.prompts) * len(self.seeds)

    def label(self, name: str) -> str:
        """A mode or measure in words."""
        return self.labels.get(name) or name

    def mean(self, measure: str, mode: str) -> Estimate:
        """Mean score of a mode."""
        return self._estimate(self._table(measure, mode))

    def win_rate(self, measure: str, first: str, second: str) -> Estimate:
        """Share of pairs in [0,1] on which ``first`` scores higher than ``second``; a tie counts half."""
        return self._estimate(wins(self._table(measure, first), self._table(measure, second)))

    def difference(self, measure: str, first: str, second: str) -> Estimate:
        """Mean of score(first) - score(second) over pairs."""
        a, b = (torch.tensor(self._table(measure, mode), dtype=torch.float64) for mode in (first, second))
        return self._estimate((a - b).numpy())

    @cached_property
    def comparisons(self) -> dict[str, dict[str, dict[str, Any]]]:
        """``[measure]["first>second"]`` to rate, interval, difference, difference_interval, for every ordered pair."""
        return {
            measure: {f"{a}>{b}": self._comparison(measure, a, b) for a, b in permutations(self.modes, 2)}
            for measure in self.measures
        }

    def to_json(self) -> dict[str, Any]:
        """The evaluation as plain data: a key per mode with ``<measure>_mean`` and ``<measure>_interval``, then
        ``win_rate`` (:attr:`comparisons`), the pairs, and the scores that all of it is computed from."""
        return {
            **{mode: self._mode_summary(mode) for mode in self.modes},
            "win_rate": self.comparisons,
            "pairs": self.pairs,
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "confidence": self.confidence,
            "labels": dict(self.labels),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "scores": {measure: dict(tables) for measure, tables in self.scores.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Evaluation":
        """The evaluation behind :meth:`to_json`; every figure is computed again from the scores."""
        names = ("labels", "settings", "versions", "confidence")
        missing = [key for key in ("prompts", "seeds", "scores", *names) if key not in data]
        if missing:
            raise ValueError(f"Got an evaluation without {', '.join(missing)}; expected a report.json as written here.")
        rest = {name: data[name] for name in names}
        return cls(tuple(data["prompts"]), tuple(data["seeds"]), data["scores"], **rest)

    def _table(self, measure: str, mode: str) -> Sequence[Sequence[float]]:
        if measure not in self.scores:
            raise ValueError(f"Got the measure {measure!r}, expected one of {', '.join(self.measures)}.")
        if mode not in self.scores[measure]:
            raise ValueError(f"Got the mode {mode!r}, expected one of {', '.join(self.modes)}.")
        return self.scores[measure][mode]

    def _estimate(self, values: Any) -> Estimate:
        return estimate(values, confidence=self.confidence)

    def _comparison(self, measure: str, first: str, second: str) -> dict[str, Any]:
        rate, difference = self.win_rate(measure, first, second), self.difference(measure, first, second)
        return {
            "rate": rate.value,
            "interval": _listed(rate.interval),
            "difference": difference.value,
            "difference_interval": _listed(difference.interval),
        }

    def _mode_summary(self, mode: str) -> dict[str, Any]:
        summary: dict[str, Any] = {"label": self.label(mode)}
        for measure in self.measures:
            mean = self.mean(measure, mode)
            summary |= {f"{measure}_mean": mean.value, f"{measure}_interval": _listed(mean.interval)}
        return summary


def evaluate(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    modes: Mapping[str, Mode],
    measures: Mapping[str, Measure],
    *,
    guidance_scale: float = 7.5,
    steps: int = 30,
    solver: str = "euler",
    batch_size: int = 8,
    height: int | None = None,
    width: int | None = None,
    pictures: int = 0,
    measure_labels: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    progress: Callable[[int, int], Any] | None = None,
) -> Evaluation:
    """Sample every (prompt, seed) pair once per mode, from the same noise for every mode, and score each picture.

    batch_size: pairs sampled at once (the denoiser sees twice as many); height, width: pixels, None for the model's
    native size; pictures: how many pairs, evenly spaced through the set, to keep for a grid; measure_labels: the
    measures in words; confidence: of the intervals; progress: called with (pictures done, pictures in all).
    Errors: ValueError, before any sampling, for empty inputs, a mode with the wrong width or row count, a reserved
    name or an unknown solver; and for a measure that returns another shape or NaN, naming the pair.
    """
    plan = _Plan(
        tuple(prompts),
        tuple(seeds),
        modes,
        measures,
        Guidance(guidance_scale),
        steps,
        solver,
        batch_size,
        height,
        width,
    )
    plan.check(model)
    kept = plan.spread(pictures)
    result = model.run(lambda prepared: _run(prepared, plan, kept, progress))
    return Evaluation(
        plan.prompts,
        plan.seeds,
        result.tables(len(plan.seeds)),
        {**(measure_labels or {}), **{name: mode.label for name, mode in modes.items() if mode.label}},
        plan.settings(model, result.size),
        versions(),
        confidence,
        Pictures(tuple(divmod(i, len(plan.seeds)) for i in kept), result.pictures()),
    )


def versions() -> dict[str, str]:
    """Versions of Python and the packages that decide a picture; absent packages are left out."""
    found = {"python": platform.python_version()}
    for package in ("reneg", "torch", "diffusers", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class _Plan:
    """The pairs and how each is sampled; pair i is prompt ``i // len(seeds)`` with seed ``i % len(seeds)``."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    modes: Mapping[str, Mode]
    measures: Mapping[str, Measure]
    guidance: Guidance
    steps: int
    solver: str
    batch_size: int
    height: int | None
    width: int | None

    @property
    def pairs(self) -> int:
        return len(self.prompts) * len(self.seeds)

    def pair(self, index: int) -> tuple[str, int]:
        return self.prompts[index // len(self.seeds)], self.seeds[index % len(self.seeds)]

    @property
    def sampling(self) -> Sampling:
        size = Size(self.height, self.width)
        return Sampling(self.solver, self.steps, guidance=self.guidance, size=size)

    def settings(self, model: DiffusionModel, size: Sequence[int]) -> dict[str, Any]:
        """What to sample again with; ``size`` is the height and width in pixels that came out."""
        return {
            "model": model.name,
            "guidance_scale": self.guidance.scale,
            "steps": self.steps,
            "solver": self.solver,
            "height": size[0],
            "width": size[1],
            "batch_size": self.batch_size,
            "device": str(model.device),
        }

    def batches(self) -> Iterator[range]:
        for start in range(0, self.pairs, self.batch_size):
            yield range(start, min(start + self.batch_size, self.pairs))

    def spread(self, count: int) -> list[int]:
        """``count`` different pair indices: prompts evenly spaced, seeds in turn; pairs evenly once prompts run out."""
        count, seeds = min(max(count, 0), self.pairs), len(self.seeds)
        if count <= len(self.prompts):
            return [i * len(self.prompts) // count * seeds + i % seeds for i in range(count)]
        return [i * self.pairs // count for i in range(count)]

    def check(self, model: DiffusionModel) -> None:
        names = ("prompts", "seeds", "modes", "measures")
        empty = [name for name in names if not getattr(self, name)]
        if empty:
            raise ValueError(f"Got no {' and no '.join(empty)}, expected at least one of each.")
        if self.batch_size < 1:
            raise ValueError(f"Got batch size {self.batch_size}, expected at least 1.")
        both = set(self.modes) & set(self.measures)
        if both:
            raise ValueError(f"Got {', '.join(sorted(both))} as a mode and as a measure, expected different names.")
        solver_named(self.solver)
        for name, mode in self.modes.items():
            self._check_mode(model, name, mode.negative)

    def _check_mode(self, model: DiffusionModel, name: str, negative: Conditioning) -> None:
        if name in RESERVED or ">" in name:
            raise ValueError(
                f"Got a mode called {name!r}, expected a name without '>' that is none of {', '.join(RESERVED)}."
            )
        if len(negative) not in (1, self.pairs):
            raise ValueError(
                f"Got {len(negative)} negatives for the mode {name!r}, expected 1 or {self.pairs}, one per "
                f"pair of {len(self.prompts)} prompts and {len(self.seeds)} seeds."
            )
        if negative.tokens.shape[-1] != model.width:
            raise ValueError(
                f"Got a negative of width {negative.tokens.shape[-1]} for the mode {name!r}, expected "
                f"{model.width}, the width of {model.name}. Try an embedding made for this model."
            )


@dataclass
class _Result:
    """Scores in pair order and kept pictures, as they come in."""

    scores: dict[str, dict[str, list[float]]]
    images: dict[str, list[Tensor]]
    size: tuple[int, ...] = ()

    def tables(self, seeds: int) -> dict[str, dict[str, list[list[float]]]]:
        return {
            measure: {mode: [flat[i : i + seeds] for i in range(0, len(flat), seeds)] for mode, flat in modes.items()}
            for measure, modes in self.scores.items()
        }

    def pictures(self) -> dict[str, Tensor]:
        return {mode: torch.stack(images) for mode, images in self.images.items() if images}


@torch.no_grad()
def _run(
    model: DiffusionModel, plan: _Plan, kept: Sequence[int], progress: Callable[[int, int], Any] | None
) -> _Result:
    result = _Result({m: {mode: [] for mode in plan.modes} for m in plan.measures}, {mode: [] for mode in plan.modes})
    done, total = 0, plan.pairs * len(plan.modes)
    for rows in plan.batches():
        for mode, images in _draw(model, plan, rows):
            result.size = tuple(images.shape[-2:])
            for measure in plan.measures:
                result.scores[measure][mode] += _scored(plan, measure, mode, rows, images)
            result.images[mode] += [images[i - rows.start].float().cpu() for i in kept if i in rows]
            done += len(rows)
            if progress:
                progress(done, total)
    return result


def _draw(model: DiffusionModel, plan: _Plan, rows: range) -> Iterator[tuple[str, Tensor]]:
    prompts, seeds = zip(*map(plan.pair, rows), strict=True)
    positive, noise = model.encode(prompts), model.noise(seeds, plan.sampling.size)
    for name, mode in plan.modes.items():
        negative = mode.negative if len(mode.negative) == 1 else mode.negative[rows.start : rows.stop]
        negative = negative.to(model.device)
        latents = sample(model, positive, negative, noise, plan.sampling)
        yield name, model.decode(latents)


def _scored(plan: _Plan, measure: str, mode: str, rows: range, images: Tensor) -> list[float]:
    prompts = [plan.pair(i)[0] for i in rows]
    scores = plan.measures[measure](images, prompts)
    if not isinstance(scores, Tensor) or scores.shape != (len(rows),):
        got = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"Got {got} from the measure {measure!r}, expected a tensor [{len(rows)}], one per picture.")
    for index, value in zip(rows, scores.tolist(), strict=True):
        if not math.isfinite(value):
            prompt, seed = plan.pair(index)
            raise ValueError(
                f"Got {value} from the measure {measure!r} for the mode {mode!r}, prompt {prompt!r}, seed "
                f"{seed}; expected a finite number. Try fp32, and look at that picture."
            )
    return scores.tolist()


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
