"""One page that says what was done, what came out, and how sure that is: ``report.html`` with its data beside it."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import plots
from .embedding import NegativeEmbedding, atomic_write, describe_family
from .evaluate import Evaluation
from .statistics import Estimate, decimals

if TYPE_CHECKING:
    from PIL.Image import Image

FEW_PROMPTS = 20


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
    ``grid.png`` if the evaluation kept pictures, ``curve.png`` if there are metrics ``records``. Each file is written
    atomically; earlier ones are replaced. The page needs no network, no script and none of the other files.
    title and summary: what was done, in words (default: from the evaluation); config: the run's resolved settings;
    embedding: shown with its provenance; command: what reproduces the run.
    """
    directory = Path(directory)
    pictures = _pictures(evaluation, records)
    run = {"title": title, "summary": summary, "command": command, "config": dict(config or {})}
    if embedding:
        run["embedding"] = _embedding_facts(embedding)
    page = _page(evaluation, pictures, run)
    for name, data in pictures.items():
        atomic_write(directory / f"{name}.png", data)
    atomic_write(directory / "report.json", _one_key_per_line({**evaluation.to_json(), "run": run}).encode())
    atomic_write(directory / "report.html", page.encode())
    return directory / "report.html"


def headline(evaluation: Evaluation) -> str:
    """The result in words, a sentence per rival: the mode ``embedding`` (else the last) against every earlier mode, by
    the measure ``independent`` (else the last)."""
    judge, subject = _judge(evaluation), _subject(evaluation)
    mean = evaluation.mean(judge, subject)
    places = decimals(evaluation.mean(judge, mode) for mode in evaluation.modes)
    start = f"{_capital(evaluation.label(subject))} scores {mean.value:.{places}f} on {evaluation.label(judge)}"
    rivals = evaluation.modes[: evaluation.modes.index(subject)]
    if not rivals:
        return f"{start}{_bracket(mean, places)} over {_pairs(evaluation)}."
    first, *others = (_against(evaluation, judge, subject, rival) for rival in rivals)
    return " ".join([f"{start}: {first}", *(f"It scores {other}" for other in others)])


def grid_of(evaluation: Evaluation) -> "Image":
    """The kept pictures as a grid: a row per (prompt, seed) pair, a column per mode, the judging measure below each."""
    kept, judge = evaluation.pictures, _judge(evaluation)
    labels = [f"{evaluation.prompts[p]}\nseed {evaluation.seeds[s]}" for p, s in kept.pairs]
    rows = [[kept.images[mode][i] for mode in evaluation.modes] for i in range(len(kept.pairs))]
    scores = [[evaluation.scores[judge][mode][p][s] for mode in evaluation.modes] for p, s in kept.pairs]
    places = decimals(evaluation.mean(judge, mode) for mode in evaluation.modes)
    captions = [[f"{score:.{places}f}" for score in row] for row in scores]
    side = 160 if max(rows[0][0].shape) <= 160 else 256
    return plots.grid(rows, labels, [evaluation.label(mode) for mode in evaluation.modes], captions=captions, side=side)


def _judge(evaluation: Evaluation) -> str:
    return "independent" if "independent" in evaluation.measures else evaluation.measures[-1]


def _subject(evaluation: Evaluation) -> str:
    return "embedding" if "embedding" in evaluation.modes else evaluation.modes[-1]


def _against(evaluation: Evaluation, judge: str, subject: str, rival: str) -> str:
    difference = evaluation.difference(judge, subject, rival)
    rate = evaluation.win_rate(judge, subject, rival)
    places, label = decimals([difference]), evaluation.label(rival)
    size = f"{abs(difference.value):.{places}f} {'more' if difference.value > 0 else 'less'} than {label}"
    if difference.interval:
        kind = f"{100 * evaluation.confidence:g} % interval"
        low, high = (f"{end:+.{places}f}" for end in difference.interval)
        unsure = "" if difference.excludes(0) else ", so no difference that these pairs can show"
        size += f" ({kind} {low} to {high}{unsure})"
    return f"{size}, and wins {100 * rate.value:.0f} % of {_pairs(evaluation)}{_bracket(rate, 0, 100)}."


def _pairs(evaluation: Evaluation) -> str:
    return f"{evaluation.pairs} pairs" if evaluation.pairs > 1 else "one pair"


