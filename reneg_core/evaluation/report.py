"""One page that says what was done, what came out, and how sure that is: ``report.html`` with its data beside it.

The page is ``report.html.j2``; here is what it shows. Everything in it is escaped by the template engine, and it needs
no network, no script and no other file.
"""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embedding import NegativeEmbedding, describe_family
from ..files import check_folder, write_bytes, write_text
from . import plots
from .pictures import grid
from .results import Evaluation, Pictures
from .statistics import Estimate, decimals
from .words import about, cautions, headline, losing

if TYPE_CHECKING:
    from jinja2 import Template
    from PIL.Image import Image

WORST = 6


def prepare_folder(directory: str | Path) -> Path:
    """Find out, before long work, whether a report can be written to ``directory``.

    Errors: OSError for a folder that cannot be written or has no room; ImportError for a missing package.
    """
    _template()
    _require_plots()
    return check_folder(directory)


def write_report(
    directory: str | Path,
    evaluation: Evaluation,
    *,
    title: str = "",
    summary: str = "",
    records: Sequence[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    embedding: NegativeEmbedding | None = None,
    command: str = "",
) -> Path:
    """Write the report of an evaluation into ``directory`` and return the path of its ``report.html``.

    Beside it: ``report.json`` (:meth:`Evaluation.to_json` and, under ``run``, what is given here), ``comparison.png``,
    ``grid.png`` and ``losses.png`` if the evaluation kept such pictures, ``parts.png`` if the deciding measure has
    parts, ``curve.png`` if there are metrics ``records``. Each file is written atomically; earlier ones are replaced.
    title and summary: what was done, in words (default: from the evaluation); config: the run's resolved settings;
    embedding: shown with its provenance; command: what reproduces the run.
    """
    directory = Path(directory)
    pictures = {name: _png(image) for name, image in _pictures(evaluation, records).items()}
    run = {"title": title, "summary": summary, "command": command, "config": dict(config or {})}
    if embedding:
        run["embedding"] = _embedding_facts(embedding)
    page = _template().render(_context(evaluation, pictures, run))
    for name, data in pictures.items():
        write_bytes(directory / f"{name}.png", data)
    write_text(directory / "report.json", _one_key_per_line({**evaluation.to_json(), "run": run}))
    return write_text(directory / "report.html", page)


def grid_of(evaluation: Evaluation) -> "Image":
    """The kept pictures as a grid: a row per pair, a column per mode, the deciding measure below each."""
    kept, modes = evaluation.pictures, evaluation.modes
    labels = [_pair_label(evaluation, place) for place in kept.pairs]
    rows = [[kept.images[mode][i] for mode in modes] for i in range(len(kept.pairs))]
    captions = [_captions(evaluation, modes, place) for place in kept.pairs]
    return grid(rows, labels, [evaluation.label(mode) for mode in modes], captions=captions, side=_side(kept))


def losses_of(evaluation: Evaluation) -> "Image":
    """The pairs that the subject loses most on: a column per pair, the baseline's picture above the subject's."""
    kept, modes = evaluation.losses, list(evaluation.losses.images)
    rows = [list(kept.images[mode]) for mode in modes]
    captions = [[_captions(evaluation, [mode], place)[0] for place in kept.pairs] for mode in modes]
    columns = [evaluation.pairs.prompts[prompt] for prompt, _ in kept.pairs]
    return grid(rows, [evaluation.label(mode) for mode in modes], columns, captions=captions, side=_side(kept))


def _pair_label(evaluation: Evaluation, place: tuple[int, int]) -> str:
    prompt, column = place
    return f"{evaluation.pairs.prompts[prompt]}\nseed {evaluation.pairs.seeds[prompt][column]}"


def _captions(evaluation: Evaluation, modes: Iterable[str], place: tuple[int, int]) -> list[str]:
    prompt, column = place
    places = decimals(evaluation.mean(evaluation.judge, mode) for mode in evaluation.modes)
    tables = (evaluation.table(evaluation.judge, mode) for mode in modes)
    return [f"{table[prompt][column]:.{places}f}" for table in tables]


def _side(kept: Pictures) -> int:
    images = next(iter(kept.images.values()))
    return 320 if images.ndim == 5 else 160 if max(images.shape[-2:]) <= 160 else 256


def _pictures(evaluation: Evaluation, records: Sequence[Mapping[str, Any]]) -> dict[str, "Image"]:
    found = {"comparison": plots.comparison(evaluation)}
    if evaluation.pictures.pairs:
        found["grid"] = grid_of(evaluation)
    if evaluation.losses.pairs:
        found["losses"] = losses_of(evaluation)
    if evaluation.parts.get(evaluation.judge):
        found["parts"] = plots.parts(evaluation, evaluation.judge)
    if records:
        reward, watch = (evaluation.label(name) for name in ("reward", "independent"))
        found["curve"] = plots.learning_curve(records, reward=reward, watch=watch)
    return found


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _embedding_facts(embedding: NegativeEmbedding) -> dict[str, Any]:
    facts = {"tokens": embedding.length, "width": embedding.width, "text encoder": describe_family(embedding.family)}
    return facts | {
        name: value for name, value in asdict(embedding.provenance).items() if value or (name, value) == ("seed", 0)
    }


def _one_key_per_line(data: Mapping[str, Any]) -> str:
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, default=str)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _require_plots() -> None:
    """Raise ImportError if what draws curves and grids is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The package matplotlib is missing; it draws the curves and the labels of the grids. Try: pip install "
            "matplotlib."
        ) from error


def _template() -> "Template":
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("The package jinja2 is missing; it writes the report. Try: pip install jinja2.") from error
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2")


@dataclass(frozen=True)
class Cell:
    """A figure of a table: its value and, below it, its interval ("" for none)."""

    value: str = ""
    interval: str = ""
    strong: bool = False


def _cell(estimate: Estimate, places: int, scale: float = 1, *, sign: str = "", strong: bool = False) -> Cell:
    if estimate.interval is None:
        return Cell(f"{scale * estimate.value:{sign}.{places}f}", strong=strong)
    low, high = (f"{scale * end:{sign}.{places}f}" for end in estimate.interval)
    return Cell(f"{scale * estimate.value:{sign}.{places}f}", f"{low} to {high}", strong)


def _context(evaluation: Evaluation, pictures: Mapping[str, bytes], run: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows, as text and :class:`Cell`."""
    return {
        "title": run["title"] or f"Negatives compared on {evaluation.settings.get('model', 'a diffusion model')}",
        "summary": run["summary"],
        "headline": headline(evaluation),
        "cautions": cautions(evaluation),
        "pairs": evaluation.pairs.in_words(),
        "about": about(evaluation.pairs),
        "sampling": _common_sampling(evaluation),
        "confidence": f"{100 * evaluation.confidence:g}",
        "means": _means(evaluation),
        "judge": evaluation.label(evaluation.judge),
        "pictures": {name: base64.b64encode(data).decode() for name, data in pictures.items()},
        "losing": _losing(evaluation),
        "parts": [_parts(evaluation, measure) for measure in evaluation.parts],
        "wins": [_wins(evaluation, measure) for measure in evaluation.measures] if len(evaluation.modes) > 1 else [],
        "command": run["command"],
        "facts": _facts(evaluation, run),
        "prompts": evaluation.pairs.prompts,
    }


