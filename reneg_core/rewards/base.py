"""The reward contract: images and prompts in, one number per image out, higher is better.

Shape legend: B batch, H height, W width of the images in pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

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

    Gradient follows autograd: `score` is differentiable with respect to `images` when they require it.
    `memory_budget` (bytes) bounds the working memory of one network pass where `bytes_per_image` is implemented.
    `options_for_loading` are the options of `load` that a mix passes on; `published_files` what must be on disk.
    """

    name: str = ""
    needs_prompt: bool = True
    memory_budget: int = 1 << 30
    statistics: Statistics = Statistics(0.0, 1.0, "taken as already standardised")
    options_for_loading: ClassVar[frozenset[str]] = frozenset()
    published_files: ClassVar[tuple[object, ...]] = ()

    @classmethod
    def load(
        cls,
        *,
        weights: object = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **options: object,
    ) -> "Reward":
        """Build the reward; `weights` reaches the constructor only when given."""
        if weights is not None:
            options["weights"] = weights
        return cls(**options).to(device=device, dtype=dtype)

    def score(self, images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """Score a batch.

        images: [B,3,H,W] floating point in [0,1], any B >= 1, H, W >= 1.
        prompts: a list of B strings, or of one string for all images; may be empty if `needs_prompt` is False.
        Returns [B] float32 (float64 for a reward loaded in float64) on the reward's device; higher is better.
        Raises TypeError or ValueError for NaN or infinite pixels, values outside [0,1], a wrong shape or dtype,
        no prompts, or a prompt count that is neither 1 nor B.
        """
        images, prompts = self._validated(images, prompts)
        step = self.images_per_pass(images)
        chunks = zip(images.split(step), _split(prompts, step), strict=True)
        scores = torch.cat([self._checked(self._score(part, texts), len(part)) for part, texts in chunks])
        return scores if scores.dtype == torch.float64 else scores.float()

    def details(self, images: Tensor, prompts: Sequence[str] = ()) -> ScoreDetails:
        """`score` together with its parts and the `truncated` flag of each image's prompt."""
        scores = self.score(images, prompts)
        return ScoreDetails(scores, {self.name: scores}, self._truncated_per_image(prompts, len(images)))

    def truncated(self, prompts: Sequence[str]) -> list[bool]:
        """For each prompt, whether the reward reads only its beginning."""
        return [False] * len(prompts)

    def bytes_per_image(self, height: int, width: int, gradient: bool) -> int:
        """Estimated working memory in bytes of one image of that size; 0 means "do not split the batch"."""
        return 0

    def images_per_pass(self, images: Tensor) -> int:
        """How many of `images` [B,3,H,W] one network pass takes within `memory_budget`."""
        gradient = images.requires_grad and torch.is_grad_enabled()
        need = self.bytes_per_image(*images.shape[-2:], gradient)
        return len(images) if need == 0 else min(len(images), max(1, self.memory_budget // need))

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """images [B,3,H,W] validated, prompts of length B ([""] * B if none were needed) -> [B]."""
        raise NotImplementedError(f"{type(self).__name__} must implement _score(images, prompts)")

    def _truncated_per_image(self, prompts: Sequence[str], batch: int) -> list[bool]:
        flags = self.truncated(prompts) or [False]
        return flags * batch if len(flags) == 1 else flags

    def _validated(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
        check_images(images)
        prompts = check_prompts(prompts, len(images), self.needs_prompt)
        device = module_device(self)
        return (images if device is None else images.to(device)), prompts

    def _checked(self, scores: Tensor, batch: int) -> Tensor:
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


def module_device(module: nn.Module) -> torch.device | None:
    """Device of the module's first parameter or buffer, None if it has neither."""
    tensor = next(module.parameters(), None)
    tensor = next(module.buffers(), None) if tensor is None else tensor
    return None if tensor is None else tensor.device


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """No graph, yet tensors that a later backward may save, even inside a host's inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _split(items: list[str], step: int) -> Iterator[list[str]]:
    return (items[start : start + step] for start in range(0, len(items), step))