def cautions(evaluation: Evaluation) -> list[str]:
    """What a careful reader should know before the numbers."""
    judge, subject, first = _judge(evaluation), _subject(evaluation), evaluation.modes[0]
    found = []
    if evaluation.measures == ["reward"]:
        found.append(
            "Only the reward that was trained on is shown here. It can rise while pictures get worse (reward "
            "hacking): look at the pictures, and judge by a measure that was not trained on."
        )
    elif "reward" in evaluation.measures and judge != "reward" and subject != first:
        gained, lost = (evaluation.difference(measure, subject, first) for measure in ("reward", judge))
        if gained.excludes(0) and gained.value > 0 and lost.excludes(0) and lost.value < 0:
            found.append(
                f"The training reward rose while {evaluation.label(judge)} fell: a sign of reward hacking. "
                "Try fewer steps, a lower learning rate, or a mix of rewards."
            )
    if len(evaluation.prompts) == 1:
        found.append("With a single prompt the figures say nothing about other prompts.")
    elif len(evaluation.prompts) < FEW_PROMPTS:
        found.append(
            f"With {len(evaluation.prompts)} prompts the intervals are rough and rather too short; "
            f"{FEW_PROMPTS} or more make them dependable."
        )
    return found


def _pictures(evaluation: Evaluation, records: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    found = {"comparison": plots.comparison(evaluation)}
    if evaluation.pictures.pairs:
        found["grid"] = grid_of(evaluation)
    if records:
        reward, watch = (evaluation.label(name) for name in ("reward", "independent"))
        found["curve"] = plots.learning_curve(records, reward=reward, watch=watch)
    return {name: _png(image) for name, image in found.items()}


def _png(image: "Image") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _embedding_facts(embedding: NegativeEmbedding) -> dict[str, Any]:
    facts = {"tokens": embedding.length, "width": embedding.width, "text encoder": describe_family(embedding.family)}
    return facts | {name: value for name, value in asdict(embedding.provenance).items() if value not in ("", {}, None)}


def _one_key_per_line(data: Mapping[str, Any]) -> str:
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False, default=str)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _page(evaluation: Evaluation, pictures: Mapping[str, bytes], run: Mapping[str, Any]) -> str:
    title = run["title"] or f"Negatives compared on {evaluation.settings.get('model', 'a diffusion model')}"
    warnings = "".join(f'<p class="caution">{escape(text)}</p>' for text in cautions(evaluation))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(run['summary'])}</p>" if run["summary"] else "",
        f'<p class="result">{escape(headline(evaluation))}</p>{warnings}',
        _section("Result", _means_table(evaluation), _reading(evaluation)),
        _shown("Pictures", pictures.get("grid"), _grid_note(evaluation)),
        _shown("Comparison", pictures.get("comparison"), ""),
        _shown("Learning", pictures.get("curve"), CURVE_NOTE),
        _wins(evaluation),
        _section("How to reproduce it", _command(run["command"])) if run["command"] else "",
        _facts("The embedding", run.get("embedding")),
        _facts("Training settings", run["config"]),
        _facts("Sampling", {**evaluation.settings, "seeds": _listing(evaluation.seeds)}),
        _facts("Versions", evaluation.versions),
        _section("Prompts", _prompt_list(evaluation.prompts)),
    ]
    return PAGE.format(title=escape(title), style=STYLE, body="\n".join(part for part in parts if part))


def _means_table(evaluation: Evaluation) -> str:
    first = evaluation.modes[0]
    head = ["negative"]
    for measure in evaluation.measures:
        head += [evaluation.label(measure), f"change from {first}"]
    rows = [[_mode_cell(evaluation, mode)] for mode in evaluation.modes]
    for measure in evaluation.measures:
        means = [evaluation.mean(measure, mode) for mode in evaluation.modes]
        changes = [evaluation.difference(measure, mode, first) for mode in evaluation.modes]
        places, finer = decimals(means), decimals(changes)
        for row, mean, change, mode in zip(rows, means, changes, evaluation.modes, strict=True):
            row += [_cell(mean, places), "–" if mode == first else _cell(change, finer, sign="+")]
    return _table(head, rows)


def _wins(evaluation: Evaluation) -> str:
    if len(evaluation.modes) < 2:
        return ""
    tables = "".join(_wins_table(evaluation, measure) for measure in evaluation.measures)
    return _section("Who wins how often", f'<div class="beside">{tables}</div>')


def _wins_table(evaluation: Evaluation, measure: str) -> str:
    rows = [
        [
            f"<b>{escape(first)}</b>",
            *("" if first == second else _win_cell(evaluation, measure, first, second) for second in evaluation.modes),
        ]
        for first in evaluation.modes
    ]
    caption = f"{evaluation.label(measure)}: % of pairs on which the row beats the column; a tie counts half"
    return _table(["", *evaluation.modes], rows, caption)


def _win_cell(evaluation: Evaluation, measure: str, first: str, second: str) -> str:
    rate = evaluation.win_rate(measure, first, second)
    return _cell(rate, 0, 100, strong=rate.excludes(0.5))


