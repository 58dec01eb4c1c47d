"""Pictures side by side: grids with labels, drawn with PIL alone; the lettering is matplotlib's DejaVu Sans."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..clips import FRAMES, evenly

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

INK, FAINT, RULE = "#1f2328", "#656d76", "#d0d7de"


def to_image(picture: Tensor) -> "Image":
    """A picture ``[3,H,W]`` in [0,1] as an 8-bit PIL image, a clip ``[T,3,H,W]`` as a :func:`sheet`; values outside are
    clamped."""
    from PIL import Image

    if picture.ndim not in (3, 4) or picture.shape[-3] != 3 or not picture.numel():
        got = list(picture.shape)
        raise ValueError(f"Got a picture of shape {got}, expected [3, height, width] (clips: [frames, 3, ...]).")
    picture = sheet(picture) if picture.ndim == 4 else picture
    pixels = picture.detach().float().cpu().clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def sheet(clip: Tensor) -> Tensor:
    """Frames of a clip ``[T,3,H,W]``, evenly spaced, as a picture ``[3,h,w]``, row by row; places left are white."""
    chosen = clip[evenly(len(clip), FRAMES)]
    columns = math.ceil(math.sqrt(len(chosen)))
    blank = torch.ones_like(chosen[:1]).expand(-len(chosen) % columns, -1, -1, -1)
    rows = torch.cat([chosen, blank]).unflatten(0, (-1, columns))
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


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

    rows: pictures ``[3,H,W]`` in [0,1] or clips ``[T,3,H,W]``, all of one size; row_labels: wrapped to fit, text after
    a line break is a second paragraph in grey; captions: a short text under each picture; side: longer side of a drawn
    picture in pixels (small pictures are enlarged by a whole factor, without smoothing).
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