def _common_sampling(evaluation: Evaluation) -> str:
    """How all modes were sampled, in words; empty where they differ or nobody knows."""
    words = {sampling.describe() for sampling in evaluation.samplings.values()}
    return words.pop() if len(words) == 1 else ""


def _means(evaluation: Evaluation) -> dict[str, Any]:
    """Every measure's mean with its change from the first mode; a row per mode, with its sampling where they differ."""
    modes, first = evaluation.modes, evaluation.modes[0]
    head = [text for m in evaluation.measures for text in (evaluation.label(m), f"change from {first}")]
    rows: dict[str, list[Cell]] = {mode: [] for mode in modes}
    for measure in evaluation.measures:
        means = [evaluation.mean(measure, mode) for mode in modes]
        changes = [evaluation.difference(measure, mode, first) for mode in modes]
        places, finer = decimals(means), decimals(changes)
        for mode, mean, change in zip(modes, means, changes, strict=True):
            rows[mode] += [_cell(mean, places), Cell("–") if mode == first else _cell(change, finer, sign="+")]
    differ = {} if _common_sampling(evaluation) else evaluation.samplings
    words = {mode: sampling.describe() for mode, sampling in differ.items()}
    return {"head": head, "rows": [_row(evaluation, m, cells, words.get(m, "")) for m, cells in rows.items()]}


def _row(evaluation: Evaluation, mode: str, cells: Sequence[Cell], sampling: str = "") -> dict[str, Any]:
    """A table's row for a mode."""
    return {"name": mode, "label": evaluation.labels.get(mode, ""), "sampling": sampling, "cells": cells}


