"""What a training shows while it runs, legible when it is drawn half as large."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .pictures import INK, font, resized, to_image
from .plots import reward_curve

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH, GAP, BAND = 840, 8, 44


def live_picture(first: Tensor, last: Tensor, records: Sequence[Mapping[str, Any]]) -> "Image":
    """Pictures of the start over pictures of now, each row under its validation reward, and the curve: 840 pixels wide.

    first, last: ``[n,3,H,W]`` in [0,1]; records: the trainer's JSON lines, with at least one validation.
    """
    from PIL import Image, ImageDraw

    checks = [record for record in records if record.get("event") == "validation"]
    rows = [picture_row(pictures) for pictures in (first, last)]
    height = rows[0].height
    curve = reward_curve(records, WIDTH, 230)
    canvas = Image.new("RGB", (WIDTH, 2 * (BAND + height) + curve.height), "white")
    draw = ImageDraw.Draw(canvas)
    titles = [f"start: {checks[0]['reward']:.3g}", f"now, step {checks[-1]['step']}: {checks[-1]['reward']:.3g}"]
    for index, (title, row) in enumerate(zip(titles, rows, strict=True)):
        top = index * (BAND + height)
        draw.text((GAP, top + BAND // 2), title, INK, font(28, bold=True), anchor="lm")
        canvas.paste(row, (0, top + BAND))
    canvas.paste(curve, (0, canvas.height - curve.height))
    return canvas


def picture_row(pictures: Tensor) -> "Image":
    """Pictures ``[n,3,H,W]`` in [0,1] side by side, 840 pixels wide."""
    from PIL import Image

    side = (WIDTH - GAP * (len(pictures) + 1)) // len(pictures)
    shown = [resized(to_image(picture), side) for picture in pictures]
    canvas = Image.new("RGB", (WIDTH, shown[0].height), "white")
    for column, picture in enumerate(shown):
        canvas.paste(picture, (GAP + column * (side + GAP), 0))
    return canvas
