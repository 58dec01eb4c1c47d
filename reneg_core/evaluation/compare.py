"""Compare negatives (none, text, embedding, adapted, ...) on the same prompts and the same noise."""

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ..clips import FRAMES, by_picture
from ..model import Conditioning, DiffusionModel
from ..sampling import Sampling, sample
from ..training.memory import batches
from ..training.workers import Workers
from .pairs import Pairs
from .results import RESERVED, Evaluation, Pictures, baseline_of, judge_of, subject_of

Measure = Callable[[Tensor, list[str]], Tensor]
"""Images ``[B,3,H,W]`` in [0,1] and B prompts to ``[B]`` numbers, higher is better: a reward's ``score``, for one. A
video is judged by the mean over ``FRAMES`` of its frames, evenly spaced, which are also what is kept of it."""

PartsMeasure = Callable[[Tensor, list[str]], Mapping[str, Tensor]]
"""The same to the parts that a measure is made of, each ``[B]``, higher is better."""


@dataclass(frozen=True)
class Mode:
    """One negative to compare.

    negative: 1 row, or one per pair in the order of the :class:`Pairs`; label: its name in words for reports; sampling:
    how its pictures are made (a negative at the guidance scale that serves it best), None = as the comparison says;
    model: what makes them and encodes the prompts, set up already, None = the comparison's model (a tuned one of it).
    """

    negative: Conditioning
    label: str = ""
    sampling: Sampling | None = None
    model: DiffusionModel | None = None


@dataclass(frozen=True)
class Keep:
    """Which pictures an evaluation keeps.

    pictures: so many pairs, evenly spaced through the set, in every mode; losses: so many of the pairs on which the
    subject loses most against the baseline by the deciding measure, in these two modes; baseline: the mode that losses
    are counted against ("": ``none``, else the first).
    """

    pictures: int = 0
    losses: int = 0
    baseline: str = ""


