"""From a name to a model: a pipeline folder, a hub id or a single checkpoint, told apart before anything is loaded."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .devices import pick_device, pick_dtype
from .diffusers import DiffusersModel
from .families import PIPELINES
from .families.videocrafter import is_denoiser, load_denoiser

SINGLE_FILES = {
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "double_blocks.": "Flux or Chroma",
    "joint_blocks.": "Stable Diffusion 3",
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "conditioner.embedders.0.model.": "the Stable Diffusion XL refiner",
    "cond_stage_model.": "StableDiffusionPipeline",
}
"""How a key of a single checkpoint begins, and the pipeline's class, or in words what it is that cannot be loaded."""


def load_model(
    source: str | Path, *, device: str = "auto", dtype: str = "auto", config: str | Path | None = None
) -> DiffusersModel:
    """Load a model of one of the families in :data:`.families.PIPELINES`.

    source: ``"tiny"`` (the embedded world), a diffusers pipeline folder, a single ``.safetensors`` checkpoint (Stable
    Diffusion 1.x, 2.x, XL), a folder with VideoCrafter2's UNet, or a hub id; device and dtype: see :mod:`.devices`;
    config: for a single file, the pipeline folder or hub id that holds its configuration and tokenizers (default: the
    original's, from the hub cache); for a UNet's folder, the ZeroScope pipeline that it is used in.
    Errors: FileNotFoundError; ValueError for anything that is not such a model, with its name where it has one.
    """
    target = pick_device(device)
    precision = pick_dtype(dtype, target)
    with quiet_loading():
        pipeline = _load_pipeline(str(source), precision, config)
    return wrap(pipeline.to(target), str(source))


def wrap(pipeline: Any, name: str) -> DiffusersModel:
    """A loaded diffusers pipeline as a model; ValueError for a class that is not supported."""
    return family_of(type(pipeline).__name__, name)(pipeline, name)


def family_of(kind: str, source: str) -> type[DiffusersModel]:
    """The family of a pipeline's class; ValueError naming ``source`` for one that is not supported."""
    if kind not in PIPELINES:
        raise ValueError(
            f"Got {kind} in {source}, which is not supported; expected a pipeline from text to images or "
            f"video, of one of the classes {', '.join(PIPELINES)}."
        )
    return PIPELINES[kind]


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars for reading local files (downloads from a hub keep theirs), nor the warning that the option
    ``torch_dtype``, the only one that older releases know, is to be called ``dtype``."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = [(module, module.is_progress_bar_enabled()) for module in (diffusers_logging, transformers_logging)]
    for module, _ in libraries:
        module.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for module, enabled in libraries:
            if enabled:
                module.enable_progress_bar()


def _load_pipeline(source: str, dtype: torch.dtype, config: str | Path | None) -> Any:
    import diffusers

    path = resolve(source)
    single = path is not None and path.is_file()
    parts: dict[str, Any] = {}
    if path is not None and path.is_dir() and is_denoiser(path):
        source, path, parts = *_pipeline_around(path, config), {"unet": load_denoiser(path, dtype)}
    kind = class_name(path, source)
    options: dict[str, Any] = {"torch_dtype": dtype, **parts, **family_of(kind, source).load_options}
    try:
        pipeline = getattr(diffusers, kind)
        if single:
            extra = {"config": str(config), "local_files_only": Path(config).exists()} if config else {}
            return pipeline.from_single_file(str(path), **options, **extra)
        return pipeline.from_pretrained(str(path or source), **options)
    except Exception as error:  # files of another kind, or damaged ones, break the loaders in many ways
        hint = " Try --model-config FOLDER (in a training: model_config=FOLDER), a pipeline folder of its architecture."
        raise unreadable(source, error, hint if single and not config else "") from error


def _pipeline_around(denoiser: Path, config: str | Path | None) -> tuple[str, Path | None]:
    """The name and the local path of the pipeline that a video denoiser is used in; ValueError for another one's."""
    if not config:
        raise ValueError(
            f"Got {denoiser}, a video denoiser alone, expected the pipeline that it is used in too. Try --model-config "
            "FOLDER (in a training: model_config=FOLDER) with ZeroScope's."
        )
    path = resolve(str(config))
    kind = class_name(path, str(config))
    if kind != "TextToVideoSDPipeline":
        raise ValueError(f"Got {kind} in {config} for the video denoiser {denoiser}, expected TextToVideoSDPipeline.")
    return str(config), path


def unreadable(source: str, error: Exception, hint: str = "") -> ValueError:
    """What to raise where ``error`` kept ``source`` from being loaded."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return ValueError(
        f"Could not load {source!r} as a model ({reason}). Expected a diffusers pipeline folder, "
        f"a .safetensors checkpoint, or a hub id.{hint}"
    )


def resolve(source: str) -> Path | None:
    """The local path behind ``source``, or None for a hub id; refuses pickles and paths that do not exist."""
    if source == "tiny":
        from ..tiny import pipeline_path

        return pipeline_path()
    path = Path(os.path.expanduser(source))
    if path.is_file() and path.suffix != ".safetensors":
        raise ValueError(f"Got {path.name}, expected a .safetensors checkpoint: pickled checkpoints can run code.")
    if path.exists():
        return path
    if path.is_absolute() or source.startswith((".", "~")) or path.suffix or source.count("/") != 1:
        raise FileNotFoundError(f"No model at {source}. Expected a pipeline folder, a .safetensors file or a hub id.")
    return None


def class_name(path: Path | None, source: str) -> str:
    """The pipeline's class: what its index says, or what a single file's keys show."""
    if path is None:
        from diffusers import DiffusionPipeline

        try:
            return str(DiffusionPipeline.load_config(source)["_class_name"])
        except (OSError, ValueError, KeyError) as error:
            raise unreadable(source, error) from error
    if path.is_file():
        return _class_of_file(path)
    index = path / "model_index.json"
    if not index.is_file():
        raise ValueError(f"Got the folder {path} without a model_index.json, expected a diffusers pipeline folder.")
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"Got an unreadable {index} ({reason}), expected a diffusers pipeline folder.") from error


def _class_of_file(path: Path) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
    except SafetensorError as error:
        raise unreadable(str(path), error) from error
    found = next((kind for start, kind in SINGLE_FILES.items() if any(key.startswith(start) for key in keys)), None)
    if found not in PIPELINES:
        what = f"a single file of {found}" if found else "a single file without the parts of a whole checkpoint"
        raise ValueError(
            f"Got {path.name}, {what}; expected a whole checkpoint of Stable Diffusion 1.x, 2.x or XL. "
            "Try the model's diffusers pipeline folder."
        )
    return found
