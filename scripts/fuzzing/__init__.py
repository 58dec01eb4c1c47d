"""The files that fuzz.py makes, a module per kind, and what reads each."""

from .checkpoints import CHECKPOINTS
from .configs import CONFIGS
from .damage import Target
from .embeddings import EMBEDDINGS
from .pictures import PNGS

TARGETS = {target.name: target for target in (EMBEDDINGS, CHECKPOINTS, PNGS, CONFIGS)}

__all__ = ["TARGETS", "Target"]
