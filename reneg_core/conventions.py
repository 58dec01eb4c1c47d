"""The text conventions that embeddings are named by: an embedding fits where its convention is read, not wherever its
width happens to agree."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class TextFamily:
    """A text convention: how a model turns a prompt into what its denoiser reads.

    encoder: the encoders with layer and norm (families with the same one read each other's tokens); width: D of the
    tokens; pooled: width of the vector that belongs to them (0 = none); length: tokens that a prompt is padded to;
    masked: whether that padding is hidden by a mask; models, published: for messages.
    """

    encoder: str
    width: int
    pooled: int
    length: int
    masked: bool
    models: str
    published: str = "none; train one"


_T5 = "T5-v1.1-xxl, last layer and final norm"
_CLIPS = "CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, penultimate layers"

FAMILIES = {
    "clip-l": TextFamily(
        "CLIP ViT-L/14, last layer and final norm",
        768, 0, 77, False, "Stable Diffusion 1.x", "sd1.4_reneg_emb.bin or sd1.5_reneg_emb.bin",
    ),
    "openclip-h": TextFamily(
        "OpenCLIP ViT-H/14, penultimate layer and final norm",
        1024, 0, 77, False, "Stable Diffusion 2.x, ZeroScope, VideoCrafter2", "sd2.1_reneg_emb.bin",
    ),
    "sdxl": TextFamily(f"{_CLIPS}, side by side", 2048, 1280, 77, False, "Stable Diffusion XL"),
    "t5-xxl": TextFamily(
        _T5, 4096, 0, 120, True, "PixArt-alpha and other T5-v1.1-xxl models", "pixart-alpha_reneg_emb.bin"
    ),
    "pixart-sigma": TextFamily(_T5, 4096, 0, 300, True, "PixArt-Sigma", "pixart-alpha_reneg_emb.bin"),
    "ltx-video": TextFamily(_T5, 4096, 0, 128, True, "LTX-Video", "pixart-alpha_reneg_emb.bin"),
    "flux": TextFamily(_T5, 4096, 768, 512, False, "Flux"),
    "chroma": TextFamily(_T5, 4096, 0, 512, True, "Chroma"),
    "sd3": TextFamily(f"{_CLIPS}, then {_T5}", 4096, 2048, 333, False, "Stable Diffusion 3"),
}  # fmt: skip
"""The text conventions by the name that an embedding's file carries. Where a file names none, its width decides, and
the first of that width is taken."""


def family_of_width(width: int, among: Iterable[str] = FAMILIES) -> str:
    """The first of the families ``among`` with output width ``width``; other encoders are named by their width."""
    return next((name for name in among if FAMILIES[name].width == width), f"width-{width}")


def describe_family(name: str) -> str:
    """A family with its models in words, for messages."""
    return f"{name} ({FAMILIES[name].models})" if name in FAMILIES else name


def encoder_of(family: str) -> str:
    """What decides whether two families read each other's tokens."""
    return FAMILIES[family].encoder if family in FAMILIES else family
