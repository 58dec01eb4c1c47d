"""The host's architectures that training works on: what each needs beside the host's own code. A new one is a row here
and in the tests; the text conventions are the core's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reneg_core.conventions import FAMILIES as CONVENTIONS
from reneg_core.conventions import describe_family, encoder_of

FACTS = "reneg"
"""Where a MODEL carries what the user says of it."""


@dataclass(frozen=True)
class Family:
    """An architecture.

    convention: of its embeddings, "" = named by the CLIP; pooled: whether it reads a pooled vector; mask: whether it
    must be told one; padded: whether prompts, which the host leaves as long as they are, are padded to the
    convention's length, so that the empty prompt has tokens to learn; plain: whether its blocks leave alone what
    autograd saves; packed: channels of its configuration per latent channel; step: of a picture's sides in pixels;
    least: the smallest mean of the sides in pixels; still: whether a latent of frames holds one picture.
    """

    convention: str = ""
    pooled: bool = False
    mask: bool = False
    padded: bool = False
    plain: bool = False
    packed: int = 1
    step: int = 1
    least: int = 1
    still: bool = False

    @property
    def length(self) -> int:
        """Tokens that a prompt is padded to here, 0 for the host's own padding."""
        return CONVENTIONS[self.convention].length if self.padded else 0


_SD1, _SD2 = Family("clip-l", plain=True), Family("openclip-h", plain=True)
_XL = Family("sdxl", pooled=True, plain=True)
_FLUX = Family("flux", pooled=True)
_PIXART = {"padded": True, "plain": True, "step": 16, "least": 272}

FAMILIES: Mapping[str, Family] = {
    "TinyWorld": Family(plain=True),
    "SD15": _SD1,
    "SD20": _SD2,
    "SD21UnclipL": _SD2,
    "SD21UnclipH": _SD2,
    **dict.fromkeys(("SDXL", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"), _XL),
    "SDXLRefiner": Family("openclip-g", pooled=True, plain=True),
    "SD3": Family("sd3", pooled=True, plain=True),
    "PixArtAlpha": Family("t5-xxl", **_PIXART),
    "PixArtSigma": Family("pixart-sigma", **_PIXART),
    "Flux": _FLUX,
    "FluxSchnell": _FLUX,
    "Chroma": Family("chroma", padded=True, packed=4),
    "Lumina2": Family(mask=True),
    "QwenImage": Family(packed=4, still=True),
    "LTXV": Family("ltx-video", mask=True),
    "WAN21_T2V": Family("umt5-xxl"),
    "HunyuanVideo": Family(pooled=True),
}
"""By the class of the host's configuration."""


def name_of(model: Any) -> str:
    """The class of a MODEL's configuration, as the host calls it."""
    return type(model.model.model_config).__name__


def family_of_model(model: Any) -> Family:
    """The family of a MODEL; ValueError for one that is none of them."""
    name = name_of(model)
    if name not in FAMILIES:
        raise ValueError(
            f"Got a {name}, which training here does not support; expected one of "
            f"{', '.join(known for known in FAMILIES if known != 'TinyWorld')}. Sampling works."
        )
    return FAMILIES[name]


def check_encoder(model: Any, family: Family, encoded: str) -> None:
    """Refuse a CLIP of another convention (ValueError); ``encoded`` is the one that it names."""
    known = family.convention in CONVENTIONS and encoded in CONVENTIONS
    if known and encoder_of(family.convention) != encoder_of(encoded):
        raise ValueError(
            f"Got a CLIP of {describe_family(encoded)} for a {name_of(model)}, expected one of "
            f"{describe_family(family.convention)}. Connect the model's own text encoder."
        )


@dataclass(frozen=True)
class Facts:
    """What a MODEL's file cannot say. real_cfg: it is sampled with a CFG above 1 though it may be distilled; frames: of
    a training clip."""

    real_cfg: bool = False
    frames: int = 1


def facts_of(model: Any) -> Facts:
    """What the user said of a MODEL."""
    return model.model_options.get(FACTS, Facts())


def with_facts(model: Any, facts: Facts) -> Any:
    """A clone of a MODEL that carries ``facts``."""
    clone = model.clone()
    clone.model_options[FACTS] = facts
    return clone
