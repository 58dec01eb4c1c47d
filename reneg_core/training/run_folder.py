"""The files of one run: checkpoints/, metrics.jsonl, prompts.json, config.yaml, the best so far and the result, and the
lock that keeps a second process out."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..files import remove_leftovers, write_bytes, write_text
from .prompts import Prompts
from .state import Progress, TrainState, load_state


class Found(NamedTuple):
    """A checkpoint, what it says that the run is, and a sentence for every newer one that cannot be read."""

    state: TrainState
    context: dict[str, Any]
    faults: list[str]


class RunFolder:
    """Owns a run's files; only the process that holds :meth:`locked` writes them. product: the result's name."""

    def __init__(self, path: str | Path, keep: int = 2, product: str = "negative") -> None:
        self.path, self.keep = Path(path), keep
        self.metrics = self.path / "metrics.jsonl"
        self.prompts = self.path / "prompts.json"
        self.config = self.path / "config.yaml"
        self.best = self.path / "best.safetensors"
        self.final = self.path / f"{product}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's folder; the system lets go of it when the process ends, however it ends.

        Errors: BlockingIOError if another process holds it. A file system without locks is left to filelock's way out.
        """
        from filelock import FileLock, Timeout

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BlockingIOError(
                f"Another process is training in {self.path}. Wait until it ends, or try another output folder."
            ) from None
        except NotImplementedError:
            pass
        try:
            yield
        finally:
            lock.release()

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.safetensors"))

    def require_unused(self) -> None:
        """ValueError if there is a run in the folder."""
        found = self.checkpoints()
        if found:
            raise ValueError(
                f"{self.path} holds a run at step {found[-1].stem.removeprefix('step-').lstrip('0') or 0} already. "
                "Try resuming it, or another output folder."
            )

    def require_run(self) -> None:
        """ValueError if there is no run in the folder."""
        if not self.checkpoints():
            raise ValueError(
                f"There is nothing to resume in {self.path}: it holds no checkpoint. Try without resuming, or the "
                "output folder of the run that you mean."
            )

    def best_so_far(self) -> str:
        """A sentence on where the best is."""
        return f"The best so far is in {self.best}." if self.best.exists() else "Nothing has been learned yet."

    def latest(self) -> Found | None:
        """The newest checkpoint that can be read whole, None if there is none at all; ValueError if all are damaged."""
        faults: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                return Found(*load_state(path), faults)
            except ValueError as error:
                faults.append(str(error))
        if faults:
            raise ValueError(
                f"No checkpoint in {self.path} can be read: {' '.join(faults)} Try another output folder; "
                f"init={self.best} starts from the best so far, if it is there."
            )
        return None

    def begin(self, progress: Progress, prompts: Prompts, config: str) -> None:
        """Bring the files to where the run is: what a killed process left half-done goes, metrics of steps that will
        be done again too; then write what says what the run is. config: text of config.yaml, "" for none."""
        for folder in (self.path, self.path / "checkpoints", self.path / "previews"):
            remove_leftovers(folder)
        for path in self.checkpoints():
            if path.name > _name(progress.step):  # what could not be read would crowd out what can
                path.replace(path.with_name(f"unreadable-{path.name}"))
        self._rewind(progress)
        if config:
            write_text(self.config, config)
        write_text(self.prompts, json.dumps(prompts._asdict(), default=list, ensure_ascii=False, indent=0))

    def _rewind(self, progress: Progress) -> None:
        """Keep the metrics of what is done: steps taken, validations made, and what happened before this step."""
        last = {"step": progress.step, "validation": progress.validated_at}
        lines = self._lines()
        kept = [line for line, e in lines if e and e["step"] <= last.get(e["event"], progress.step - 1)]
        if len(kept) != len(lines):
            write_bytes(self.metrics, b"".join(line + b"\n" for line in kept))

    def save(self, state: TrainState, context: Mapping[str, Any]) -> Path:
        """Write this step's checkpoint, then drop the oldest beyond ``keep``."""
        path = self.path / "checkpoints" / _name(state.progress.step)
        state.save(path, context)
        for old in self.checkpoints()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def record(self, entry: Mapping[str, Any]) -> None:
        """Append one JSON line to the metrics; what is not finite is written as null."""
        line = json.dumps({name: _plain(value) for name, value in entry.items()}, allow_nan=False)
        try:
            with self.metrics.open("ab") as file:
                file.write(line.encode() + b"\n")
        except OSError as error:
            reason = f"Could not write the metrics ({error.strerror}). Make room there, then resume"
            raise OSError(error.errno, reason, str(self.metrics)) from error

    def records(self) -> list[dict[str, Any]]:
        """The metrics so far, without lines that cannot be read."""
        return [entry for _, entry in self._lines() if entry]

    def _lines(self) -> list[tuple[bytes, dict[str, Any] | None]]:
        """Every line with what it holds, None where it is no record."""
        if not self.metrics.is_file():
            return []
        return [(line, _entry(line)) for line in self.metrics.read_bytes().splitlines()]

    def listed_prompts(self) -> Prompts | None:
        """The prompts that the run was started with; None where the list is missing or damaged."""
        try:
            found = json.loads(self.prompts.read_text(encoding="utf-8"))
            return Prompts([str(p) for p in found["train"]], [str(p) for p in found["validation"]])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _name(step: int) -> str:
    return f"step-{step:08d}.safetensors"


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    known = isinstance(found, dict) and isinstance(found.get("step"), int) and isinstance(found.get("event"), str)
    return found if known else None


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
