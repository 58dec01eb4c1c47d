"""Pictures of results: grids of samples, the learning curve, and the comparison of modes.

Everything comes back as a PIL image; nothing here touches matplotlib's global state or needs a display. Colours are
the colour-blind safe set of Okabe & Ito (2008).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .statistics import Estimate, decimals

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

    from .evaluate import Evaluation

COLOURS = ("#7f7f7f", "#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
INK, FAINT, RULE = "#1f2328", "#656d76", "#d0d7de"


def to_image(picture: Tensor) -> "Image":
    """A picture ``[3,H,W]`` in [0,1] as an 8-bit PIL image; values outside are clamped."""
    from PIL import Image

    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"Got a picture of shape {list(picture.shape)}, expected [3, height, width].")
    pixels = picture.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def enlarge(image: "Image", side: int) -> "Image":
    """Bring the longer side to about ``side`` pixels: whole-number enlargement without smoothing, or reduction."""
    from PIL import Image

    longest = max(image.size)
    if longest <= side:
        factor = side // longest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    size = tuple(max(1, round(length * side / longest)) for length in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def grid(
    rows: Sequence[Sequence[Tensor]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    captions: Sequence[Sequence[str]] | None = None,
    side: int = 160,
) -> "Image":
    """A labelled table of pictures on white.

    rows: pictures ``[3,H,W]`` in [0,1], all of one size; row_labels: wrapped to fit, text after a line break is a
    second paragraph in grey; captions: a short text under each picture; side: longer side of a drawn picture in
    pixels (small pictures are enlarged by a whole factor, without smoothing).
    Errors: ValueError for no pictures, rows of different lengths, label counts that do not fit, unequal sizes.
    """
    from PIL import Image, ImageDraw

    _check_grid(rows, row_labels, column_labels, captions)
    cells = [[enlarge(to_image(picture), side) for picture in row] for row in rows]
    layout = _GridLayout(cells[0][0].size, row_labels, column_labels, captions is not None)
    canvas = Image.new("RGB", layout.size, "white")
    draw = ImageDraw.Draw(canvas)
    for column, text in enumerate(column_labels):
        layout.draw_header(draw, column, text)
    for index, row in enumerate(cells):
        layout.draw_label(draw, index, row_labels[index])
        for column, cell in enumerate(row):
            x, y = layout.corner(index, column)
            canvas.paste(cell, (x, y))
            draw.rectangle((x, y, x + cell.width - 1, y + cell.height - 1), outline=RULE)
            if captions:
                centre = (x + cell.width / 2, y + cell.height + 4)
                draw.text(centre, captions[index][column], FAINT, font(12), anchor="ma")
    return canvas


def _check_grid(
    rows: Sequence[Sequence[Tensor]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None,
) -> None:
    if not rows or not rows[0]:
        raise ValueError("Got no pictures for the grid, expected at least one row with one picture.")
    widths = {len(row) for row in rows} | {len(column_labels)} | {len(row) for row in captions or ()}
    if len(widths) > 1 or len(row_labels) != len(rows) or (captions is not None and len(captions) != len(rows)):
        raise ValueError(
            f"Got {len(rows)} rows of {sorted({len(row) for row in rows})} pictures with {len(row_labels)} row labels "
            f"and {len(column_labels)} column labels; expected one label per row and per column, and full captions."
        )
    sizes = {tuple(picture.shape) for row in rows for picture in row}
    if len(sizes) > 1:
        raise ValueError(f"Got pictures of different sizes {sorted(sizes)}, expected one size per grid.")


class _GridLayout:
    """Where things stand in a grid, in pixels."""

    margin, gap, text_size, line = 16, 10, 14, 19

    def __init__(
        self, cell: tuple[int, int], row_labels: Sequence[str], column_labels: Sequence[str], captions: bool
    ) -> None:
        self.cell = cell
        self.step_y = cell[1] + self.gap + (18 if captions else 0)
        self.label_width = min(220, max(90, max(_width(text, self.text_size) for text in row_labels))) + self.gap
        self.column_width = max(cell[0], 90) + self.gap
        headers = [wrap(text, self.column_width - self.gap, self.text_size, bold=True) for text in column_labels]
        self.header = self.margin + self.line * max(map(len, headers)) + 6
        needed = max(len(self.lines(text)) for text in row_labels) * self.line
        self.step_y = max(self.step_y, needed + self.gap)
        self.size = (
            self.margin * 2 + self.label_width + self.column_width * len(column_labels) - self.gap,
            self.header + self.step_y * len(row_labels) - self.gap + self.margin,
        )

    def lines(self, label: str) -> list[tuple[str, str]]:
        """Wrapped lines of a row label with their colours."""
        width = self.label_width - self.gap
        first, _, second = label.partition("\n")
        return [(line, INK) for line in wrap(first, width, self.text_size)] + [
            (line, FAINT) for line in (wrap(second, width, self.text_size) if second else [])
        ]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        indent = (self.column_width - self.gap - self.cell[0]) // 2
        return self.margin + self.label_width + self.column_width * column + indent, self.header + self.step_y * row

    def draw_header(self, draw: Any, column: int, text: str) -> None:
        width = self.column_width - self.gap
        lines = wrap(text, width, self.text_size, bold=True)
        x = self.margin + self.label_width + self.column_width * column + width / 2
        for i, line in enumerate(reversed(lines)):
            draw.text((x, self.header - 8 - i * self.line), line, INK, font(self.text_size, bold=True), anchor="ms")

    def draw_label(self, draw: Any, row: int, text: str) -> None:
        lines = self.lines(text)
        top = self.header + self.step_y * row + max(0, (self.cell[1] - len(lines) * self.line) // 2)
        for i, (line, colour) in enumerate(lines):
            draw.text((self.margin, top + i * self.line), line, colour, font(self.text_size), anchor="la")


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> "FreeTypeFont":
    """DejaVu Sans as matplotlib ships it: the same on every machine."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}", size)


