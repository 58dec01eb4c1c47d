"""The reward contract: images and prompts in, one number per image out, higher is better.

Shape legend: B batch, H height, W width of the images in pixels.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from reneg_core.rewards.checkpoint import Placement
from reneg_core.rewards.derivative import score_with_derivative
from reneg_core.rewards.pixels import Pixels
from reneg_core.rewards.precision import at_least_float32, own_precision
from reneg_core.rewards.preprocess import unit_range
from reneg_core.rewards.published import PublishedFile
from reneg_core.rewards.weights import Source, locate

RANGE_TOLERANCE = 1e-3  # half-precision decoders land this far outside [0, 1]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of a reward over images, and where the two numbers come from."""

    mean: float
    std: float
    source: str


@dataclass(frozen=True)
class ScoreDetails:
    """What a reward said about a batch.

    scores: [B], the number `score` returns. parts: raw score [B] of every part by name (one part unless it is a mix).
    truncated: [B], True where a prompt was longer than a text encoder reads.
    """

    scores: Tensor
    parts: dict[str, Tensor]
    truncated: list[bool]


class Reward(nn.Module):
    """Base of every reward. A subclass sets `name` and implements `_score`; inputs are validated here, once.

    A picture's score depends on that picture and its prompt alone. `score` is differentiable, once, with respect to
    `images` when they require a gradient, and computes in the reward's own precision inside anybody's autocast.
    `differentiable` says so; where it is False, only a method that needs no gradient learns from it.
    `memory_budget` (bytes) bounds the working memory of one network pass, with gradient or without, where
    `bytes_per_image` is implemented. `options_for_loading` are the options that `load` takes, `published_files` what
    must be on disk, the weights first.
    """

    name: str = ""
    needs_prompt: bool = True
    differentiable: bool = True
    memory_budget: int = 1 << 30
    statistics: Statistics = Statistics(0.0, 1.0, "taken as already standardised")
    options_for_loading: ClassVar[frozenset[str]] = frozenset()
    published_files: ClassVar[tuple[PublishedFile, ...]] = ()

    @classmethod
    def load(cls, source: Source, placement: Placement, **options: object) -> "Reward":
        """Build the reward from files of `source`; `weights` reaches the constructor only when given."""
        if source.weights is not None:
            options["weights"] = source.weights
        return cls(**options).to(device=placement.device, dtype=placement.dtype)

    @classmethod
    def locate(cls, source: Source) -> dict[PublishedFile, Path | None]:
        """Every file that `load` needs, with where it finds it; None for a missing one."""
        return locate(cls.published_files, source) if cls.published_files else {}

    def score(self, images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Score a batch.

        images: [B,3,H,W] floating point in [0,1], any B >= 1, H, W >= 1.
        prompts: a list of B strings, or of one string for all images; may be empty if `needs_prompt` is False.
        Returns [B] float32 (float64 for a reward loaded in float64) on the reward's device; higher is better.
        Raises TypeError or ValueError for NaN or infinite pixels, values outside [0,1], a wrong shape or dtype,
        no prompts, or a prompt count that is neither 1 nor B.
        """
        images, prompts = self._validated(images, prompts)
        gradient = images.requires_grad and torch.is_grad_enabled()
        step = self.images_per_pass(*images.shape[-2:], gradient)
        with own_precision(images.device):
            if gradient and not any(parameter.requires_grad for parameter in self.parameters()):
                scores = score_with_derivative(self._one_pass, images, prompts, step)
            else:
                passes = zip(images.split(step), _split(prompts, step), strict=True)
                scores = torch.cat([self._one_pass(part, texts) for part, texts in passes])
        return _plain(scores)

    def preprocess(self, images: Tensor) -> Pixels:
        """What `_score` looks at: images [B,3,H,W] in [0,1], or uint8 levels, as the reward wants them.

        As they are, in floating point, unless a subclass says otherwise.
        """
        return unit_range(images)

    def score_pixels(self, pixels: Pixels, prompts: list[str]) -> Tensor:
        """The reward without its preprocessing: what `preprocess` returned and prompts of length B -> [B]."""
        with own_precision(device_of(self)):
            return self._score(pixels, prompts)

    def details(self, images: Tensor, prompts: Sequence[str] = ()) -> ScoreDetails:
        """`score` without gradient, together with its parts and the `truncated` flag of each image's prompt."""
        images, prompts = self._validated(images, prompts)
        step = self.images_per_pass(*images.shape[-2:], gradient=False)
        passes = zip(images.split(step), _split(prompts, step), strict=True)
        with torch.no_grad(), own_precision(images.device):
            return _joined_details([self.details_of_pixels(self.preprocess(part), texts) for part, texts in passes])

    @torch.no_grad()
    def details_of_pixels(self, pixels: Pixels, prompts: list[str]) -> ScoreDetails:
        """`details` of what `preprocess` returned, in one pass; prompts of length B."""
        with own_precision(device_of(self)):
            parts = {name: self.checked(raw, len(prompts)) for name, raw in self._parts(pixels, prompts).items()}
            return ScoreDetails(_plain(self._combined(parts)), parts, self.truncated(prompts))

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether the reward reads only its beginning."""
        return [False] * len(prompts)

    def columns(self) -> list[str]:
        """Names of the numbers that `details` gives: the score's, and those of its parts where it has any."""
        return [self.name]

    def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
        """Estimated working memory in bytes of one image of that size; 0 means "do not split the batch"."""
        return 0

    def images_per_pass(self, height: int, width: int, gradient: bool) -> int:
        """How many images of that size one network pass takes within `memory_budget`; at least 1."""
        need = self.bytes_per_image(height, width, gradient)
        return sys.maxsize if need == 0 else max(1, self.memory_budget // need)

    def _score(self, pixels: Pixels, prompts: list[str]) -> Tensor:
        """pixels: what `preprocess` returned, prompts of length B ([""] * B if not needed) -> [B]."""
        raise NotImplementedError(f"{type(self).__name__} must implement _score(images, prompts)")

    def _parts(self, pixels: Pixels, prompts: list[str]) -> dict[str, Tensor]:
        """Raw scores [B] by part."""
        return {self.name: self._score(pixels, prompts)}

    def _combined(self, parts: dict[str, Tensor]) -> Tensor:
        """The score [B] that raw scores of the parts make."""
        return parts[self.name]

    def _one_pass(self, images: Tensor, prompts: list[str]) -> Tensor:
        return self.checked(self._score(self.preprocess(images), prompts), len(images))

    def _validated(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
        check_images(images)
        prompts = check_prompts(prompts, len(images), self.needs_prompt)
        return at_least_float32(images.to(device_of(self, images.device))), prompts

    def checked(self, scores: Tensor, batch: int) -> Tensor:
        """`scores`, or ValueError naming the reward if they are not one number for each of `batch` images."""
        if not isinstance(scores, Tensor) or tuple(scores.shape) != (batch,):
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"reward {self.name!r} returned {got}; expected a tensor of shape ({batch},), one number per image"
            )
        return scores


def check_images(images: Tensor) -> None:
    """Raise unless `images` is a finite floating-point tensor [B,3,H,W] in [0,1] with B >= 1."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images: got {type(images).__name__}, expected a torch tensor [B,3,H,W] in [0,1]")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        hint = "; channels last: permute(0, 3, 1, 2)" if images.ndim == 4 and images.shape[-1] in (3, 4) else ""
        raise ValueError(
            f"images: got shape {tuple(images.shape)}, expected [B,3,H,W] with B >= 1 (RGB, no alpha){hint}"
        )
    if not images.is_floating_point():
        raise TypeError(f"images: got dtype {images.dtype}, expected floating point in [0,1]; divide 8-bit by 255")
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise ValueError("images: contain NaN or infinite pixels; check the decoder's output (half precision?)")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"images: values span [{low:.4g}, {high:.4g}], expected [0,1]; "
            "map a [-1,1] decoder output with (x + 1) / 2 and clamp"
        )


def check_prompts(prompts: Sequence[str], batch: int, needed: bool = True) -> list[str]:
    """`prompts` as a list of `batch` strings; raise on a bare string, none, or a count other than 1 and `batch`."""
    if isinstance(prompts, str):
        raise TypeError("prompts: got a str, expected a list of strings; wrap it: [prompt]")
    prompts = list(prompts)
    wrong = [type(prompt).__name__ for prompt in prompts if not isinstance(prompt, str)]
    if wrong:
        raise TypeError(f"prompts: got an entry of type {wrong[0]}, expected strings")
    if not prompts and not needed:
        return [""] * batch
    if not prompts:
        raise ValueError(f"prompts: got none, expected 1 or {batch}; this reward judges images against their prompts")
    if len(prompts) not in (1, batch):
        raise ValueError(f"prompts: got {len(prompts)}, expected 1 (for all images) or {batch} (one per image)")
    return prompts * batch if len(prompts) == 1 else prompts


def device_of(module: nn.Module, default: torch.device | str = "cpu") -> torch.device:
    """Device of the module's first parameter or buffer, `default` if it has neither."""
    tensor = next(chain(module.parameters(), module.buffers()), None)
    return torch.device(default) if tensor is None else tensor.device


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """No graph, yet tensors that a later backward may save, even inside a host's inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _plain(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def _joined_details(passes: Sequence[ScoreDetails]) -> ScoreDetails:
    return ScoreDetails(
        torch.cat([found.scores for found in passes]),
        {name: torch.cat([found.parts[name] for found in passes]) for name in passes[0].parts},
        [flag for found in passes for flag in found.truncated],
    )


def _split(items: list[str], step: int) -> Iterator[list[str]]:
    return (items[start : start + step] for start in range(0, len(items), step))
