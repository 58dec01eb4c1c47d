"""Implementations of :class:`reneg_core.model.DiffusionModel`."""

from .diffusers import DiffusersModel
from .loading import load_model, wrap

__all__ = ["DiffusersModel", "load_model", "wrap"]
