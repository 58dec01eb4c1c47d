"""Reward-guided negative embeddings (ReNeg, arXiv 2412.19637), free of any host application.

Shape legend used everywhere: ``B`` batch, ``L`` text tokens, ``D`` text width, ``P`` pooled width,
``C,h,w`` latent channels, height and width, ``H,W`` image height and width in pixels.
"""

from .embedding import NegativeEmbedding, load_embedding
from .model import Conditioning, DiffusionModel

__version__ = "0.1.0"

__all__ = ["Conditioning", "DiffusionModel", "NegativeEmbedding", "__version__", "load_embedding"]
