"""Clips as files: GIF through Pillow, MP4 through PyAV."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from .files import write_bytes

FORMATS = ("gif", "mp4")


def check_format(name: str) -> str:
    """``name`` if clips can be written so, else ValueError, or ImportError naming the missing package."""
    if name not in FORMATS:
        raise ValueError(f"Got the clip format {name!r}, expected one of {', '.join(FORMATS)}.")
    if name == "mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "The package av is missing; it writes MP4 files. Try: pip install av, or the format gif."
            ) from error
    return name


def write_clip(path: str | Path, clip: Tensor, rate: float, comment: str = "") -> Path:
    """Write ``clip [T,3,H,W]`` in [0,1] whole or not at all, as the path's suffix says; returns the path.

    rate: frames a second, more than 0; a GIF's frames last whole hundredths of a second; comment: text for the file.
    Errors: those of :func:`check_format`; ValueError for other shapes and rates; OSError where it cannot be written.
    """
    path = Path(path)
    kind = check_format(path.suffix.removeprefix("."))
    if clip.ndim != 4 or clip.shape[1] != 3 or not len(clip):
        raise ValueError(f"Got a clip of shape {list(clip.shape)}, expected [frames, 3, height, width].")
    if not rate > 0:
        raise ValueError(f"Got {rate} frames a second, expected more than 0.")
    levels = clip.detach().float().cpu().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return write_bytes(path, (_gif if kind == "gif" else _mp4)(levels, rate, comment))


def _gif(levels: Any, rate: float, comment: str) -> bytes:
    from PIL import Image

    first, *others = map(Image.fromarray, levels)
    buffer = io.BytesIO()
    options = {"duration": 10 * max(1, round(100 / rate)), "loop": 0, "comment": comment.encode()}
    first.save(buffer, "GIF", save_all=True, append_images=others, **options)
    return buffer.getvalue()


def _mp4(levels: Any, rate: float, comment: str) -> bytes:
    """H.264 with even sides, which its colours need: an odd last row or column is repeated."""
    import av
    import numpy as np

    height, width = levels.shape[1:3]
    levels = np.pad(levels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *levels.shape[1:3], "yuv420p"
        stream.options = {"crf": "17"}
        for frame in levels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
