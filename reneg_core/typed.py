"""Plain values, as YAML, JSON and command lines give them, turned into what a dataclass says it holds."""

import difflib
import typing
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any


def coerce(value: Any, hint: Any) -> Any:
    """``value`` as the annotated type: int, float, str, bool, a tuple of these, or one of them or None.

    Errors: TypeError or ValueError if it cannot be that without a guess.
    """
    if isinstance(hint, UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if value is None else coerce(value, options[0])
    if typing.get_origin(hint) is tuple:
        return _coerce_tuple(value, typing.get_args(hint))
    if hint is float and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError
    return value


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
        return type_name(next(option for option in typing.get_args(hint) if option is not type(None))) + " or nothing"
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if kinds[1:] == (Ellipsis,):
            return f"a list, each {type_name(kinds[0])}"
        return "a list of " + " and ".join(type_name(kind) for kind in kinds)
    return names.get(hint, str(hint))


def unknown(name: object, known: Collection[str]) -> str:
    """One sentence for a name that is not ``known``, with the nearest that is."""
    near = difflib.get_close_matches(str(name), known, 1)
    return f"{name}: unknown setting, " + (f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}.")


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
            faults.append(f"{prefix}{name}: got {value!r}, expected {type_name(hints[name])}.")
    return accepted, faults
