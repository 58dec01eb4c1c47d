"""Node schemas that use what a newer host offers and still load on the oldest supported one."""

from typing import Any

from comfy_api.latest import io

from .host import probing

CATEGORY = "ReNeg"
Embedding = io.Custom("RENEG_EMBEDDING")
Reward = io.Custom("RENEG_REWARD")
Settings = io.Custom("RENEG_TRAINING_SETTINGS")


def schema(**values: Any) -> io.Schema:
    """``io.Schema`` without the fields this host does not know (search aliases, for example)."""
    known = probing.schema_fields()
    return io.Schema(**{"category": CATEGORY} | {key: value for key, value in values.items() if key in known})


def advanced(kind: type, *args: Any, **options: Any) -> io.Input:
    """An input of ``kind`` (io.Int, io.Float, ...) that hosts which can do so fold away under "advanced"."""
    if probing.folds_inputs(kind):
        options["advanced"] = True
    return kind.Input(*args, **options)


def download_input(what: str, folder: str) -> io.Input:
    """A switch that allows a download."""
    return io.Boolean.Input(
        "download",
        optional=True,
        default=False,
        tooltip=f"{what} is downloaded from its published address into {folder} and checked. Off: nothing is.",
    )


def not_in(name: str, value: str | None, allowed: list[str]) -> str:
    """A message if ``value`` is given and not allowed, else the empty string; this host's oldest version does not
    check a choice itself."""
    if value is None or value in allowed:
        return ""
    return f"{name}: got {value!r}, expected one of {', '.join(allowed[:40])}."
