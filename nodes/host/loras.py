"""LoRAs of text encoders where the host's Load LoRA finds them, and on a CLIP as it puts them there."""

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils

from reneg_core.texforce import TexForceResult, TextLora, load_text_lora

from . import files

OF_A_RUN = ("base_digest", "rewards", "seed", "prompts_digest", "sampling")
"""What the files of one run have in common, however far it has come."""


def place_of(result: TexForceResult) -> Path:
    """The result's file among the host's LoRAs: the run's earlier one, or a new one that replaces nothing."""
    name = result.directory.relative_to(files.tuning_root()).as_posix()
    return next(path for path in files.lora_places(name) if not path.exists() or _same_run(path, result.lora))


def written(result: TexForceResult) -> Path:
    """Write the result to :func:`place_of`."""
    path = place_of(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    return result.lora.save(path)


def _same_run(path: Path, lora: TextLora) -> bool:
    try:
        there = load_text_lora(path).provenance
    except (ValueError, OSError):
        return False
    return all(getattr(there, name) == getattr(lora.provenance, name) for name in OF_A_RUN)


def applied(clip: Any, path: Path) -> Any:
    """A CLIP with the file's LoRA at full strength, by the host's own patching."""
    tensors = comfy.utils.load_torch_file(str(path), safe_load=True)
    return comfy.sd.load_lora_for_models(None, clip, tensors, 0.0, 1.0)[1]
