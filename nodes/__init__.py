"""The ComfyUI nodes: they unpack, call ``reneg_core`` and wrap. Only ``nodes/host`` knows ComfyUI's inner modules."""

import importlib
import logging
from types import ModuleType

from comfy_api.latest import ComfyExtension, io

from .host.files import register_folders

FAMILIES = (
    "tiny",
    "embedding",
    "sampling",
    "rewards",
    "facts",
    "training",
    "tuning",
    "older",
    "adapting",
    "compare",
    "video",
)


def load_nodes(names: tuple[str, ...] = FAMILIES) -> list[type[io.ComfyNode]]:
    """The nodes of every family whose packages are installed; what is missing is said once and leaves the others."""
    return [node for name in names for node in getattr(_family(name), "NODES", [])]


def _family(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith((__package__, "reneg_core")):
            raise
        logging.warning(
            "ReNeg: the %s nodes are not available because the package %s is missing; the other nodes work. "
            "Install it in ComfyUI's Python and restart.",
            name,
            error.name,
        )
        return None


class ReNegExtension(ComfyExtension):
    """Everything this pack adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return load_nodes()


async def comfy_entrypoint() -> ReNegExtension:
    """Called by ComfyUI when it loads the pack."""
    register_folders()
    return ReNegExtension()
