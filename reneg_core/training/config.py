"""Settings of a training run and of an adaptation, checked in one pass, read from and written to YAML."""

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from ..clips import FRAMES
from ..sampling import Jitter, Sampling
from ..typed import read
from .decoding import AUTO, Decoder
from .names import normalised

EMBEDDING_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
"""What ``init`` ends in where it names a file."""
LEAP = "leap"
"""What ``through`` is for a gradient that leaps."""
AHEAD = 4
"""Rollouts take so many micro-batches at once where nothing else is said."""
C = TypeVar("C", bound="ClimbConfig")


class ConfigError(ValueError):
    """Every fault of a configuration, one per line."""


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one :class:`ConfigError` for all faults, if there are any."""
    if faults:
        raise ConfigError("The configuration is not usable:\n" + "\n".join(f"- {fault}" for fault in faults))


@dataclass(frozen=True)
class ClimbConfig:
    """What all climbing on a reward has in common, and how its settings are read, written and checked.

    learning_rate, betas: AdamW's; sampling: how pictures are made (the paper: 30 DDIM steps, guidance scale 7.5);
    checkpointing: recompute activations of denoiser and decoder in the backward pass; decoder: what decodes the
    pictures that gradients come from (:mod:`.decoding`); judged_frames: of a video, how many frames are decoded and
    judged, evenly spaced (0 = all).
    """

    learning_rate: float = 5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    sampling: Sampling = field(default_factory=Sampling)
    checkpointing: bool = False
    decoder: str = AUTO
    judged_frames: int = FRAMES

    def __post_init__(self) -> None:
        raise_faults(self.faults())

    @classmethod
    def from_mapping(cls: type[C], values: Mapping[str, Any]) -> C:
        """Build from names and plain values, as YAML gives them; ConfigError lists unknown names and wrong types.

        ``sampling`` and ``jitter`` are mappings; ``sampling.steps`` and the like, and the older flat names
        (:data:`reneg_core.training.names.FORMER`), are read too.
        """
        values, hints = normalised(values), typing.get_type_hints(cls)
        nested = {name: kind for name, kind in hints.items() if kind in (Sampling, Jitter)}
        plain = {part.name: hints[part.name] for part in fields(cls) if part.name not in nested}
        accepted, faults = read({name: value for name, value in values.items() if name not in nested}, plain)
        for name, kind in nested.items():
            try:
                accepted |= {name: kind.from_mapping(values[name])} if name in values else {}
            except ValueError as error:
                faults.append(f"{name}: {error}")
        raise_faults(faults)
        return cls(**accepted)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as YAML holds them; :meth:`from_mapping` gives an equal configuration back."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {
            name: value.to_mapping() if isinstance(value, Sampling | Jitter) else _plain(value)
            for name, value in values.items()
        }

    def faults(self) -> list[str]:
        """One sentence for everything that is wrong."""
        numbers = {part.name: getattr(self, part.name) for part in fields(self)}
        endless = {k: v for k, v in numbers.items() if isinstance(v, float) and v in (math.inf, -math.inf)}
        found = [f"{name}: got {value}, expected a finite number." for name, value in endless.items()]
        if not self.learning_rate > 0:
            found.append(f"learning_rate: got {self.learning_rate}, expected more than 0, for example 5e-3.")
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas: got {self.betas}, expected two numbers from 0 to below 1.")
        try:
            Decoder.read(self.decoder)
        except ValueError as error:
            found.append(f"decoder: {error}")
        return found + self.below(0, "judged_frames")

    def below(self, low: int, names: str) -> list[str]:
        """A fault for each named setting that is under ``low``."""
        found = ((name, getattr(self, name)) for name in names.split())
        return [f"{name}: got {value}, expected {low} or more." for name, value in found if not value >= low]


@dataclass(frozen=True)
class LoopConfig(ClimbConfig):
    """A run of many steps over many prompts, whatever it learns.

    steps: optimizer steps; batch_size: samples per step over all processes; micro_batch: samples in one pass (ours);
    warmup: linear steps before the cosine to 0; weight_decay; gradient_clip: norm limit, 0 = off.
    validate_every, validation_pairs: steps between validations, (prompt, seed) pairs in each; checkpoint_every,
    checkpoint_minutes: steps, and minutes (0 = any number), between checkpoints, whichever is over first once a step
    has ended; keep_checkpoints: how many stay; patience: validations without a new best before stopping, 0 = never;
    watch_drop: how far the watched reward may fall below its start before what was learned is no longer taken as the
    best, None = it is only shown; with patience such validations count towards stopping.
    """

    steps: int = 4000
    batch_size: int = 64
    micro_batch: int = 8
    warmup: int = 0
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    seed: int = 0
    validate_every: int = 50
    validation_pairs: int = 32
    checkpoint_every: int = 50
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 2
    patience: int = 0
    watch_drop: float | None = None

    def faults(self) -> list[str]:
        found = super().faults()
        found += self.below(1, "steps batch_size micro_batch validate_every validation_pairs checkpoint_every")
        found += self.below(1, "keep_checkpoints")
        found += self.below(0, "warmup weight_decay gradient_clip seed patience checkpoint_minutes")
        return found + (self.below(0, "watch_drop") if self.watch_drop is not None else [])


@dataclass(frozen=True)
class RolloutConfig(ClimbConfig):
    """Where along a trajectory the gradient by the negative is taken.

    window: first and one past the last step index that may be a gradient point, None = the last third, which is the
    paper's last 10 of 30; points: gradient points per rollout; through: denoising steps that the gradient passes
    through from each point on, 1 = the paper's one-step estimate, 0 = to the end, "leap" = the point's and one at the
    level half way to the end.
    """

    window: tuple[int, int] | None = None
    points: int = 1
    through: int | str = 1

    @property
    def gradient_window(self) -> tuple[int, int]:
        """The window as step indices of ``sampling.steps``."""
        steps = self.sampling.steps
        return self.window or (steps - max(1, round(steps / 3)), steps)

    def window_of(self, sampling: Sampling) -> tuple[int, int]:
        """The window for another number of steps: in proportion, at least one step, where guidance acts.

        Errors: ValueError if guidance acts nowhere in it.
        """
        share = sampling.steps / self.sampling.steps
        first, last = (round(edge * share) for edge in self.gradient_window)
        first = min(first, sampling.steps - 1)
        active = [i for i in range(first, max(first + 1, last)) if sampling.guidance.active(i / sampling.steps)]
        if not active:
            raise ValueError(
                f"Got the window {first}..{last} of {sampling.steps} steps, where guidance never acts "
                f"(interval {sampling.guidance.start:g}..{sampling.guidance.end:g})."
            )
        return active[0], active[-1] + 1

    def faults(self) -> list[str]:
        found = [*self.below(1, "points"), *super().faults()]
        if self.through != LEAP and (isinstance(self.through, str) or self.through < 0):
            found.append(f"through: got {self.through!r}, expected 0 or more, or {LEAP}.")
        guidance = self.sampling.guidance
        guided = [] if guidance.attention else _guided("sampling.guidance_scale", guidance.scale)
        return found + guided + ([] if guided else self._window_faults(self.sampling))

    def _window_faults(self, sampling: Sampling) -> list[str]:
        first, last = self.gradient_window
        if not 0 <= first < last <= self.sampling.steps:
            return [f"window: got {first}..{last}, expected 0 <= first < last <= sampling.steps {self.sampling.steps}."]
        try:
            first, last = self.window_of(sampling)
        except ValueError as error:
            return [f"window: {error}"]
        if self.points > last - first:
            return [f"points: got {self.points}, expected at most the {last - first} steps of the window."]
        return []


@dataclass(frozen=True)
class TrainConfig(RolloutConfig, LoopConfig):
    """Global training. Defaults are ReNeg's recipe (arXiv 2412.19637); what the paper does not state is marked ours.

    jitter: what of ``sampling`` is drawn anew at each step (ours: nothing); the window follows the drawn step count in
    proportion, validation always uses ``sampling``. warmup (ours: 0); weight_decay (ours: 0, since decay pulls towards
    0 and not towards the empty prompt); gradient_clip (ours: off).
    init: "" = the empty prompt, otherwise a negative prompt or the path of an embedding.
    norm_limit: largest distance from the start per token, in units of the start's mean token norm, 0 = off (ours).
    draws: how often a step draws its gradient points, for as many equal parts of its batch (ours: once, for all).
    rollout_batch: samples in one pass that needs no gradient, 0 = four micro-batches.
    """

    jitter: Jitter = field(default_factory=Jitter)
    init: str = ""
    norm_limit: float = 0.0
    draws: int = 1
    rollout_batch: int = 0

    @property
    def rollout_rows(self) -> int:
        """``rollout_batch`` as a number of samples."""
        return self.rollout_batch or AHEAD * self.micro_batch

    def faults(self) -> list[str]:
        found = super().faults() + self.below(0, "norm_limit rollout_batch") + self._jitter_faults()
        if not 1 <= self.draws <= max(1, self.batch_size):
            found.append(f"draws: got {self.draws}, expected 1 to batch_size {self.batch_size}.")
        return found

    def _jitter_faults(self) -> list[str]:
        scales = [fault for scale in self.jitter.guidance_scale for fault in _guided("jitter.guidance_scale", scale)]
        attention = self.sampling.guidance.attention
        if attention and self.jitter.guidance_scale:
            return [*scales, "jitter.guidance_scale: expected none with attention guidance, which is for scale 1."]
        if not attention and _guided("", self.sampling.guidance.scale):
            return scales
        drawn = (self.sampling.changed(steps=steps) for steps in self.jitter.steps)
        return scales + [f"jitter.steps: {fault}" for one in drawn for fault in self._window_faults(one)]


@dataclass(frozen=True)
class AdaptConfig(RolloutConfig):
    """Per-sample adaptation (arXiv 2412.19637): at most 10 steps, patience 3, the best is kept.

    Learning rate, gradient points and micro-batch are not stated in the paper; these are ours.
    """

    points: int = 3
    steps: int = 10
    patience: int = 3
    micro_batch: int = 8

    def faults(self) -> list[str]:
        return super().faults() + self.below(1, "steps patience micro_batch")

    @classmethod
    def for_sampling(cls, sampling: Sampling, **settings: Any) -> "AdaptConfig":
        """The default adaptation for ``sampling``: its own number of gradient points, or as many as the window has.

        settings: any others, as plain values. Errors: as :meth:`from_mapping`.
        """
        first, last = cls.from_mapping({**settings, "sampling": sampling.to_mapping(), "points": 1}).window_of(sampling)
        return cls.from_mapping(
            {"points": min(cls.points, last - first), **settings, "sampling": sampling.to_mapping()}
        )


def recorded_passes(through: int | str, left: int) -> int:
    """Denoising steps that a gradient passes through from a point on, ``left`` steps before the end."""
    return min({LEAP: 2}.get(through, through) or left, left)


def _guided(name: str, scale: float) -> list[str]:
    """A fault for a guidance scale at which the negative has no effect, or no finite one."""
    if 1 < scale < float("inf"):
        return []
    return [f"{name}: got {scale}, expected more than 1: at 1 the negative has no effect."]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
