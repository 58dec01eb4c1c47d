"""ReNeg for ComfyUI: the pack's front door. Without ComfyUI this file does nothing."""

import importlib.util
import sys
from pathlib import Path

WEB_DIRECTORY = "./web"


def _register_core() -> None:
    """Make the pack's own ``reneg_core`` importable by its name, for the nodes and for users' reward files.

    ComfyUI imports a pack under its folder's path, so the package beside this file has no name of its own yet.
    """
    if "reneg_core" in sys.modules:
        return
    folder = Path(__file__).parent / "reneg_core"
    spec = importlib.util.spec_from_file_location(
        "reneg_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["reneg_core"] = module
    spec.loader.exec_module(module)


try:
    import comfy_api.latest  # noqa: F401
except ImportError:
    __all__ = ["WEB_DIRECTORY"]
else:
    _register_core()
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
