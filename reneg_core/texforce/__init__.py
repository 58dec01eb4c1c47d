"""Tuning a text encoder by a reward (TexForce, arXiv 2311.15657), and the LoRA files that come out."""

from .config import TexForceConfig
from .lora import TextLora, fuse, load_text_lora
from .trainer import TexForce, TexForceResult

__all__ = ["TexForce", "TexForceConfig", "TexForceResult", "TextLora", "fuse", "load_text_lora"]
