"""What all diffusers pipelines have in common as a :class:`~reneg_core.model.DiffusionModel`.

A family is a small class in :mod:`.families` that says how prompts are encoded and how its denoiser is called; noise
levels and predictions are in :mod:`.parameterisation`, the text conventions in :mod:`reneg_core.conventions`.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..conventions import family_of_width
from ..digests import DIGEST, digest_of, sha256_of
from ..model import Branch, Conditioning, DiffusionModel, ForeseeingModel
from ..settings import NATIVE, Sampling, Size
from ..texts import Coming, Texts, stacked
from .parameterisation import Parameterisation

T = TypeVar("T")


class DiffusersModel(ForeseeingModel):
    """A diffusers pipeline as a :class:`DiffusionModel`; a family says what differs.

    conventions: names of the text conventions, told apart by width; network_class: the denoiser's class; denoiser: its
    name in the pipeline; packing: channels that the denoiser sees per latent channel; patch: latents per token's side;
    reads_mask, shifted_vae: whether the denoiser reads a mask, and the pipeline the VAE's shift; optional: parts that
    a pipeline may lack; load_options: for diffusers' loader. Weights are frozen and in evaluation mode; latents and
    sigmas stay float32, the networks run in their own dtype.
    Errors: ValueError for parts that do not belong together and for variants that need more than text.
    """

    conventions: ClassVar[tuple[str, ...]]
    network_class: ClassVar[str]
    denoiser: ClassVar[str] = "transformer"
    packing: ClassVar[int] = 1
    patch: ClassVar[int] = 1
    reads_mask: ClassVar[bool] = False
    shifted_vae: ClassVar[bool] = False
    optional: ClassVar[tuple[str, ...]] = ()
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, pipeline: Any, name: str) -> None:
        self.pipeline, self.name = pipeline, name
        needed = [name for name in pipeline.components if self.has(name) and name not in self.optional]
        lacking = [name for name in needed if getattr(pipeline, name) is None]
        if lacking:
            raise ValueError(
                f"Got a {type(pipeline).__name__} without {', '.join(lacking)}, expected a whole pipeline."
            )
        self.network = getattr(pipeline, self.denoiser)
        self.device, self.dtype = torch.device(pipeline.device), self.network.dtype
        self.widths = self._check_parts()
        self.width = self.widths["tokens"]
        self.family = family_of_width(self.width, self.conventions)
        self.max_tokens: int | None = None
        self.parameterisation = self._parameterisation()
        self._texts: Texts | None = None
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()

    @classmethod
    def has(cls, part: str) -> bool:
        """Whether a pipeline's component is used: safety checkers and the like are not."""
        return part.startswith(("text_encoder", "tokenizer", "vae", "scheduler", cls.denoiser))

    def _parameterisation(self) -> Parameterisation:
        """What the denoiser predicts, by the pipeline's scheduler."""
        raise NotImplementedError

    def _text_widths(self) -> dict[str, tuple[int, int]]:
        """Of ``tokens`` and, where there is one, the ``pooled`` vector: the width that the encoders give and the one
        that the denoiser expects."""
        raise NotImplementedError

    def _encode(self, prompts: list[str]) -> Conditioning:
        """The prompts as the pipeline encodes them, padded to the convention's length."""
        raise NotImplementedError

    def _predict(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's output, as large as ``x [B,C,h,w]`` or ``[B,C,F,h,w]``, at ``timestep [B]``, in its dtype."""
        raise NotImplementedError

    def _check_parts(self) -> dict[str, int]:
        """Refuse other architectures, inpainting and control variants, and mixed-up parts; returns the widths."""
        kind, vae, seen = type(self.network).__name__, self.pipeline.vae.config, self.network.config.in_channels
        if kind != self.network_class:
            raise ValueError(f"Got a denoiser of class {kind}, expected {self.network_class}.")
        if seen != vae.latent_channels * self.packing:
            raise ValueError(
                f"Got a denoiser with {seen} input channels and {vae.latent_channels} latent channels; "
                "expected a model of text alone, no inpainting, depth or control variant."
            )
        unread = [name for name in ("latents_mean", "shift_factor") if vae.get(name) is not None]
        if unread and not (self.shifted_vae and unread == ["shift_factor"]):
            raise ValueError(f"Got a VAE with {unread[0]}, which this family's pipeline does not use for its latents.")
        found = self._text_widths()
        for what, (given, expected) in found.items():
            if given != expected:
                raise ValueError(
                    f"Got {what} of width {given} from the text encoders and a denoiser that expects {expected}: "
                    "the parts come from different models."
                )
        return {what: given for what, (given, _) in found.items()}

    def run(self, work: Callable[[DiffusionModel], T]) -> T:
        """Nothing to prepare: the pipeline is loaded and frozen from the start."""
        return work(self)

    def encode(self, prompts: Sequence[str], gradient: bool = False) -> Conditioning:
        """Tokens ``[B,L,D]`` and pooled ``[B,P]`` float32, mask ``[B,L]`` int64, by the family's convention; prompts
        that are too long are cut. gradient: recorded, where something in the encoders requires it."""
        if self._texts is not None and not gradient:
            return stacked(self._texts.rows(prompts)).to(self.device)
        return self._encoded(prompts, gradient)

    @contextmanager
    def foreseeing(self, coming: Coming) -> Iterator[None]:
        """See :class:`~reneg_core.model.ForeseeingModel`. On a CPU nothing is moved, and nothing encoded ahead. Other
        models that share an encoder with this one (LoRAs) must not encode within."""
        before = self._texts
        ahead = coming if self._accelerated else tuple
        self._texts = Texts(lambda prompt: self._encoded([prompt]).to("cpu"), self._encoders, ahead)
        try:
            yield
        finally:
            self._texts = before
            if before is None:
                self._move_encoders(self.device)

    @contextmanager
    def _encoders(self) -> Iterator[None]:
        """The text encoders come to the device, and leave it again."""
        self._move_encoders(self.device)
        try:
            yield
        finally:
            self._move_encoders(torch.device("cpu"))

    @property
    def _accelerated(self) -> bool:
        """Whether the device has a memory of its own."""
        return self.device.type != "cpu"

    def _move_encoders(self, device: torch.device) -> None:
        if not self._accelerated:
            return
        for name, part in self.pipeline.components.items():
            if name.startswith("text_encoder") and part is not None:
                part.to(device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _encoded(self, prompts: Sequence[str], gradient: bool = False) -> Conditioning:
        with _silenced(type(self.pipeline).__module__), torch.set_grad_enabled(gradient):
            found = self._encode(list(prompts))
        return Conditioning(
            found.tokens.float(),
            None if found.mask is None else found.mask.long(),
            None if found.pooled is None else found.pooled.float(),
        )

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Sequence[Branch] = (Branch.POSITIVE,)
    ) -> Tensor:
        """One pass of the denoiser; see :class:`DiffusionModel`. The network treats both branches alike.

        Errors: ValueError for a mask that hides tokens, or a pooled vector, where the network reads none, and for a
        pooled vector that it lacks.
        """
        self._check_conditioning(conditioning)
        state, timestep = self.parameterisation.inputs(x, sigma)
        output = self._predict(state.to(self.dtype), timestep, conditioning.to(self.device, self.dtype))
        return self.parameterisation.x0(x, sigma, output.float())

    def _check_conditioning(self, conditioning: Conditioning) -> None:
        mask, pooled, expected = conditioning.mask, conditioning.pooled, self.widths.get("pooled")
        found = None if pooled is None else pooled.shape[-1]
        if found != expected:
            got = f"a pooled vector of width {found}" if found else "no pooled vector"
            reads = f"reads one of width {expected}" if expected else "reads none"
            raise ValueError(f"Got {got}, but {self.name} {reads}. Try an embedding that was made for this model.")
        if mask is not None and not self.reads_mask and not mask.all():
            raise ValueError(
                f"Got a mask that hides {int((mask == 0).sum())} tokens, which {self.name} does not read. "
                "Try an embedding that was made for this model."
            )

    def sigmas(self, sampling: Sampling) -> Tensor:
        """The schedule ``[steps+1]`` of ``sampling``, float32 on the CPU; see :mod:`.parameterisation`."""
        tokens = math.prod(self._latent_sides(sampling.size)) // self.patch**2
        return self.parameterisation.sigmas(sampling, tokens)

    def noise(self, seeds: Sequence[int], size: Size = NATIVE) -> Tensor:
        """Standard normal ``[B,C,h,w]`` or ``[B,C,F,h,w]``, float32, drawn on the CPU with one generator per row."""
        shape = (self.pipeline.vae.config.latent_channels, *self._latent_sides(size))
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    @property
    def _factor(self) -> int:
        """Pixels to a latent's side."""
        return self.pipeline.vae_scale_factor

    def _native_sides(self) -> tuple[int, int]:
        """Height and width in pixels where none are asked for, as the pipeline's own."""
        side = (self.network.config.get("sample_size") or self.pipeline.default_sample_size) * self._factor
        return side, side

    def _latent_sides(self, size: Size) -> tuple[int, ...]:
        """Height and width in latents, of a video its frames before them. Errors: ValueError for sizes that the
        denoiser cannot take."""
        factor = self._factor
        sides = [side or own for side, own in zip((size.height, size.width), self._native_sides(), strict=True)]
        step = factor * self.patch
        if any(side < step or side % step for side in sides):
            raise ValueError(
                f"Got a picture of {sides[1]}x{sides[0]} pixels (width x height), expected multiples of {step}."
            )
        if size.frames not in (None, 1):
            raise ValueError(f"Got {size.frames} frames for {self.name}, which makes single pictures.")
        return sides[0] // factor, sides[1] // factor

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return self.parameterisation.start(noise, sigma)

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.parameterisation.finish(x, sigma)

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        """Latents ``[B,C,h,w]`` to pictures ``[B,3,H,W]`` float32 in [0,1]; for videos see :mod:`.video`."""
        return decoded(self.pipeline.vae, latents)

    def pixels(self, size: Size = NATIVE, frames: int = 0) -> int:
        return math.prod(self._latent_sides(size)[-2:]) * self._factor**2

    def checkpointing(self, enabled: bool, decoder: bool | None = None) -> None:
        """Switch activation checkpointing of the denoiser and the VAE decoder."""
        self._recompute(enabled)
        vae, wanted = self.pipeline.vae, enabled if decoder is None else decoder
        (vae.enable_gradient_checkpointing if wanted else vae.disable_gradient_checkpointing)()

    def _recompute(self, enabled: bool) -> None:
        """Switch activation checkpointing of the denoiser."""
        network = self.network
        (network.enable_gradient_checkpointing if enabled else network.disable_gradient_checkpointing)()

    def digest(self) -> str:
        """SHA-256 over the denoiser's weights in name order: the same model from a folder or a file, per dtype."""
        return sha256_of(self.network.state_dict())

    def contents(self) -> dict[str, str]:
        """See :class:`DiffusionModel`."""
        parts = {name: part for name, part in self.pipeline.components.items() if part is not None}
        encoders = {name: digest_of(part.state_dict()) for name, part in parts.items() if "text_encoder" in name}
        words = {name: sorted(part.get_vocab().items()) for name, part in parts.items() if "tokenizer" in name}
        vocabularies = {name: hashlib.sha256(repr(entries).encode()).hexdigest() for name, entries in words.items()}
        return {
            "precision": str(self.dtype).removeprefix("torch."),
            "prediction type": self.parameterisation.prediction,
            "denoiser": DIGEST + self.digest(),
            "VAE": digest_of(parts["vae"].state_dict()),
            **{name.replace("_", " "): found for name, found in encoders.items()},
            **{name.replace("_", " "): DIGEST + found for name, found in vocabularies.items()},
        }


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pictures ``[B,3,H,W]`` float32 in [0,1] that diffusers' ``vae`` makes of a denoiser's latents ``[B,C,h,w]``, by
    the scale and the shift of its configuration, as diffusers' pipelines do."""
    latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    return unit(vae.decode(latents.to(vae.dtype), return_dict=False)[0])


def unit(pixels: Tensor) -> Tensor:
    """A VAE's pixels around [-1,1] as float32 in [0,1]."""
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


@contextmanager
def _silenced(module: str) -> Iterator[None]:
    """No warnings of a diffusers module: that a long prompt is cut, for every batch anew."""
    logger = logging.getLogger(module)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
