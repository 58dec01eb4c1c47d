"""Video pipelines of diffusers in models/diffusers: for architectures that the host itself does not run."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import comfy.model_management
import folder_paths

from reneg_core.backends import load_model
from reneg_core.backends.families import PIPELINES
from reneg_core.backends.families.videocrafter import is_denoiser
from reneg_core.backends.loading import class_name
from reneg_core.backends.video import VideoModel

from .files import NOTHING, safe_name

KIND = "diffusers"
INDEX, PART = "model_index.json", "config.json"
NEEDED = ("diffusers", "accelerate")


def video_names() -> list[str]:
    """Folders of video pipelines, and of a video denoiser alone; ``["none"]`` if there is none."""
    found = {
        path.parent.relative_to(root).as_posix()
        for root in _roots()
        for name in (INDEX, PART)
        for path in root.rglob(name)
        if _is_video(path.parent)
    }
    return sorted(found) or [NOTHING]


def _roots() -> list[Path]:
    return [root for root in map(Path, folder_paths.get_folder_paths(KIND)) if root.is_dir()]


def _is_video(folder: Path) -> bool:
    if is_denoiser(folder):
        return not (folder.parent / INDEX).exists()  # else it is a part of the pipeline above it
    try:
        family = PIPELINES.get(class_name(folder, folder.name))
    except ValueError:
        return False
    return family is not None and issubclass(family, VideoModel)


def video_folder(name: str) -> Path:
    """The folder behind a name of :func:`video_names`; FileNotFoundError or ValueError otherwise."""
    listed = video_names()
    if name != NOTHING and name in listed:
        relative = safe_name(name)
        return next(root / relative for root in _roots() if _is_video(root / relative))
    raise FileNotFoundError(
        f"No video pipeline {name!r} in {folder_paths.get_folder_paths(KIND)[0]}; there is {', '.join(listed[:5])}. "
        "Put the folder of ZeroScope's or LTX-Video's diffusers pipeline there, then refresh the page's lists."
    )


def missing() -> str:
    """A sentence where diffusers is not installed, else the empty string."""
    lacking = [package for package in NEEDED if find_spec(package) is None]
    if not lacking:
        return ""
    return (
        f"The package {lacking[0]} is missing in ComfyUI's Python; it runs the video models that ComfyUI does not. "
        f"Try: pip install {' '.join(lacking)}, there, then restart ComfyUI."
    )


@contextmanager
def loaded(name: str, used_in: str) -> Iterator[VideoModel]:
    """The model of :func:`video_names`, on the host's device with its own models out of the way; gone after the block.

    used_in: for a denoiser alone, the pipeline that it is used in. Errors: ImportError for a missing package; those of
    :func:`video_folder` and :func:`reneg_core.backends.load_model`.
    """
    if sentence := missing():
        raise ImportError(sentence)
    folder = video_folder(name)
    if is_denoiser(folder) and used_in == NOTHING:
        raise ValueError(f"Got {name}, a video denoiser alone, expected ZeroScope's pipeline too. Set used_in to it.")
    around = video_folder(used_in) if is_denoiser(folder) else None
    comfy.model_management.unload_all_models()
    model = load_model(folder, device=str(comfy.model_management.get_torch_device()), config=around)
    try:
        yield model
    finally:
        del model
        comfy.model_management.soft_empty_cache()
