"""A ComfyUI that can do nothing, for importing the nodes' own code where there is no host."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

MODULES = (
    "comfy",
    "comfy.ldm",
    "comfy.ldm.modules",
    "comfy.ldm.modules.attention",
    "comfy.ldm.modules.diffusionmodules",
    "comfy.ldm.modules.diffusionmodules.openaimodel",
    "comfy.model_management",
    "comfy.model_patcher",
    "comfy.sample",
    "comfy.samplers",
    "comfy.utils",
    "comfy_api",
    "comfy_api.latest",
    "folder_paths",
    "latent_preview",
)


class Base:
    """What the nodes and the host's samplers inherit from."""


@contextmanager
def imported(*names: str) -> Iterator[list[Any]]:
    """The modules ``nodes.<name>`` on a host of doubles; afterwards neither is left behind."""
    before = dict(sys.modules)
    for name in MODULES:
        sys.modules[name] = double(name)
    sys.modules["comfy.samplers"].Sampler = Base
    sys.modules["comfy_api.latest"].ComfyExtension = Base
    sys.modules["comfy_api.latest"].io.ComfyNode = Base
    try:
        yield [importlib.import_module(f"nodes.{name}") for name in names]
    finally:
        for name in {*sys.modules} - {*before} | {*MODULES}:
            if name in MODULES or name.split(".")[0] == "nodes":
                sys.modules.pop(name, None)
        sys.modules.update({name: module for name, module in before.items() if name in MODULES})


def double(name: str) -> ModuleType:
    """A module whose every attribute is a double."""
    module = MagicMock(name=name)
    module.__path__, module.__spec__ = [], None
    return module
