"""Which folder a training works in when there are runs of that name already, and what the host's cache may keep."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reneg_core.training import Session, Trainer, TrainResult
from reneg_core.training.identity import AnotherRun
from reneg_core.training.run_folder import RunFolder

CONTINUE, NEW, OVER = "continue", "new numbered run", "start over"
EXISTING = [CONTINUE, NEW, OVER]
State = tuple[tuple[str, str, int], ...]


def runs_of(base: Path) -> list[Path]:
    """The runs called ``base``, ``base_002``, ``base_003``, ...: those with a checkpoint, in the order of numbers."""
    numbers = {_number(base, path): path for path in _named(base)}
    return [numbers[number] for number in sorted(numbers) if RunFolder(numbers[number]).checkpoints()]


def next_folder(base: Path) -> Path:
    """``base`` itself if there is no run yet, else the next number."""
    taken = [_number(base, path) for path in _named(base)]
    return base.with_name(f"{base.name}_{max(taken) + 1:03d}") if runs_of(base) else base


def _named(base: Path) -> list[Path]:
    return [path for path in base.parent.glob(f"{_escaped(base.name)}*") if _number(base, path)]


def _number(base: Path, path: Path) -> int:
    """1 for ``base``, n for ``base_00n``, 0 for anything else."""
    found = re.fullmatch(r"_(\d{3,})", path.name.removeprefix(base.name)) if path != base else None
    return 1 if path == base else int(found[1]) if found else 0


def _escaped(name: str) -> str:
    return re.sub(r"([\[?*])", r"[\1]", name)


def run(trainer: Trainer, base: Path, existing: str, session: Callable[[Path, str], Session]) -> TrainResult:
    """Train in the folder that ``existing`` asks for.

    "continue": the newest run of that name which this is; where there are only other ones, a new number, which is said
    and why. "start over": what was there keeps the next number. session: makes what is around the run, from the folder
    and a sentence on why it is not ``base``, or "".
    """

    def in_folder(folder: Path, why: str = "") -> TrainResult:
        trainer.at(folder, session(folder, why))
        return trainer.run()

    if existing == OVER:
        with set_aside(base):
            return in_folder(base)
    others: list[AnotherRun] = []
    for folder in reversed(runs_of(base)) if existing == CONTINUE else ():
        try:
            return in_folder(folder)
        except AnotherRun as error:
            others.append(error)
    folder = next_folder(base)
    return in_folder(folder, because(others[0], folder) if others else "")


def because(other: AnotherRun, folder: Path) -> str:
    """Why the run is ``folder`` and not the newest one of that name."""
    return f"{folder.name} is a new run, because {other.folder.name} is another one: {' '.join(other.differences)}"


@contextmanager
def set_aside(base: Path) -> Iterator[None]:
    """Around a training in ``base``: a run that was there takes the next number. If the new one fails before it has
    anything to keep, everything is as before. Errors: BlockingIOError while another process trains there."""
    if not RunFolder(base).checkpoints():
        yield
        return
    with RunFolder(base).locked():
        pass
    aside = next_folder(base)
    base.rename(aside)
    try:
        yield
    except BaseException:
        if not RunFolder(base).checkpoints():
            shutil.rmtree(base, ignore_errors=True)
            aside.rename(base)
        raise


def state_of(base: Path) -> State:
    """Where every run of that name stands."""
    newest = {path.name: RunFolder(path).checkpoints()[-1] for path in runs_of(base)}
    return tuple((name, file.name, file.stat().st_mtime_ns) for name, file in newest.items())


class Served:
    """What the host may serve from its cache: a training that has nothing left to do and whose runs stand as it left
    them. The host compares a node's fingerprint before a run with that before the last one, so that the state that a
    finished training leaves gets the fingerprint of the state that it began with. Lives as long as the host's cache."""

    def __init__(self) -> None:
        self._fingerprints: dict[tuple[str, State], str] = {}
        self._gone = 0

    def fingerprint(self, name: str, state: State) -> str:
        return self._fingerprints.get((name, state), f"{name} {state}")

    def leave(self, name: str, before: State, after: State, *, finished: bool) -> None:
        """A training has come from one state to another; should the first come back (a run was deleted, say), it is
        not what it was."""
        began = self.fingerprint(name, before)
        if before != after:
            self._gone += 1
            self._fingerprints[name, before] = f"{name} {before} {self._gone}"
        if finished:
            self._fingerprints[name, after] = began


SERVED = Served()
