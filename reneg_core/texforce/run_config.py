"""A whole tuning as one YAML file: which model, reward and prompts, and every setting of the trainer."""

from dataclasses import dataclass

from ..training.config import EMBEDDING_SUFFIXES
from ..training.run_config import RECIPES, JobConfig
from .config import TexForceConfig
from .trainer import TexForce


@dataclass(frozen=True)
class TexForceRunConfig(TexForceConfig, JobConfig):
    """A whole tuning of a text encoder."""

    method, settings, command = TexForce, TexForceConfig, "texforce train"
    recipes, starts = RECIPES / "texforce", (*EMBEDDING_SUFFIXES, "")

    output: str = "runs/text-lora"
