"""The example workflows made small enough for the test checkpoints, and a client for them."""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

from hosting import PACK, Server

API = PACK / "workflows" / "api"
NAMES = sorted(path.stem for path in API.glob("*.json"))
SMALL = {
    "width": 64,
    "height": 64,
    "steps": 2,
    "sampling_steps": 3,
    "batch_size": 2,
    "micro_batch": 2,
    "validate_every": 1,
    "validation_pairs": 1,
    "pictures": 1,
    "seeds": 1,
    "reward_name": "brightness",
    "learning_rate": 0.05,
    "embedding_name": "test.safetensors",
    "image": "hint.png",
    "control_net_name": "reneg-test-control.safetensors",
    "lora_name": "reneg-test-lora.safetensors",
    "points": 1,
    "length": 9,
}
STAND_INS = {
    "sd_xl_base_1.0.safetensors": "sdxl",
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": "sd3",
    "PixArt-XL-2-1024-MS.safetensors": "pixart",
    "ltx-video-2b-v0.9.safetensors": "ltxv",
    "Chroma1-HD.safetensors": "chroma",
}
"""The networks in place of files of which there is no small one."""
LOADERS = {"CheckpointLoaderSimple": 0, "UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}
"""The host's loaders, and the output of a stand-in that the first of each is."""


FOLDERS = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "vae_name": "vae",
    "embedding_name": "reneg",
}
"""Where the host looks for what these inputs name."""


def load(name: str) -> dict[str, dict[str, Any]]:
    """An example workflow as it is."""
    return json.loads((API / f"{name}.json").read_text())


def stood_in(graph: dict[str, dict[str, Any]]) -> list[str]:
    """The networks that stand in for what a graph names."""
    named = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, str)]
    return [STAND_INS[name] for name in named if name in STAND_INS]