def _width(text: str, size: int, bold: bool = False) -> int:
    return max((round(font(size, bold).getlength(line)) for line in text.splitlines()), default=0)


def wrap(text: str, width: int, size: int, bold: bool = False, most: int = 8) -> list[str]:
    """``text`` broken at spaces (or inside a word longer than a line) into lines of at most ``width`` pixels; what
    does not fit into ``most`` lines ends in an ellipsis."""
    lines = [""]
    for word in text.split():
        for piece in _pieces(word, width, size, bold):
            joined = f"{lines[-1]} {piece}".strip()
            if _width(joined, size, bold) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    lines = [line for line in lines if line] or [""]
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " …"]


def _pieces(word: str, width: int, size: int, bold: bool) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and _width(pieces[-1] + letter, size, bold) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


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


def comparison(evaluation: "Evaluation") -> "Image":
    """Mean of every mode with its interval, a panel per measure, and how often each mode beats each other by the
    last measure (the independent one, where there is one)."""
    modes, measures = evaluation.modes, evaluation.measures
    panels = [*measures, *(["wins"] if len(modes) > 1 else [])]
    height = max(2.4, 0.55 * len(modes) + 1.5)
    figure = _figure(3.6 * len(panels) + 0.6, height)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for i, (panel, measure) in enumerate(zip(axes, measures, strict=False)):
        _draw_means(panel, evaluation, measure, named=i == 0)
    if len(modes) > 1:
        _draw_wins(axes[-1], evaluation, measures[-1])
    return _rendered(figure)


def _draw_means(axes: Any, evaluation: "Evaluation", measure: str, named: bool) -> None:
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


def _draw_wins(axes: Any, evaluation: "Evaluation", measure: str) -> None:
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
    _title(axes, f"{evaluation.label(measure)}: row beats column, % of {evaluation.pairs} pairs")
    axes.set_xlabel("bold: the interval excludes 50 %", fontsize=9, color=FAINT)


def _title(axes: Any, text: str) -> None:
    axes.set_title("\n".join(wrap(text, 290, 14)), fontsize=10.5, color=INK, loc="left")


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
