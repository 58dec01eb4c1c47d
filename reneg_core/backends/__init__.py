"""Implementations of :class:`reneg_core.model.DiffusionModel`."""

from .diffusers import DiffusersModel, load_model

__all__ = ["DiffusersModel", "load_model"]