def _losing(evaluation: Evaluation) -> dict[str, Any] | None:
    """Where the subject loses against the baseline: in which half, and on which pairs most."""
    judge, subject, rival = evaluation.judge, evaluation.subject, evaluation.rival
    if subject == rival:
        return None
    ours, theirs = (evaluation.table(judge, mode) for mode in (subject, rival))
    lost = sum(a < b for pair in zip(ours, theirs, strict=True) for a, b in zip(*pair, strict=True))
    return {
        "subject": evaluation.label(subject),
        "rival": evaluation.label(rival),
        "lost": lost,
        "of": len(evaluation.pairs),
        "sentence": losing(evaluation),
        "worst": _worst(evaluation),
        "halves": _halves(evaluation),
    }


def _worst(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The pairs with the largest loss: prompt, noise seed, the baseline's score, the subject's, and the loss."""
    judge, modes = evaluation.judge, (evaluation.rival, evaluation.subject)
    found = []
    for prompt, column in evaluation.worst(judge, evaluation.subject, evaluation.rival, WORST):
        label, seed = evaluation.pairs.prompts[prompt], evaluation.pairs.seeds[prompt][column]
        theirs, ours = (evaluation.table(judge, mode)[prompt][column] for mode in modes)
        shown = _captions(evaluation, modes, (prompt, column))
        places = decimals([evaluation.difference(judge, evaluation.subject, evaluation.rival)])
        found.append({"prompt": label, "seed": seed, "scores": [*shown, f"{ours - theirs:+.{places}f}"]})
    return found


def _halves(evaluation: Evaluation) -> dict[str, Any]:
    """The subject's difference from every other mode in the halves of the pairs sorted by that mode's score."""
    judge, subject = evaluation.judge, evaluation.subject
    others = [mode for mode in evaluation.modes if mode != subject]
    found = {mode: evaluation.halves(judge, subject, mode) for mode in others}
    estimates = {mode: (half.lower, half.upper) for mode, half in found.items() if half}
    places = decimals(e for both in estimates.values() for e in both)
    rows = [
        _row(evaluation, mode, [_cell(e, places, sign="+", strong=e.excludes(0)) for e in both])
        for mode, both in estimates.items()
    ]
    return {"head": ["where it scores lower", "where it scores higher"], "rows": rows}


def _parts(evaluation: Evaluation, measure: str) -> dict[str, Any]:
    """A table of a measure's parts, a row per mode."""
    names = list(evaluation.parts[measure])
    means = {mode: [evaluation.part(measure, name, mode) for name in names] for mode in evaluation.modes}
    places = [decimals(column) for column in zip(*means.values(), strict=True)]
    rows = [
        _row(evaluation, mode, [_cell(e, p) for e, p in zip(row, places, strict=True)]) for mode, row in means.items()
    ]
    return {"caption": f"parts of {evaluation.label(measure)}", "head": names, "rows": rows}


def _wins(evaluation: Evaluation, measure: str) -> dict[str, Any]:
    """How often each mode beats each other."""

    def cell(first: str, second: str) -> Cell:
        if first == second:
            return Cell()
        rate = evaluation.win_rate(measure, first, second)
        return _cell(rate, 0, 100, strong=rate.excludes(0.5))

    modes = evaluation.modes
    rows = [{**_row(evaluation, mode, [cell(mode, other) for other in modes]), "label": ""} for mode in modes]
    caption = f"{evaluation.label(measure)}: % of pairs on which the row beats the column; a tie counts half"
    return {"caption": caption, "head": modes, "rows": rows}


def _facts(evaluation: Evaluation, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of names and values at the end of the page; empty ones are left out."""
    own = {f"sampling of {mode}": sampling.describe() for mode, sampling in evaluation.samplings.items()}
    tables = {
        "The embedding": run.get("embedding"),
        "Training settings": run["config"],
        "Sampling": {
            **({} if _common_sampling(evaluation) else own),
            **evaluation.settings,
            "seeds": _seeds(evaluation),
        },
        "Versions": evaluation.versions,
    }
    return [
        {"title": title, "rows": [(str(name).replace("_", " "), _plain(value)) for name, value in facts.items()]}
        for title, facts in tables.items()
        if facts
    ]


def _seeds(evaluation: Evaluation) -> str:
    if evaluation.pairs.crossed:
        return _listing(evaluation.pairs.seeds[0]) + " for every prompt"
    return f"{_listing(evaluation.pairs.seeds[0], 3)} for the first prompt; all of them in report.json"


def _listing(values: Sequence[Any], most: int = 12) -> str:
    text = ", ".join(map(str, values[:most]))
    return text if len(values) <= most else f"{text}, … ({len(values)} in all)"


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
