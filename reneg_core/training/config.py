"""Settings of a training run and of an adaptation, checked in one pass, read from and written to YAML."""

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, TypeVar

from ..guidance import Guidance
from ..sampling import SOLVERS

C = TypeVar("C", bound="RolloutConfig")


class ConfigError(ValueError):
    """Every fault of a configuration, one per line."""


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one :class:`ConfigError` for all faults, if there are any."""
    if faults:
        raise ConfigError("The configuration is not usable:\n" + "\n".join(f"- {fault}" for fault in faults))


@dataclass(frozen=True)
class RolloutConfig:
    """How trajectories are integrated and where their gradient is taken.

    sampling_steps: DDIM steps T; window: first and one past the last step index that may be a gradient point, None =
    the last third, which is the paper's last 10 of 30; points: gradient points per rollout; through: denoising steps
    that the gradient passes through from each point on, 1 = the paper's one-step estimate; guidance_scale: CFG inside
    training; solver: euler (= DDIM) or dpmpp_2m; height, width: pixels, None = the model's native size;
    checkpointing: recompute activations of denoiser, decoder and reward in the backward pass;
    learning_rate, betas: AdamW's.
    """

    learning_rate: float = 5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    sampling_steps: int = 30
    window: tuple[int, int] | None = None
    points: int = 1
    through: int = 1
    guidance_scale: float = 7.5
    solver: str = "euler"
    height: int | None = None
    width: int | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        raise_faults(self.faults())

    @classmethod
    def from_mapping(cls: type[C], values: Mapping[str, Any]) -> C:
        """Build from names and plain values, as YAML gives them; ConfigError lists unknown names and wrong types."""
        hints = typing.get_type_hints(cls)
        known = {field.name for field in fields(cls)}
        faults, accepted = [], {}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                faults.append(f"{name}: unknown setting" + (f", did you mean {near[0]}?" if near else "."))
                continue
            try:
                accepted[name] = _coerce(value, hints[name])
            except (TypeError, ValueError):
                faults.append(f"{name}: got {value!r}, expected {_type_name(hints[name])}.")
        raise_faults(faults)
        return cls(**accepted)

    @property
    def gradient_window(self) -> tuple[int, int]:
        """The window as step indices, resolved for ``sampling_steps``."""
        return self.window or (self.sampling_steps - max(1, round(self.sampling_steps / 3)), self.sampling_steps)

    def guidance(self) -> Guidance:
        return Guidance(self.guidance_scale)

    def faults(self) -> list[str]:
        """One sentence for everything that is wrong."""
        found = self.below(1, "sampling_steps points through")
        if not self.learning_rate > 0:
            found.append(f"learning_rate: got {self.learning_rate}, expected more than 0, for example 5e-3.")
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"betas: got {self.betas}, expected two numbers from 0 to below 1.")
        if self.guidance_scale <= 1:
            found.append(
                f"guidance_scale: got {self.guidance_scale}, expected more than 1: at 1 the negative has no effect."
            )
        if self.solver not in SOLVERS:
            found.append(f"solver: got {self.solver!r}, expected one of {', '.join(SOLVERS)}.")
        return found + self._window_faults()

    def _window_faults(self) -> list[str]:
        first, last = self.gradient_window
        if not 0 <= first < last <= self.sampling_steps:
            return [f"window: got {first}..{last}, expected 0 <= first < last <= sampling_steps {self.sampling_steps}."]
        if self.points > last - first:
            return [f"points: got {self.points}, expected at most the {last - first} steps of the window."]
        return []

    def below(self, low: int, names: str) -> list[str]:
        """A fault for each named setting that is under ``low``."""
        found = ((name, getattr(self, name)) for name in names.split())
        return [f"{name}: got {value}, expected {low} or more." for name, value in found if not value >= low]


@dataclass(frozen=True)
class TrainConfig(RolloutConfig):
    """Global training. Defaults are ReNeg's recipe (arXiv 2412.19637); what the paper does not state is marked ours.

    steps: optimizer steps; batch_size: samples per step over all processes; micro_batch: samples in one pass (ours);
    warmup: linear steps before the cosine to 0 (ours: 0); weight_decay (ours: 0, since decay pulls towards 0 and not
    towards the empty prompt); gradient_clip: norm limit, 0 = off (ours).
    init: "" = the empty prompt, otherwise a negative prompt or the path of an embedding.
    norm_limit: largest distance from the start per token, in units of the start's mean token norm, 0 = off (ours).
    validate_every, validation_pairs: steps between validations, (prompt, seed) pairs in each; checkpoint_every,
    keep_checkpoints: steps between checkpoints, how many stay; patience: validations without a new best before
    stopping, 0 = never; watch_drop: how far the watched reward may fall below its start before an embedding is no
    longer taken as the best, None = it is only shown; with patience such validations count towards stopping.
    """

    steps: int = 4000
    batch_size: int = 64
    micro_batch: int = 8
    warmup: int = 0
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    init: str = ""
    norm_limit: float = 0.0
    seed: int = 0
    validate_every: int = 50
    validation_pairs: int = 32
    checkpoint_every: int = 50
    keep_checkpoints: int = 2
    patience: int = 0
    watch_drop: float | None = None

    def faults(self) -> list[str]:
        found = super().faults()
        found += self.below(1, "steps batch_size micro_batch validate_every validation_pairs checkpoint_every")
        found += self.below(1, "keep_checkpoints")
        found += self.below(0, "warmup weight_decay gradient_clip norm_limit seed patience")
        if self.watch_drop is not None:
            found += self.below(0, "watch_drop")
        return found


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


def _coerce(value: Any, hint: Any) -> Any:
    """``value`` as the annotated type; raises TypeError or ValueError."""
    if isinstance(hint, UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else _coerce(value, options[0])
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if isinstance(value, str) or len(value) != len(inner):
            raise TypeError
        return tuple(_coerce(item, kind) for item, kind in zip(value, inner, strict=True))
    if hint is float and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError
    return value


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if isinstance(hint, UnionType):
        return _type_name(next(option for option in typing.get_args(hint) if option is not type(None))) + " or nothing"
    if typing.get_origin(hint) is tuple:
        return "a list of " + " and ".join(_type_name(kind) for kind in typing.get_args(hint))
    return names.get(hint, str(hint))
