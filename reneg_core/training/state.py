"""What a training run is at a step: everything that the next step depends on, in one file, without pickles."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_tensors
from .loss_scale import LossScale

FORMAT = "reneg-checkpoint-2"
UNSEALED = "reneg-checkpoint-1"
"""The format of version 0.1, which has no checksum; it is still read."""
PART_NAMES = ("tokens", "pooled")
LEARNER_GROUPS = ("tensors", "first", "second", "statistics")


@dataclass
class LearnerState:
    """What the next optimizer step depends on, by name on the CPU.

    tensors: what is learned, float32 (an embedding's tokens, pooled); first, second: AdamW's moments; updates: steps of
    the optimizer that were applied; statistics: what a method has counted beside them, in any dtype.
    """

    tensors: dict[str, Tensor]
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    updates: int = 0
    statistics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Progress:
    """How far a run is, and what it has found: ``best`` are the tensors of the best validation.

    validated_at: the step of the last validation, -1 before the first; finished: patience has run out; changes: where
    the number of steps was changed, each as ``[step, former steps, steps]``; micro_batch, rollout_batch: samples in one
    pass, of what needs a graph and (0: as many) of what needs none.
    """

    best: dict[str, Tensor]
    step: int = 0
    best_step: int = 0
    best_reward: float = float("-inf")
    start_reward: float | None = None
    start_watch: float | None = None
    without_best: int = 0
    micro_batch: int = 1
    rollout_batch: int = 0
    seconds: float = 0.0
    validated_at: int = -1
    finished: bool = False
    changes: list[list[int]] = field(default_factory=list)


@dataclass
class TrainState:
    """A whole checkpoint; see its parts. ``scale``: the loss scale."""

    learner: LearnerState
    progress: Progress
    scale: LossScale

    def save(self, path: Path, context: Mapping[str, Any]) -> None:
        """Write the file whole; ``context`` says what the run is (see :mod:`.identity`)."""
        groups = {group: getattr(self.learner, group) for group in LEARNER_GROUPS} | {"best": self.progress.best}
        tensors = {f"{group}.{name}": tensor for group, parts in groups.items() for name, tensor in parts.items()}
        numbers = {name: value for name, value in vars(self.progress).items() if name != "best"}
        numbers |= {"updates": self.learner.updates, "scale": vars(self.scale)}
        texts = {"format": FORMAT, "state": json.dumps(numbers), "context": json.dumps(context, default=list)}
        write_tensors(path, tensors, {**texts, "seal": _seal(tensors, texts)})


def load_state(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """The state and its context; ValueError for a file that is no whole checkpoint or was altered."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            texts = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        _check(path, tensors, texts)
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in (*LEARNER_GROUPS, "best")}
        for key, tensor in tensors.items():
            group, _, name = key.partition(".")
            groups[group][name] = tensor
        return _unpacked(groups, json.loads(texts["state"])), json.loads(texts["context"])
    except ValueError:
        raise
    except Exception as error:  # damaged data can break what reads it in any way
        reason = f"{type(error).__name__} {error}".strip()[:120]
        raise ValueError(f"{path.name} is no whole checkpoint ({reason}).") from error


def _check(path: Path, tensors: Mapping[str, Tensor], texts: dict[str, str]) -> None:
    found = texts.get("format")
    if found not in (FORMAT, UNSEALED):
        raise ValueError(f"Got format {found!r} in {path.name}, expected {FORMAT}. Try a newer version of reneg.")
    if found == FORMAT and texts.pop("seal", "") != _seal(tensors, texts):
        raise ValueError(f"{path.name} is damaged: its contents do not match its checksum.")


def _seal(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """SHA-256 over everything that a checkpoint holds."""
    sha = hashlib.sha256(json.dumps(texts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def _unpacked(groups: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> TrainState:
    """Older checkpoints have two numbers, ``loss_scale`` and ``skipped_in_a_row``, in place of ``scale``."""
    value, skipped = numbers.pop("loss_scale", 1.0), numbers.pop("skipped_in_a_row", 0)
    scale = LossScale(**numbers.pop("scale", {"value": value, "highest": value, "skipped": skipped}))
    learner = LearnerState(**{group: groups[group] for group in LEARNER_GROUPS}, updates=numbers.pop("updates"))
    return TrainState(learner, Progress(groups["best"], **numbers), scale)


def clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Independent float32 copies on the CPU."""
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in tensors.items()}