def evaluate(
    model: DiffusionModel,
    pairs: Pairs,
    modes: Mapping[str, Mode],
    measures: Mapping[str, Measure],
    sampling: Sampling,
    *,
    parts: Mapping[str, PartsMeasure] | None = None,
    keep: Keep | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], Any] | None = None,
    workers: Workers | None = None,
) -> Evaluation:
    """Sample every pair once per mode, from the same noise for every mode, and score each picture.

    parts: for some of the measures, the parts they are made of; batch_size: pairs sampled at once (the denoiser sees
    twice as many); progress: called with (pictures done, pictures in all); workers: processes that share the batches:
    the result is the same, bit for bit, in each.
    Errors: ValueError, before any sampling, for empty inputs, a mode with the wrong width, row count or picture size, a
    reserved name or an unknown baseline; and for a measure that returns another shape or NaN, naming the pair.
    """
    keep = keep or Keep()
    plan = _Plan(pairs, modes, measures, parts or {}, sampling, batch_size)
    plan.check(model)
    kept = pairs.spread(keep.pictures)
    losses, workers = _Losses.of(plan, keep), workers or Workers()
    result = model.run(lambda prepared: _run(prepared, plan, kept, losses, progress, workers))
    return Evaluation(
        pairs,
        {measure: plan.tables(flat) for measure, flat in result.scores.items()},
        {measure: {part: plan.tables(f) for part, f in found.items()} for measure, found in result.parts.items()},
        {name: plan.sampling_of(mode) for name, mode in modes.items()},
        {name: mode.label for name, mode in modes.items() if mode.label},
        plan.settings(model, result.size),
        versions(),
        baseline=keep.baseline,
        pictures=Pictures(tuple(map(pairs.place, kept)), _stacked(result.images)),
        losses=losses.pictures(pairs),
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
    """The pairs and how each is sampled and judged."""

    pairs: Pairs
    modes: Mapping[str, Mode]
    measures: Mapping[str, Measure]
    parts: Mapping[str, PartsMeasure]
    sampling: Sampling
    batch_size: int

    def sampling_of(self, mode: Mode) -> Sampling:
        return mode.sampling or self.sampling

    def settings(self, model: DiffusionModel, size: Sequence[int]) -> dict[str, Any]:
        """What to sample again with; ``size`` is the height and width in pixels that came out."""
        return {
            "model": model.name,
            **self.sampling.to_mapping(),
            "height": size[0],
            "width": size[1],
            "batch_size": self.batch_size,
            "device": str(model.device),
        }

    def batches(self) -> list[range]:
        return batches(len(self.pairs), self.batch_size)

    def tables(self, flat: Mapping[str, Sequence[float]]) -> dict[str, list[list[float]]]:
        """Numbers in pair order, by mode, as a row per prompt."""
        each = self.pairs.each
        return {mode: [list(row[i : i + each]) for i in range(0, len(row), each)] for mode, row in flat.items()}

    def check(self, model: DiffusionModel) -> None:
        empty = [name for name in ("modes", "measures") if not getattr(self, name)]
        if empty:
            raise ValueError(f"Got no {' and no '.join(empty)}, expected at least one of each.")
        if self.batch_size < 1:
            raise ValueError(f"Got batch size {self.batch_size}, expected at least 1.")
        both = set(self.modes) & set(self.measures)
        if both:
            raise ValueError(f"Got {', '.join(sorted(both))} as a mode and as a measure, expected different names.")
        unknown = set(self.parts) - set(self.measures)
        if unknown:
            raise ValueError(f"Got parts of {sorted(unknown)[0]!r}, expected one of {', '.join(self.measures)}.")
        for name, mode in self.modes.items():
            self._check_mode(model, name, mode)

    def _check_mode(self, model: DiffusionModel, name: str, mode: Mode) -> None:
        if name in RESERVED or ">" in name:
            raise ValueError(
                f"Got a mode called {name!r}, expected a name without '>' that is none of {', '.join(RESERVED)}."
            )
        rows, width = len(mode.negative), mode.negative.tokens.shape[-1]
        if rows not in (1, len(self.pairs)):
            raise ValueError(
                f"Got {rows} negatives for the mode {name!r}, expected 1 or {len(self.pairs)}, one per pair "
                f"({self.pairs.in_words()})."
            )
        if width != model.width:
            raise ValueError(
                f"Got a negative of width {width} for the mode {name!r}, expected {model.width}, the width of "
                f"{model.name}. Try an embedding made for this model."
            )
        if self.sampling_of(mode).size != self.sampling.size:
            raise ValueError(
                f"Got another picture size for the mode {name!r} than for the comparison, expected the same: all modes "
                "start from the same noise."
            )


@dataclass
class _Losses:
    """The pairs on which ``subject`` loses most against ``baseline`` by ``measure``, as they come in."""

    subject: str
    baseline: str
    measure: str
    most: int
    found: list[tuple[float, int, dict[str, Tensor]]] = field(default_factory=list)

    @classmethod
    def of(cls, plan: _Plan, keep: Keep) -> "_Losses":
        modes = list(plan.modes)
        return cls(subject_of(modes), baseline_of(modes, keep.baseline), judge_of(list(plan.measures)), keep.losses)

    def watches(self, mode: str) -> bool:
        return self.most > 0 and self.subject != self.baseline and mode in (self.subject, self.baseline)

    def offer(self, rows: range, scores: Mapping[str, Sequence[float]], images: Mapping[str, Tensor]) -> None:
        """A batch's pairs with their scores and images, both by mode."""
        if not images:
            return
        for i, index in enumerate(rows):
            difference = scores[self.subject][i] - scores[self.baseline][i]
            if difference < 0:
                self.found.append((difference, index, {mode: batch[i].float().cpu() for mode, batch in images.items()}))
        self.found = sorted(self.found, key=_loss)[: self.most]

    def settle(self, workers: Workers) -> None:
        """Keep those that are the largest of all processes; only their pictures travel."""
        offered = [loss for own in workers.gather([_loss(entry) for entry in self.found]) for loss in own]
        largest = set(sorted(offered)[: self.most])
        chosen = workers.gather([entry for entry in self.found if _loss(entry) in largest])
        self.found = sorted((entry for own in chosen for entry in own), key=_loss)

    def pictures(self, pairs: Pairs) -> Pictures:
        """What is left, the largest loss first, the baseline's pictures before the subject's."""
        images = {mode: [entry[2][mode] for entry in self.found] for mode in (self.baseline, self.subject)}
        return Pictures(tuple(pairs.place(index) for _, index, _ in self.found), _stacked(images))


def _loss(entry: tuple[float, int, Any]) -> tuple[float, int]:
    return entry[:2]


@dataclass
class _Result:
    """Numbers of consecutive pairs by measure, part and mode, and their kept pictures by mode."""

    scores: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, ...] = ()

    @classmethod
    def joined(cls, results: Sequence["_Result"]) -> "_Result":
        """Those of all pairs, in the order given."""
        whole = cls(size=results[-1].size)
        for one in results:
            _extend(whole.scores, one.scores)
            _extend(whole.parts, one.parts)
            _extend(whole.images, one.images)
        return whole


