"""One small file per model family; a new one is such a file, a row here, and a text convention if none fits."""

from ..diffusers import DiffusersModel
from .chroma import Chroma
from .flux import Flux
from .ltx_video import LTXVideo
from .pixart import PixArt, PixArtSigma
from .stable_diffusion import StableDiffusion
from .stable_diffusion_3 import StableDiffusion3
from .stable_diffusion_xl import StableDiffusionXL
from .zeroscope import ZeroScope

PIPELINES: dict[str, type[DiffusersModel]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArtSigma,
    "FluxPipeline": Flux,
    "ChromaPipeline": Chroma,
    "LTXPipeline": LTXVideo,
    "TextToVideoSDPipeline": ZeroScope,
}
"""The family by the class that a pipeline folder names. VideoCrafter2 has no pipeline class: :mod:`.videocrafter`."""
