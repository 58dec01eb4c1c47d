"""The embedded default: a small trained text-to-image world that loads through the code path of Stable Diffusion.

``pipeline_path()`` is a diffusers ``StableDiffusionPipeline`` folder; the reward is registered as ``tiny``; ``measure``
judges pictures independently of it. ``python -m reneg_core.tiny.train`` makes all of it from nothing.
"""

from pathlib import Path

from reneg_core.tiny.measure import measure, measure_parts
from reneg_core.tiny.prompts import HANDWRITTEN_NEGATIVE, test_prompts, train_prompts, validation_prompts

__all__ = [
    "HANDWRITTEN_NEGATIVE",
    "measure",
    "measure_parts",
    "pipeline_path",
    "test_prompts",
    "train_prompts",
    "validation_prompts",
]


def pipeline_path() -> Path:
    """The pipeline folder, ready for ``StableDiffusionPipeline.from_pretrained``; pictures are 32x32 pixels."""
    return Path(__file__).parent / "pipeline"
