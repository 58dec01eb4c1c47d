"""These tests run in ComfyUI's own Python, with its modules imported: started by ``test_inside.py``, not by hand."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HOST, BASE = Path(os.environ["COMFYUI_PATH"]), Path(os.environ["RENEG_TEST_BASE"])
PACK = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(HOST), str(Path(__file__).parent)]

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
comfy.cli_args.args.base_directory = str(BASE)

import comfy.model_management  # noqa: E402

import nodes  # noqa: E402


def load_pack() -> Any:
    """Import the pack by its folder, as ComfyUI does."""
    spec = importlib.util.spec_from_file_location(
        "reneg_pack", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["reneg_pack"] = module
    spec.loader.exec_module(module)
    importlib.import_module("reneg_pack.nodes.host.files").register_folders()
    return module


PACK_MODULE = load_pack()


@pytest.fixture(autouse=True)
def _inference_mode() -> Any:
    """Every node of the host runs in inference mode; so does every test."""
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def _no_stop() -> Any:
    """A stop request of one test is not left to the next."""
    comfy.model_management.interrupt_current_processing(False)
    yield
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture(scope="session")
def checkpoint() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the small SD1.5 checkpoint, loaded as the host loads it."""
    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint("reneg-test-sd15.safetensors")[:3]


@pytest.fixture(scope="session")
def world() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the embedded tiny world, which learns in seconds."""
    from reneg_pack.nodes.tiny import LoadTinyWorld

    with torch.inference_mode():
        return LoadTinyWorld.execute(1).args[:3]


@pytest.fixture(scope="session")
def positive(checkpoint: tuple[Any, Any, Any]) -> list:
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(checkpoint[1], "a red house")[0]


@pytest.fixture(scope="session")
def embedding(checkpoint: tuple[Any, Any, Any]) -> Any:
    """An embedding of the small model: an encoded negative prompt, shifted."""
    from reneg_pack.nodes.host.text import embedding_from

    with torch.inference_mode():
        made = embedding_from(nodes.CLIPTextEncode().encode(checkpoint[1], "blurry, dark")[0], "clip-l")
    return made


@pytest.fixture(scope="session")
def latent() -> dict[str, Any]:
    return {"samples": torch.zeros(2, 4, 8, 8)}


@pytest.fixture(scope="session")
def call() -> Callable[..., Any]:
    """``call(NodeClass, **inputs)`` runs a node as the host's executor does."""
    from comfy_api.internal import make_locked_method_func

    def run(node: type, **inputs: Any) -> Any:
        prepared = node.PREPARE_CLASS_CLONE({})
        return make_locked_method_func(node, "execute", prepared)(**inputs)

    return run
