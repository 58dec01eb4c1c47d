"""The names that settings go by: nested, dotted, and as older files have them, all brought into one form."""

from collections.abc import Mapping
from typing import Any

NESTED = ("sampling", "jitter")

FORMER = {
    "sampling_steps": "sampling.steps",
    "solver": "sampling.solver",
    "guidance_scale": "sampling.guidance_scale",
    "height": "sampling.height",
    "width": "sampling.width",
}
"""Flat names of older configurations and what they are now."""


def normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with ``sampling`` and ``jitter`` as mappings, whatever form they came in.

    A later entry wins: ``{"sampling": {"steps": 10, "solver": "euler"}, "sampling.steps": 20}`` has 20 Euler steps.
    """
    found: dict[str, Any] = {}
    for written, value in values.items():
        name = FORMER.get(str(written), str(written))
        group, dot, inner = name.partition(".")
        if dot and group in NESTED:
            merge(found, {group: {inner: value}})
        else:
            merge(found, {name: value})
    return found


def merge(values: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``more`` laid over ``values`` (in place), the nested mappings entry by entry."""
    for name, value in more.items():
        before = values.get(name)
        both = name in NESTED and isinstance(before, Mapping) and isinstance(value, Mapping)
        values[name] = {**before, **value} if both else value
    return values