def small(name: str | Path, training: dict[str, Any] | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    """An example workflow with the test checkpoint, a few steps and pictures of 64 pixels.

    training: settings of the training alone; changes: inputs of every node that has them; name: also a path.
    """
    path = name if isinstance(name, Path) else API / f"{name}.json"
    graph, name = json.loads(path.read_text()), path.stem
    rewards = iter(["brightness", "sharpness"])
    for node in graph.values():
        inputs = node["inputs"]
        inputs |= {k: v for k, v in {**SMALL, **changes}.items() if k in inputs and not isinstance(inputs[k], list)}
        if "ckpt_name" in inputs and inputs["ckpt_name"] not in STAND_INS:
            version = "21" if inputs["ckpt_name"].startswith("v2") else "15"
            inputs["ckpt_name"] = f"reneg-test-sd{version}.safetensors"
        if node["class_type"] == "ReNegLoadReward":
            inputs["reward_name"] = next(rewards)
        if "sd21" in name and "embedding_name" in inputs:
            inputs["embedding_name"] = "test21.safetensors"
    graph = with_training(graph, {**SMALL_TRAINING, **changes}, training or {})
    return with_stand_ins(graph)


def with_stand_ins(graph: dict[str, Any]) -> dict[str, Any]:
    """The graph with its loaders replaced by one stand-in, if it names a model that has one."""
    if not stood_in(graph):
        return graph
    [network], first = stood_in(graph), min(key for key, node in graph.items() if node["class_type"] in LOADERS)
    replaced = {key: LOADERS[node["class_type"]] for key, node in graph.items() if node["class_type"] in LOADERS}
    kept = {key: node for key, node in graph.items() if key not in replaced}
    for node in kept.values():
        inputs = node["inputs"]
        inputs |= {
            name: [first, replaced[value[0]] + value[1]]
            for name, value in inputs.items()
            if isinstance(value, list) and value[0] in replaced
        }
        if "embedding_name" in inputs:
            inputs["embedding_name"] = "test-t5.bin"
        if network == "pixart":
            inputs |= {side: 272 for side in ("width", "height") if side in inputs}
    return {first: {"class_type": "StandIn", "inputs": {"network": network}}} | kept


def with_training(graph: dict[str, Any], usual: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The graph with its trainings set: ``given``, and of ``usual`` what they have, wherever each setting is; where a
    preset would decide, a Training Settings node is put in."""
    for key, node in list(graph.items()):
        if node["class_type"] == "ReNegTrainEmbedding":
            node["inputs"] |= given
        elif node["class_type"] == "ReNegTrainTextEncoder":
            node["inputs"] |= {"size": usual["size"], **given}
        elif node["class_type"] == "ReNegTrain":
            inputs = node["inputs"]
            if "settings" not in inputs:
                inputs |= {"preset": "from settings", "settings": [f"{key}00", 0]}
                plain = {name: spec for name, spec in QUICK.items() if name != "steps"}
                graph[f"{key}00"] = {"class_type": "ReNegTrainingSettings", "inputs": plain}
            settings = graph[inputs["settings"][0]]["inputs"]
            for name, value in {**usual, **given}.items():
                target = inputs if name in inputs else settings
                if name in given or (name in target and not isinstance(target[name], list)):
                    target[name] = value
    return graph


SMALL_TRAINING = {**SMALL, "size": 64}
QUICK = {
    "batch_size": 8,
    "width": 0,
    "height": 0,
    "sampling_steps": 20,
    "cfg": 7.5,
    "learning_rate": 0.01,
    "points": 1,
    "micro_batch": 2,
    "scheduler": "karras",
    "solver": "dpmpp_2m",
    "checkpointing": False,
    "validate_every": 10,
    "validation_pairs": 8,
    "patience": 0,
    "norm_limit": 0.0,
    "last_steps": 0,
    "through": 1,
    "vary": "off",
    "prompt_file": "none",
}
"""What the Training Settings node comes with, but for checkpointing."""
SCENE, WORDS = "a red circle on a blue background", "watermark, border, lines, double"
TINY = {
    "width": 32,
    "height": 32,
    "sampling_steps": 10,
    "cfg": 3.0,
    "sampler_name": "dpmpp_2m",
    "solver": "dpmpp_2m",
    "scheduler": "karras",
    "micro_batch": 16,
    "embedding_name": "words.safetensors",
    "prompt": SCENE,
    "prompts": f"{SCENE}\na yellow diamond on a cyan background\na green ring on a white background",
}


def tiny(name: str, training: dict[str, Any] | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    """An example workflow on the embedded tiny world, which draws real pictures, as that is sampled best.

    training: settings of the training alone; changes: inputs of every node that has them.
    """
    graph, rewards = json.loads((API / f"{name}.json").read_text()), iter(["tiny", "sharpness"])
    [loader] = [key for key, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple"]
    graph[loader] = {"class_type": "ReNegLoadTinyWorld", "inputs": {"pictures": changes.get("batch_size", 1)}}
    empty = [key for key, node in graph.items() if node["class_type"] == "EmptyLatentImage"]
    for node in graph.values():
        inputs = node["inputs"]
        if "text" in inputs:
            inputs["text"] = WORDS if inputs["text"].startswith("blurry") else SCENE
        if "reward_name" in inputs:
            inputs["reward_name"] = next(rewards)
        inputs |= {k: v for k, v in {**TINY, **changes}.items() if k in inputs and not isinstance(inputs[k], list)}
        inputs |= {k: [loader, 3] for k, v in inputs.items() if isinstance(v, list) and v[0] in empty}
    rest = {key: node for key, node in graph.items() if key not in empty}
    return with_training(rest, {**TINY, "size": 32, **changes}, training or {})


def request(server: Server, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(server.url + path, data), timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def wait(server: Server, prompt_id: str, seconds: float = 240) -> dict[str, Any]:
    """The history entry of a finished prompt."""
    for _ in range(int(seconds * 4)):
        entry = request(server, f"/history/{prompt_id}")
        if prompt_id in entry:
            return entry[prompt_id]
        time.sleep(0.25)
    raise TimeoutError(f"{prompt_id} did not finish in {seconds} s")


def prepare(base: Path) -> None:
    """The files the workflows name: an embedding for each text encoder (T5's in the layout of the published ones) and a
    picture for the ControlNet."""
    import torch
    from PIL import Image

    from reneg_core import NegativeEmbedding
    from reneg_core.backends import load_model
    from reneg_core.tiny import HANDWRITTEN_NEGATIVE

    world = load_model("tiny", device="cpu")
    words = NegativeEmbedding(world.encode([HANDWRITTEN_NEGATIVE]).tokens, world.family)
    words.save(base / "models" / "reneg" / "words.safetensors", overwrite=True)
    generator = torch.Generator().manual_seed(11)
    for name, width in (("test", 768), ("test21", 1024)):
        embedding = NegativeEmbedding(torch.randn(1, 77, width, generator=generator))
        embedding.save(base / "models" / "reneg" / f"{name}.safetensors", overwrite=True)
    torch.save(torch.randn(1, 120, 4096, generator=generator), base / "models" / "reneg" / "test-t5.bin")
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(base / "input" / "hint.png")