def _extend(whole: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Append the lists of ``more`` to those under the same names."""
    for name, values in more.items():
        if isinstance(values, Mapping):
            _extend(whole.setdefault(name, {}), values)
        else:
            whole.setdefault(name, []).extend(values)


@torch.no_grad()
def _run(
    model: DiffusionModel,
    plan: _Plan,
    kept: Sequence[int],
    losses: _Losses,
    progress: Callable[[int, int], Any] | None,
    workers: Workers,
) -> _Result:
    batches, total, done = plan.batches(), len(plan.pairs) * len(plan.modes), 0
    own = len(plan.modes) * sum(len(batches[place]) for place in workers.share(range(len(batches))))

    def work(rows: range) -> _Result:
        nonlocal done
        result, watched = _Result(), {}
        for mode, images in _draw(model, plan, rows):
            result.size = tuple(images.shape[-2:])
            _judge(plan, result, mode, rows, images)
            result.images[mode] = [images[i - rows.start].float().cpu() for i in kept if i in rows]
            if losses.watches(mode):
                watched[mode] = images
            done += len(rows)
            if progress:
                progress(done * total // own, total)
        losses.offer(rows, result.scores[losses.measure], watched)
        return result

    found: dict[int, _Result] = {}
    for results in workers.rounds(batches, work):
        found |= results
    losses.settle(workers)
    return _Result.joined([found[place] for place in sorted(found)])


def _draw(model: DiffusionModel, plan: _Plan, rows: range) -> Iterator[tuple[str, Tensor]]:
    prompts, seeds = zip(*map(plan.pairs.pair, rows), strict=True)
    positive, noise = model.encode(prompts), model.noise(seeds, plan.sampling.size)
    for name, mode in plan.modes.items():
        negative = mode.negative if len(mode.negative) == 1 else mode.negative[rows.start : rows.stop]
        own, said = (mode.model, mode.model.encode(prompts)) if mode.model else (model, positive)
        latents = sample(own, said, negative.to(model.device), noise, plan.sampling_of(mode))
        yield name, own.decode(latents, FRAMES)


def _judge(plan: _Plan, result: _Result, mode: str, rows: range, images: Tensor) -> None:
    prompts = [plan.pairs.pair(index)[0] for index in rows]
    for measure, score in plan.measures.items():
        values = by_picture(score, images, prompts)
        _extend(result.scores, {measure: {mode: _checked(plan, f"measure {measure!r}", mode, rows, values)}})
    for measure, split in plan.parts.items():
        for part, values in by_picture(split, images, prompts).items():
            checked = _checked(plan, f"part {part!r} of {measure!r}", mode, rows, values)
            _extend(result.parts, {measure: {part: {mode: checked}}})


def _checked(plan: _Plan, source: str, mode: str, rows: range, scores: Any) -> list[float]:
    if not isinstance(scores, Tensor) or scores.shape != (len(rows),):
        got = f"shape {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"Got {got} from the {source}, expected a tensor [{len(rows)}], one per picture.")
    values = scores.tolist()
    for index, value in zip(rows, values, strict=True):
        if not math.isfinite(value):
            prompt, seed = plan.pairs.pair(index)
            raise ValueError(
                f"Got {value} from the {source} for the mode {mode!r}, prompt {prompt!r}, seed {seed}; expected a "
                "finite number. Try fp32, and look at that picture."
            )
    return values


def _stacked(images: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    return {mode: torch.stack(list(pictures)) for mode, pictures in images.items() if pictures}
