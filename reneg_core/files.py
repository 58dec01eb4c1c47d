"""Files that are whole or not there: the one place that checks a folder before work and writes into it afterwards."""

import errno
import io
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tensor_file import canonical

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PART = ".part"
ROOM = 1 << 20
"""Bytes that a folder must have room for where the caller does not say how many."""


def check_folder(folder: str | os.PathLike, needed: int = ROOM) -> Path:
    """Find out, before long work, whether ``needed`` bytes can be written to ``folder``; nothing is left behind.

    The folder need not exist: it is made for the trial and removed again. At most 1 MiB is written, the rest is asked
    of the file system. Errors: OSError saying why not and what to try.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        probe = _written(folder / "room", bytes(min(needed, ROOM)))
        probe.unlink()
        free = shutil.disk_usage(folder).free
        if free < needed:
            reason = f"{needed / 2**20:,.1f} MiB are needed and {free / 2**20:,.1f} are free"
            raise OSError(errno.ENOSPC, f"Too little room in the folder ({reason}). Try another folder", str(folder))
    finally:
        for place in missing:
            if place.is_dir():
                place.rmdir()
    return folder


def write_bytes(path: str | os.PathLike, data: bytes) -> Path:
    """Write ``data`` so that ``path`` holds the earlier file or the whole new one, whatever happens; makes the folder.

    Errors: OSError naming the file, with the earlier one left as it was and nothing beside it.
    """
    path = Path(path)
    temporary = _written(path, data)
    try:
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _refused(error, path, data) from error
    _flush(path.parent)
    return path


def write_text(path: str | os.PathLike, text: str) -> Path:
    """:func:`write_bytes` of UTF-8."""
    return write_bytes(path, text.encode())


def write_picture(path: str | os.PathLike, image: "Image", **options: Any) -> Path:
    """:func:`write_bytes` of a PNG; options as Pillow's PNG writer takes them, for example ``pnginfo``."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return write_bytes(path, buffer.getvalue())


def write_tensors(
    path: str | os.PathLike, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> Path:
    """:func:`write_bytes` of safetensors, equal bytes for equal contents; the tensors may be on any device and need not
    be contiguous."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, canonical(save(plain, dict(metadata or {}))))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder``; only for a folder that nobody else writes to."""
    for path in folder.glob(f".*{PART}"):
        path.unlink(missing_ok=True)


def _written(path: Path, data: bytes) -> Path:
    """``data`` under a name of its own beside ``path``, on the disk and not only in its cache."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)
    except BaseException as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _refused(error, path, data) from error
        raise
    return temporary


def _refused(error: OSError, path: Path, data: bytes) -> OSError:
    reason = f"Could not write {len(data)} bytes ({error.strerror}). Try another folder"
    return OSError(error.errno, reason, str(path))


def _flush(folder: Path) -> None:
    """Make a renaming last through a loss of power, where folders can be opened (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
