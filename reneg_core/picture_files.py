"""Opening picture files: one place where Pillow is asked, and every failure names its file."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DEEPEST_LEVEL = 65535  # of 16-bit pictures


class PictureError(ValueError):
    """A file that no picture, or nothing of its metadata, can be read from; the message names it."""


@contextmanager
def opened(path: Path) -> Iterator["Picture"]:
    """The picture in a file; whatever goes wrong with it inside the block is a PictureError.

    Files of more pixels than Pillow's limit against decompression bombs (179 million) are refused.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # large, or an odd animation: the first frame is read
            with Image.open(path) as picture:
                yield picture
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"{path} says that it has more pixels than the {2 * (Image.MAX_IMAGE_PIXELS or 0):,} that are opened: "
            "damaged, a decompression bomb, or to be made smaller"
        ) from error
    except Exception as error:
        raise PictureError(f"{path} cannot be read as a picture ({type(error).__name__}: {error})") from error


def read_levels(path: Path) -> Tensor:
    """A picture file as 8-bit levels [1,3,H,W] uint8, turned as its EXIF orientation says.

    16-bit greyscale is rounded to 8 bits, transparency is dropped, other modes are converted to RGB as Pillow does.
    Raises PictureError for anything else.
    """
    import numpy as np
    from PIL import ImageOps

    with opened(path) as picture:
        ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode == "F":
            raise ValueError("32-bit floating point without a known range; expected 8 or 16 bits")
        if picture.mode.startswith("I"):
            grey = _to_8bit(np.asarray(picture))
            return torch.from_numpy(grey)[None, None].expand(1, 3, -1, -1)
        pixels = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def read_unit(path: Path) -> Tensor:
    """`read_levels` as float32 in [0,1]."""
    return read_levels(path).float() / 255


def _to_8bit(values: "np.ndarray") -> "np.ndarray":  # noqa: F821
    """16-bit grey levels, in whatever integer type Pillow holds them, as uint8."""
    import numpy as np

    low, high = int(values.min()), int(values.max())
    if low < 0 or high > DEEPEST_LEVEL:
        raise ValueError(f"grey levels from {low} to {high}; expected 8 or 16 bits")
    return ((values.astype(np.uint32) * 255 + DEEPEST_LEVEL // 2) // DEEPEST_LEVEL).astype(np.uint8)
