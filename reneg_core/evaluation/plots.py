"""Charts of results: the learning curve, the comparison of modes, and the parts of a measure.

Everything comes back as a PIL image; nothing here touches matplotlib's global state or needs a display. Colours are
the colour-blind safe set of Okabe & Ito (2008).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .pictures import FAINT, INK, RULE, wrap
from .results import Evaluation
from .statistics import Estimate, decimals

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = ("#7f7f7f", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")


def learning_curve(
    records: Sequence[Mapping[str, Any]], *, reward: str = "training reward", watch: str = "watched reward"
) -> "Image":
    """The course of a training from its metrics records (the trainer's JSON lines; the later of two equal steps
    counts, so that a resumed run is drawn once).

    Top: training reward per step, faint and smoothed, with the validation reward and its best step; middle, if there
    is any: the watched reward on its own scale; bottom: the learning rate. reward, watch: their names in words.
    Errors: ValueError if there is neither a step nor a validation record.
    """
    steps, checks = _series(records, "step"), _series(records, "validation")
    if not steps and not checks:
        raise ValueError("Got no step and no validation records, expected the metrics of a training.")
    watched = [record for record in checks if record.get("watch") is not None]
    heights = [3.4, *([1.5] if watched else []), *([0.9] if steps else [])]
    figure = _figure(9, sum(heights) + 0.8)
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    _draw_rewards(axes[0], steps, checks, reward)
    if watched:
        _draw_watched(axes[1], watched, watch)
    if steps:
        _draw_rate(axes[-1], steps)
    axes[-1].set_xlabel("step", fontsize=10, color=INK)
    figure.align_ylabels()
    return _rendered(figure)


def _series(records: Sequence[Mapping[str, Any]], event: str) -> list[Mapping[str, Any]]:
    latest = {record["step"]: record for record in records if record.get("event") == event}
    return [latest[step] for step in sorted(latest)]


def _points(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    present = [record for record in records if record.get(key) is not None]
    return [record["step"] for record in present], [float(record[key]) for record in present]


def smooth(values: Sequence[float], half: int) -> list[float]:
    """Centred moving average over up to ``2 * half + 1`` values; the window shrinks evenly at both ends."""
    count = len(values)
    reach = [min(half, i, count - 1 - i) for i in range(count)]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]


def _draw_rewards(
    axes: Any, steps: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]], reward: str
) -> None:
    if steps:
        x, y = _points(steps, "reward")
        axes.plot(x, y, color=COLOURS[6], linewidth=0.8, alpha=0.55, label="training batch")
        if len(y) >= 5:
            half = max(1, len(y) // 25)
            axes.plot(x, smooth(y, half), color=COLOURS[6], linewidth=2, label=f"its mean over {2 * half + 1} steps")
    if checks:
        x, y = _points(checks, "reward")
        axes.plot(x, y, color=COLOURS[2], linewidth=2, marker="o", markersize=4, label="validation prompts")
        best = max((record for record in checks if record.get("best")), key=lambda r: r["step"], default=None)
        if best:
            label = f"kept: step {best['step']}, {best['reward']:.3g}"
            axes.plot(best["step"], best["reward"], "*", color=COLOURS[5], markersize=15, zorder=5, label=label)
    _dress(axes, reward)
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "borderaxespad": 0.2}
    axes.legend(fontsize=9, frameon=False, labelcolor=INK, **place)


def _draw_watched(axes: Any, checks: Sequence[Mapping[str, Any]], watch: str) -> None:
    axes.plot(*_points(checks, "watch"), color=COLOURS[3], linewidth=2, marker="o", markersize=4)
    _dress(axes, watch)


def _draw_rate(axes: Any, steps: Sequence[Mapping[str, Any]]) -> None:
    x, y = _points(steps, "learning_rate")
    axes.plot(x, y, color=FAINT, linewidth=1.2)
    axes.set_ylim(0, 1.15 * max(y, default=0) or 1)
    axes.locator_params(axis="x", integer=True)
    _dress(axes, "learning rate")


def comparison(evaluation: Evaluation) -> "Image":
    """Mean of every mode with its interval, a panel per measure, and how often each mode beats each other by the
    measure that decides."""
    modes, measures = evaluation.modes, evaluation.measures
    panels = [*measures, *(["wins"] if len(modes) > 1 else [])]
    height = max(2.4, 0.55 * len(modes) + 1.5)
    figure = _figure(3.6 * len(panels) + 0.6, height)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for i, (panel, measure) in enumerate(zip(axes, measures, strict=False)):
        _draw_means(panel, evaluation, measure, named=i == 0)
    if len(modes) > 1:
        _draw_wins(axes[-1], evaluation, evaluation.judge)
    return _rendered(figure)


def _draw_means(axes: Any, evaluation: Evaluation, measure: str, named: bool) -> None:
    modes = evaluation.modes
    means = [evaluation.mean(measure, mode) for mode in modes]
    places = decimals(means)
    for row, mean in enumerate(means):
        colour = COLOURS[row % len(COLOURS)]
        if mean.interval:
            axes.plot(mean.interval, [row, row], color=colour, linewidth=3, solid_capstyle="round", alpha=0.55)
        axes.plot(mean.value, row, "o", color=colour, markersize=8)
        offset = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(f"{mean.value:.{places}f}", (mean.value, row), fontsize=9, color=INK, **offset)
    axes.set_yticks(range(len(modes)), modes if named else [""] * len(modes), fontsize=10, color=INK)
    axes.set_ylim(len(modes) - 0.5, -0.7)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=5)
    _dress(axes, "")
    _title(axes, evaluation.label(measure))
    axes.set_xlabel(f"higher is better; {100 * evaluation.confidence:g} % intervals", fontsize=9, color=FAINT)
    axes.grid(axis="y", visible=False)


def _draw_wins(axes: Any, evaluation: Evaluation, measure: str) -> None:
    modes = evaluation.modes
    for row, first in enumerate(modes):
        for column, second in enumerate(modes):
            rate = None if first == second else evaluation.win_rate(measure, first, second)
            _draw_win(axes, row, column, rate)
    axes.set_xticks(range(len(modes)), modes, fontsize=9, color=INK, rotation=25 if len(modes) > 3 else 0)
    axes.set_yticks(range(len(modes)), modes, fontsize=9, color=INK)
    axes.set_xlim(-0.5, len(modes) - 0.5)
    axes.set_ylim(len(modes) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _title(axes, f"{evaluation.label(measure)}: row beats column, % of {len(evaluation.pairs)} pairs")
    axes.set_xlabel("bold: the interval excludes 50 %", fontsize=9, color=FAINT)


def parts(evaluation: Evaluation, measure: str) -> "Image":
    """The parts of a measure, a row each, with every mode's mean and interval.

    Errors: ValueError for a measure without parts.
    """
    names, modes = list(evaluation.parts.get(measure, ())), evaluation.modes
    if not names:
        raise ValueError(f"Got the measure {measure!r}, which has no parts, expected one that has.")
    spread = 0.7 / len(modes)
    figure = _figure(9, 1.1 + len(names) * (0.15 + 0.1 * len(modes)))
    axes = figure.subplots()
    for column, mode in enumerate(modes):
        colour, offset = COLOURS[column % len(COLOURS)], (column - (len(modes) - 1) / 2) * spread
        for row, name in enumerate(names):
            found = evaluation.part(measure, name, mode)
            if found.interval:
                axes.plot(found.interval, [row + offset] * 2, color=colour, linewidth=2, alpha=0.55)
            axes.plot(found.value, row + offset, "o", color=colour, markersize=5, label=mode if not row else None)
    axes.set_yticks(range(len(names)), [wrap(name, 110, 10)[0] for name in names], fontsize=10, color=INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    _dress(axes, "")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"higher is better; {100 * evaluation.confidence:g} % intervals", fontsize=9, color=FAINT)
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 7, "borderaxespad": 0.2}
    axes.legend(fontsize=9, frameon=False, labelcolor=INK, **place)
    return _rendered(figure)


def efficiency(
    evaluation: Evaluation, curves: Mapping[str, Sequence[tuple[int, float]]], parameters: Mapping[str, int]
) -> "Image":
    """What several ways of training reach: the validation reward by step, and the deciding measure's mean with its
    interval over the number of trained parameters (logarithmic), with the baseline as a line.

    curves, parameters: (step, reward) and numbers trained, by mode of ``evaluation``.
    """
    figure = _figure(9.5, 3.8)
    left, right = figure.subplots(1, 2)
    for i, (mode, curve) in enumerate(curves.items()):
        colour, mean = COLOURS[i + 1], evaluation.mean(evaluation.judge, mode)
        style = {"color": colour, "linewidth": 2, "marker": "o", "markersize": 4}
        left.plot(*zip(*curve, strict=True), label=evaluation.label(mode), **style)
        if mean.interval:
            right.plot([parameters[mode]] * 2, mean.interval, color=colour, linewidth=3, alpha=0.55)
        right.plot(parameters[mode], mean.value, "o", color=colour, markersize=8)
    low = evaluation.mean(evaluation.judge, evaluation.rival).value
    right.axhline(low, color=COLOURS[0], linewidth=1.2, linestyle="--", label=evaluation.label(evaluation.rival))
    right.set_xscale("log")
    right.margins(x=0.15)
    for axes, across, up in ((left, "step", "validation reward"), (right, "parameters trained", "")):
        _dress(axes, up)
        axes.set_xlabel(across, fontsize=10, color=INK)
        axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    _title(right, f"{evaluation.label(evaluation.judge)}; {100 * evaluation.confidence:g} % intervals")
    return _rendered(figure)


def _title(axes: Any, text: str) -> None:
    axes.set_title("\n".join(wrap(text, 290, 14)), fontsize=10.5, color=INK, loc="left", parse_math=False)


def _draw_win(axes: Any, row: int, column: int, rate: Estimate | None) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colour = "#f6f8fa" if rate is None else colormaps["PuOr"](0.5 + 0.8 * (rate.value - 0.5))
    axes.add_patch(Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=colour, edgecolor="none"))
    if rate is None:
        return
    strong = abs(rate.value - 0.5) > 0.38
    weight = "bold" if rate.excludes(0.5) else "normal"
    style = {"ha": "center", "va": "center", "fontsize": 10, "weight": weight}
    axes.text(column, row, f"{100 * rate.value:.0f}", color="white" if strong else INK, **style)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, facecolor="white", layout="constrained")


def _dress(axes: Any, label: str) -> None:
    length = axes.get_position().height * axes.figure.get_figheight() * 72
    axes.set_ylabel("\n".join(wrap(label, round(length), 10)), fontsize=10, color=INK)
    axes.tick_params(labelsize=9, colors=FAINT, labelcolor=INK)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)


def _rendered(figure: Any) -> "Image":
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
