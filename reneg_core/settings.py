"""How pictures are made, as plain values: :class:`Sampling`, the picture's :class:`Size`, and the :class:`Jitter` that
training may draw from. No tensors and no models, so that everything may import it."""

import math
import random
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from .guidance import Guidance
from .seeds import derive_seed
from .typed import read

SPACINGS = ("model", "leading", "trailing", "karras")
SOLVER_WORDS = {"euler": "Euler", "ddim": "DDIM", "dpmpp_2m": "DPM-Solver++(2M)"}

S = TypeVar("S", "Sampling", "Jitter")


@dataclass(frozen=True)
class Size:
    """A picture's height and width in pixels, and a video's number of frames; None is the model's own."""

    height: int | None = None
    width: int | None = None
    frames: int | None = None


NATIVE = Size()


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: the one value that training, evaluation, files and nodes carry.

    solver: a name in ``SOLVER_WORDS``; steps: solver steps, 1 or more; spacing: where the noise levels lie, a name in
    ``SPACINGS`` ("model": as the model's own scheduler says); guidance: scale, interval, rescale; size: of the picture.
    Errors: ValueError with every fault.
    """

    solver: str = "euler"
    steps: int = 30
    spacing: str = "model"
    guidance: Guidance = field(default_factory=Guidance)
    size: Size = NATIVE

    def __post_init__(self) -> None:
        faults = _bad_choices((self.solver,), (self.spacing,), (self.steps,))
        if not math.isfinite(self.guidance.scale):
            faults.append(f"Got the guidance scale {self.guidance.scale}, expected a finite number.")
        if faults:
            raise ValueError(" ".join(faults))

    def to_mapping(self) -> dict[str, Any]:
        """Flat plain values, as YAML and JSON hold them; :meth:`from_mapping` gives an equal value back."""
        return {
            "solver": self.solver,
            "steps": self.steps,
            "spacing": self.spacing,
            **{f"guidance_{part.name}": getattr(self.guidance, part.name) for part in fields(Guidance)},
            **{part.name: getattr(self.size, part.name) for part in fields(Size)},
        }

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Sampling":
        """Build from the names of :meth:`to_mapping`; what is missing takes its default.

        Errors: ValueError for unknown names, values of another type, and what the constructor refuses.
        """
        return _built(cls, values, SAMPLING_HINTS)

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> "Sampling":
        parts = {name: values[name] for name in ("solver", "steps", "spacing") if name in values}
        guidance = {p.name: values[f"guidance_{p.name}"] for p in fields(Guidance) if f"guidance_{p.name}" in values}
        size = {part.name: values[part.name] for part in fields(Size) if part.name in values}
        return cls(**parts, guidance=Guidance(**guidance), size=Size(**size))

    def changed(self, **values: Any) -> "Sampling":
        """The same with other values under the names of :meth:`to_mapping`: ``changed(steps=20, guidance_scale=3)``."""
        return Sampling.from_mapping({**self.to_mapping(), **values})

    def at_scale(self, scale: float) -> "Sampling":
        """The same with another guidance scale."""
        return replace(self, guidance=replace(self.guidance, scale=scale))

    def equals(self, other: "Sampling") -> bool:
        """Whether both make the same pictures: ``ddim`` and ``euler`` are two names of one solver."""
        first, second = (replace(s, solver="euler" if s.solver == "ddim" else s.solver) for s in (self, other))
        return first == second

    def describe(self) -> str:
        """In words: "10 Euler steps, trailing spacing, guidance scale 3"; neutral settings are left out."""
        guidance, size = self.guidance, self.size
        parts = [f"{self.steps} {SOLVER_WORDS[self.solver]} step{'s' * (self.steps != 1)}", f"{self.spacing} spacing"]
        parts.append(f"guidance scale {guidance.scale:g}")
        if (guidance.start, guidance.end) != (0, 1):
            parts.append(f"guidance from {guidance.start:g} to {guidance.end:g}")
        if guidance.attention:
            parts.append(f"attention guidance {guidance.attention:g}")
        if guidance.rescale:
            parts.append(f"rescale {guidance.rescale:g}")
        if size.width or size.height:
            parts.append(f"{size.width or 'native'}x{size.height or 'native'} pixels")
        if size.frames:
            parts.append(f"{size.frames} frames")
        return ", ".join(parts)


@dataclass(frozen=True)
class Jitter:
    """What training draws anew at each step, each from its own set; an empty set keeps the base's value.

    Errors: ValueError with every fault.
    """

    solver: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    spacing: tuple[str, ...] = ()
    guidance_scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        faults = _bad_choices(self.solver, self.spacing, self.steps)
        if faults:
            raise ValueError(" ".join(faults))

    def __bool__(self) -> bool:
        """Whether anything varies."""
        return any(getattr(self, part.name) for part in fields(self))

    def to_mapping(self) -> dict[str, list[Any]]:
        """The sets as plain lists."""
        return {part.name: list(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Jitter":
        """Build from names and lists; ValueError for unknown names and values of another type."""
        return _built(cls, values, typing.get_type_hints(cls))

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> "Jitter":
        return cls(**values)

    def draw(self, base: Sampling, *seed: object) -> Sampling:
        """``base`` with one value from every set that is not empty; depends on the seed's parts only."""
        source = random.Random(derive_seed("jitter", *seed))
        sets = {part.name: getattr(self, part.name) for part in fields(self)}
        return base.changed(**{name: source.choice(values) for name, values in sets.items() if values})


SAMPLING_HINTS: dict[str, Any] = {
    **{name: typing.get_type_hints(Sampling)[name] for name in ("solver", "steps", "spacing")},
    **{f"guidance_{name}": hint for name, hint in typing.get_type_hints(Guidance).items()},
    **typing.get_type_hints(Size),
}
"""The names of :meth:`Sampling.to_mapping` and their types."""


def _built(cls: type[S], values: Mapping[str, Any], hints: Mapping[str, Any]) -> S:
    if not isinstance(values, Mapping):
        raise ValueError(f"Got {values!r}, expected a mapping with some of {', '.join(hints)}.")
    accepted, faults = read(values, hints)
    if faults:
        raise ValueError(" ".join(faults))
    return cls._of(accepted)


def _bad_choices(solvers: tuple[str, ...], spacings: tuple[str, ...], steps: tuple[int, ...]) -> list[str]:
    """One sentence for every name that there is not and every number of steps that cannot be."""
    found = []
    for what, names, known in (("solver", solvers, SOLVER_WORDS), ("spacing", spacings, SPACINGS)):
        found += [f"Got {what} {name!r}, expected one of {', '.join(known)}." for name in names if name not in known]
    return found + [
        f"Got {number!r} sampling steps, expected a whole number of 1 or more."
        for number in steps
        if isinstance(number, bool) or not isinstance(number, int) or number < 1
    ]