def _mode_cell(evaluation: Evaluation, mode: str) -> str:
    label = evaluation.labels.get(mode)
    return f"<b>{escape(mode)}</b>" + (f"<br><small>{escape(label)}</small>" if label else "")


def _cell(estimate: Estimate, places: int, scale: float = 1, *, sign: str = "", strong: bool = False) -> str:
    value = f"{scale * estimate.value:{sign}.{places}f}"
    value = f"<b>{value}</b>" if strong else value
    if estimate.interval is None:
        return value
    low, high = (f"{scale * end:{sign}.{places}f}" for end in estimate.interval)
    return f"{value}<br><small>{low} to {high}</small>"


def _bracket(estimate: Estimate, places: int, scale: float = 1) -> str:
    if estimate.interval is None:
        return ""
    low, high = (f"{scale * end:.{places}f}" for end in estimate.interval)
    return f" ({low} to {high})"


def _reading(evaluation: Evaluation) -> str:
    over = "prompts (all pictures of a prompt are resampled together)" if len(evaluation.prompts) > 1 else "seeds"
    return (
        f"<p class='note'>(prompt, seed) pairs: {len(evaluation.prompts)} × {len(evaluation.seeds)} = "
        f"{evaluation.pairs}, each sampled once per negative from the same noise. Higher is better. Small figures: "
        f"{100 * evaluation.confidence:g} % bootstrap intervals over {over}; changes are paired, so their intervals "
        "are narrower than the means suggest.</p>"
    )


def _grid_note(evaluation: Evaluation) -> str:
    label = escape(evaluation.label(_judge(evaluation)))
    return (
        f"Same prompt and seed across a row; the number is {label}. "
        "The prompts are evenly spaced through the set, not chosen by their look."
    )


CURVE_NOTE = "Training reward of each step, and the reward on validation prompts, by which the embedding was chosen."


def _shown(title: str, picture: bytes | None, note: str) -> str:
    if picture is None:
        return ""
    data = base64.b64encode(picture).decode()
    image = f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>'
    return _section(title, f"<p class='note'>{note}</p>" if note else "", image)


def _section(title: str, *body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(body)}</section>"


def _facts(title: str, facts: Mapping[str, Any] | None) -> str:
    if not facts:
        return ""
    rows = [[f"<b>{escape(str(name).replace('_', ' '))}</b>", escape(_plain(value))] for name, value in facts.items()]
    return _section(title, _table([], rows, kind="facts"))


def _plain(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", kind: str = "figures") -> str:
    """Cells of ``rows`` are HTML, head and caption are text."""
    top = f"<thead><tr>{''.join(f'<th>{escape(text)}</th>' for text in head)}</tr></thead>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    legend = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table class="{kind}">{legend}{top}<tbody>{body}</tbody></table></div>'


def _command(command: str) -> str:
    return f"<pre>{escape(command)}</pre>"


def _prompt_list(prompts: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(prompt)}</li>" for prompt in prompts)
    return f"<details><summary>All {len(prompts)} prompts</summary><ol>{items}</ol></details>"


def _listing(values: Sequence[Any], most: int = 12) -> str:
    text = ", ".join(map(str, values[:most]))
    return text if len(values) <= most else f"{text}, … ({len(values)} in all)"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

STYLE = """
:root { --ink: #1f2328; --faint: #59636e; --rule: #d1d9e0; --page: #ffffff; --card: #f6f8fa; --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --faint: #9198a1; --rule: #3d444d; --page: #0d1117; --card: #151b23; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }
p { margin: .5rem 0; }
.result { font-size: 1.1rem; padding: .8rem 1rem; background: var(--card); border-left: 4px solid var(--accent); }
.caution { padding: .6rem 1rem; background: var(--card); border-left: 4px solid #d55e00; }
.note, small, caption { color: var(--faint); font-size: .875rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; max-width: 24rem; }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-size: .875rem; color: var(--faint); font-weight: 600; vertical-align: bottom; }
.figures td { white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.facts td:first-child { min-width: 10rem; overflow-wrap: normal; }
figure { margin: .75rem 0; padding: .75rem; background: #ffffff; border: 1px solid var(--rule);
  border-radius: 6px; overflow-x: auto; }
.beside { display: flex; flex-wrap: wrap; column-gap: 2rem; }
.beside table { min-width: 18rem; }
.beside td, .beside th { padding-right: .6rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
pre { padding: .8rem 1rem; background: var(--card); overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
ol { columns: 20rem; font-size: .875rem; }
@media screen and (max-width: 40rem) { img { max-width: none; width: 36rem; } }
@media print {
  :root { --ink: #000; --faint: #444; --rule: #bbb; --page: #fff; --card: #f4f4f4; }
  main { max-width: none; padding: 0; }
  section, figure, tr { break-inside: avoid; }
}
"""
