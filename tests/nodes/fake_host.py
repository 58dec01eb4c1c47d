"""A ComfyUI that can do nothing, for importing the nodes' own code where there is no host."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    "comfy.sd",
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


@dataclass
class Schema:
    """What a node tells the host about itself, on a host that knows every field the pack uses."""

    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Any]
    outputs: list[Any]
    hidden: list[Any] = field(default_factory=list)
    search_aliases: list[str] = field(default_factory=list)
    is_output_node: bool = False


class Part:
    """An input or output of a node: its id and what is said about it."""

    def __init__(self, id: str = "", **said: Any) -> None:
        vars(self).update({"id": id, "tooltip": "", "options": [], **said})


class Kind:
    """A type of inputs and outputs."""

    Input = Output = Part


class Kinds:
    """``io``: every kind of input and output there is."""

    Schema, ComfyNode, Input = Schema, Base, Part
    Hidden = NodeOutput = MagicMock()

    def __getattr__(self, name: str) -> type[Kind]:
        return Kind

    def Custom(self, name: str) -> type[Kind]:
        return Kind


def schemas() -> dict[str, Schema]:
    """What every node says about itself, by its id."""
    with imported():
        sys.modules["comfy_api.latest"].io = Kinds()
        files = importlib.import_module("nodes.host.files")
        files.embedding_names = files.reward_weight_names = files.prompt_files = lambda: []
        nodes = importlib.import_module("nodes").load_nodes()
        return {made.node_id: made for made in (node.define_schema() for node in nodes)}


def double(name: str) -> ModuleType:
    """A module whose every attribute is a double."""
    module = MagicMock(name=name)
    module.__path__, module.__spec__ = [], None
    return module
