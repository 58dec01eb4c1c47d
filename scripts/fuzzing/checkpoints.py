"""Checkpoints of a training: whole, damaged, and with a header of anything."""

import json
import random
from pathlib import Path
from typing import Any

import torch

from reneg_core.sampling import Sampling
from reneg_core.training.loss_scale import LossScale
from reneg_core.training.state import LearnerState, Progress, TrainState, load_state

from .damage import Maker, Target, damaged, nested, odd_text, odd_value, raw_safetensors


def checkpoint_files(folder: Path) -> Maker:
    """Checkpoints of a training: whole, damaged, and with a header of anything."""
    state = _state()
    state.save(folder / "whole.safetensors", {"model": "abc", "steps": 9, "sampling": Sampling().to_mapping()})
    whole = (folder / "whole.safetensors").read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    path = folder / "case.safetensors"

    def make(chance: random.Random) -> tuple[str, Path]:
        kind = chance.choice(("damaged", "damaged", "header", "header", "cut", "noise"))
        if kind == "damaged":
            data = damaged(chance, whole)
        elif kind == "header":
            data = raw_safetensors(_odd_checkpoint_header(chance, json.loads(whole[8:start])), whole[start:])
        else:
            data = whole[: chance.randrange(len(whole))] if kind == "cut" else chance.randbytes(chance.randrange(3000))
        path.write_bytes(data)
        return kind, path

    return make


def _state() -> TrainState:
    parts = {"tokens": torch.arange(32.0).reshape(1, 4, 8)}
    best = {"tokens": torch.ones(1, 4, 8)}
    learner = LearnerState(parts, {"tokens": torch.ones(1, 4, 8)}, {"tokens": torch.ones(1, 4, 8)}, 3)
    return TrainState(learner, Progress(best, step=3, best_step=2, best_reward=0.5), LossScale(1.0, 1.0, 0))


def _odd_checkpoint_header(chance: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    metadata, tensors = header["__metadata__"], [name for name in header if name != "__metadata__"]
    action = chance.choice(("drop", "text", "number", "nested", "rename", "extra"))
    name = chance.choice(sorted(metadata))
    if action == "drop":
        del metadata[name]
    elif action == "text":
        metadata[name] = odd_text(chance).encode("utf-8", "ignore").decode()
    elif action == "nested":
        metadata[name] = nested(chance)
    elif action == "rename":
        header[chance.choice(("x", "first.other", "best", ".", odd_text(chance)[:9]))] = header.pop(
            chance.choice(tensors)
        )
    else:
        _change_one(chance, metadata, add=action == "extra")
    return header


def _change_one(chance: random.Random, metadata: dict[str, str], add: bool) -> None:
    """Another value, or one more, in one of the JSON texts of a checkpoint."""
    name = chance.choice([name for name in sorted(metadata) if metadata[name].startswith("{")])
    values = json.loads(metadata[name])
    values["unheard" if add else chance.choice(sorted(values))] = odd_value(chance)
    metadata[name] = json.dumps(values)


def read_checkpoint(path: Path) -> None:
    """As a resumed training reads it."""
    load_state(path)


CHECKPOINTS = Target("checkpoints", read_checkpoint, (ValueError,), checkpoint_files)
