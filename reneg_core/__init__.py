"""Reward-guided negative embeddings (ReNeg, arXiv 2412.19637), free of any host application.

Shape legend used everywhere: ``B`` batch, ``L`` text tokens, ``D`` text width, ``P`` pooled width,
``C,h,w`` latent channels, height and width, ``H,W`` image height and width in pixels.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .embedding import NegativeEmbedding, load_embedding
    from .model import Conditioning, DiffusionModel

__version__ = "0.2.0.dev0"

__all__ = ["Conditioning", "DiffusionModel", "NegativeEmbedding", "__version__", "load_embedding"]

_HOMES = {
    "Conditioning": "model",
    "DiffusionModel": "model",
    "NegativeEmbedding": "embedding",
    "load_embedding": "embedding",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: the command line starts, and can be stopped, before torch is there."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
