"""Memory over trainings that follow each other in one ComfyUI.

    python benchmarks/host_memory.py [--trainings 20]

Each is a run of its own by the training node, of the test checkpoint (a UNet of 177 MB) with validations, checkpoints
and pictures. What the process holds is read after each; the first ones fill caches and pools, so the figure is how much
the second half grows, as a straight line through it.
"""

import argparse
import ctypes
import gc
import importlib
import statistics
from typing import Any

import host_inside


def resident() -> float:
    """What the process holds, in MiB, without what its allocator keeps for later."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def slope(values: list[float]) -> float:
    """Of the straight line through ``values``, a step each."""
    return statistics.linear_regression(range(len(values)), values).slope


def measure(trainings: int) -> None:
    nodes = host_inside.host_and_pack()
    importlib.import_module("reneg_pack.nodes.host.files").register_folders()
    import torch
    from comfy_api.internal import make_locked_method_func
    from reneg_pack.nodes.host import rewards
    from reneg_pack.nodes.training import Train, TrainingSettings

    def call(node: Any, **inputs: Any) -> Any:
        return make_locked_method_func(node, "execute", node.PREPARE_CLASS_CLONE({}))(**inputs)

    settings = {
        **{"batch_size": 2, "width": 0, "height": 0, "sampling_steps": 3, "cfg": 4.0, "learning_rate": 0.05},
        **{"points": 1, "micro_batch": 2, "scheduler": "normal", "solver": "euler", "checkpointing": False},
        **{"validate_every": 2, "validation_pairs": 2, "patience": 0, "norm_limit": 0.0, "last_steps": 0},
        **{"through": 1, "vary": "off", "prompt_file": "none"},
    }
    own = {"preset": "from settings", "steps": 2, "size": 128, "seed": 0, "existing_run": "continue"}
    held = []
    with torch.inference_mode():
        parts = nodes.CheckpointLoaderSimple().load_checkpoint("reneg-test-sd15.safetensors")[:3]
        named = dict(zip(("model", "clip", "vae"), parts, strict=True))
        reward, chosen = rewards.load("brightness", None, torch.float32), call(TrainingSettings, **settings)[0]
        for number in range(trainings):
            name = f"memory_{number}"
            call(Train, **named, reward=reward, prompts="a house\na bird", run_name=name, settings=chosen, **own)
            held.append(round(resident(), 1))
            print(f"{number + 1}: {held[-1]} MiB", flush=True)
    half = held[trainings // 2 :]
    rows = [
        ("after the first training", f"{held[0]:.0f} MiB"),
        (f"after {trainings}", f"{held[-1]:.0f} MiB"),
        ("growth of the second half", f"{slope(half):.2f} MiB a training"),
    ]
    numbers = {"trainings": trainings, "resident_mib": held, "growth_mib": round(slope(half), 3)}
    host_inside.report("host_memory", rows, numbers)


if __name__ == "__main__":
    host_inside.enter(__file__)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=20, help="how many (%(default)s)")
    measure(parser.parse_args().trainings)
