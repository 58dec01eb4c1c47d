"""What a training run is at a step: everything that the next step depends on, in one file, without pickles."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_tensors
from .config import TrainConfig
from .loss_scale import LossScale
from .names import normalised

FORMAT = "reneg-checkpoint-1"
PART_NAMES = ("tokens", "pooled")
LEARNER_GROUPS = ("tensors", "first", "second")


@dataclass
class LearnerState:
    """What the next optimizer step depends on; float32 on the CPU, by part (tokens, pooled).

    tensors: the embedding; first, second: AdamW's moments; updates: optimizer steps that were applied.
    """

    tensors: dict[str, Tensor]
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    updates: int = 0


@dataclass
class Progress:
    """How far a run is, and what it has found: ``best`` are the tensors of the best validation."""

    best: dict[str, Tensor]
    step: int = 0
    best_step: int = 0
    best_reward: float = float("-inf")
    start_reward: float | None = None
    start_watch: float | None = None
    without_best: int = 0
    micro_batch: int = 1
    seconds: float = 0.0
    validated_at: int = -1
    finished: bool = False


@dataclass
class TrainState:
    """A whole checkpoint; see its parts. ``scale``: the loss scale."""

    learner: LearnerState
    progress: Progress
    scale: LossScale

    def save(self, path: Path, context: Mapping[str, Any]) -> None:
        """Write atomically; ``context`` says what the run is (configuration, digests) and is checked on resuming."""
        tensors = {group: getattr(self.learner, group) for group in LEARNER_GROUPS} | {"best": self.progress.best}
        packed = {f"{group}.{name}": tensor for group, parts in tensors.items() for name, tensor in parts.items()}
        numbers = {name: value for name, value in vars(self.progress).items() if name != "best"}
        numbers |= {"updates": self.learner.updates, "scale": vars(self.scale)}
        metadata = {
            "format": FORMAT,
            "state": json.dumps(numbers),
            "context": json.dumps(context, default=list),
        }
        write_tensors(path, packed, metadata)


def load_state(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """The state and its context; ValueError for a file that is no whole checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            packed = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is no whole checkpoint ({error}).") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"Got format {metadata.get('format')!r} in {path.name}, expected {FORMAT}.")
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in (*LEARNER_GROUPS, "best")}
    for key, tensor in packed.items():
        group, _, name = key.partition(".")
        groups[group][name] = tensor
    return _unpacked(groups, json.loads(metadata["state"])), json.loads(metadata["context"])


def _unpacked(groups: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> TrainState:
    """Older checkpoints have two numbers, ``loss_scale`` and ``skipped_in_a_row``, in place of ``scale``."""
    value, skipped = numbers.pop("loss_scale", 1.0), numbers.pop("skipped_in_a_row", 0)
    scale = LossScale(**numbers.pop("scale", {"value": value, "highest": value, "skipped": skipped}))
    learner = LearnerState(*(groups[group] for group in LEARNER_GROUPS), numbers.pop("updates"))
    return TrainState(learner, Progress(groups["best"], **numbers), scale)


class RunDirectory:
    """The files of one run: checkpoints/, previews/, metrics.jsonl, best and final embedding."""

    def __init__(self, path: str | Path, keep: int = 2) -> None:
        self.path = Path(path)
        self.keep = keep
        self.metrics = self.path / "metrics.jsonl"
        self.best = self.path / "best.safetensors"
        self.final = self.path / "negative.safetensors"

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.safetensors"))

    def latest(self) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read whole, None if there is none at all."""
        faults = []
        for path in reversed(self.checkpoints()):
            try:
                return load_state(path)
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError(f"No checkpoint in {self.path} can be read: {' '.join(faults)}")
        return None

    def save(self, state: TrainState, context: Mapping[str, Any]) -> Path:
        """Write this step's checkpoint, then drop the oldest beyond ``keep``."""
        path = self.path / "checkpoints" / f"step-{state.progress.step:08d}.safetensors"
        state.save(path, context)
        for old in self.checkpoints()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append one JSON line to the metrics."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The metrics so far; a half-written last line is left out."""
        if not self.metrics.exists():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return found

    def rewind(self, step: int) -> None:
        """Forget the metrics of steps that a resumed run will do again."""
        kept = [entry for entry in self.records() if entry["step"] <= step]
        if kept or self.metrics.exists():
            self.metrics.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Independent float32 copies on the CPU."""
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in tensors.items()}


def changed(old: Mapping[str, Any], new: Mapping[str, Any], free: frozenset[str]) -> list[str]:
    """One sentence for every setting that differs and is not free to change."""
    old, plain = _flat(_renewed(old)), _flat(json.loads(json.dumps(new, default=list)))
    return [
        f"{name}: the run was started with {old.get(name)!r}, now it is {plain.get(name)!r}."
        for name in sorted(set(old) | set(plain))
        if old.get(name) != plain.get(name) and name not in free
    ]


def _renewed(context: Mapping[str, Any]) -> dict[str, Any]:
    """A stored context under the names of today, with the defaults of settings that did not exist yet."""
    context = normalised(context)
    known = {part.name for part in fields(TrainConfig)}
    settings = TrainConfig.from_mapping({name: value for name, value in context.items() if name in known})
    return {**context, **settings.to_mapping()}


def _flat(context: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as dotted names."""
    found: dict[str, Any] = {}
    for name, value in context.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return found


def digest_of(prompts: Sequence[str]) -> str:
    """SHA-256 of a prompt list."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()
