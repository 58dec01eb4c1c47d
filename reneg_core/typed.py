"""Plain values, as YAML, JSON and command lines give them, turned into what a dataclass says it holds."""

import difflib
import reprlib
import typing
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any

LARGEST = 2**64
"""Whole numbers are smaller than this in size: what a seed may be, and more than anything else needs."""
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 160
_brief.maxlong = 40


def shown(value: Any) -> str:
    """``repr`` of anything, cut to a length that a message can bear; deep and self-repeating values are cut too."""
    try:
        return _brief.repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a {type(value).__name__} too large to show"


def coerce(value: Any, hint: Any) -> Any:
    """``value`` as the annotated type: int, float, str, bool, a tuple of these, one of them or None, or one of several.

    Errors: TypeError or ValueError if it cannot be that without a guess.
    """
    if isinstance(hint, UnionType):
        return _coerce_any(value, typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return _coerce_tuple(value, typing.get_args(hint))
    if hint is float and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError
    if hint is int and abs(value) >= LARGEST:
        raise OverflowError
    return value


def _coerce_any(value: Any, kinds: tuple[Any, ...]) -> Any:
    """``value`` as the first of ``kinds`` that it can be."""
    if value is None and type(None) in kinds:
        return None
    first, *others = (kind for kind in kinds if kind is not type(None))
    try:
        return coerce(value, first)
    except (TypeError, ValueError):
        if not others:
            raise
    return _coerce_any(value, tuple(others))


def _coerce_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping):
        raise TypeError
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(coerce(item, kinds[0]) for item in value)
    if len(value) != len(kinds):
        raise TypeError
    return tuple(coerce(item, kind) for item, kind in zip(value, kinds, strict=True))


def type_name(hint: Any) -> str:
    """The annotated type in words, for messages."""
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if isinstance(hint, UnionType):
        return " or ".join("nothing" if kind is type(None) else type_name(kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if kinds[1:] == (Ellipsis,):
            return f"a list, each {type_name(kinds[0])}"
        return "a list of " + " and ".join(type_name(kind) for kind in kinds)
    return names.get(hint, str(hint))


def unknown(name: object, known: Collection[str]) -> str:
    """One sentence for a name that is not ``known``, with the nearest that is."""
    text = name if isinstance(name, str) and len(name) <= 80 else shown(name)
    near = difflib.get_close_matches(text, known, 1)
    return f"{text}: unknown setting, " + (f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}.")


def read(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """The values that fit ``hints`` (name to type), and one sentence for each that does not."""
    accepted, faults = {}, []
    for name, value in values.items():
        if name not in hints:
            faults.append(prefix + unknown(name, hints))
            continue
        try:
            accepted[name] = coerce(value, hints[name])
        except (TypeError, ValueError, OverflowError):
            faults.append(f"{prefix}{name}: got {shown(value)}, expected {type_name(hints[name])}.")
    return accepted, faults
