"""Kill a training again and again and see that nothing is lost: `python scripts/kill_campaign.py --kills 100`.

A quick training on the tiny world runs once unbroken. Then trials begin anew, are killed with SIGKILL, resumed, killed
again, until one is done; half of the kills come at a random moment, half in the middle of a chosen call that writes:
before or after the file is on the disk, before or after it is moved to its place, between two lines of the metrics. At
the end of each trial must be, compared with the unbroken run: the same embedding, bit for bit; the same metrics line
by line (but for times and memory), without doubles or holes; no half-written file. Prints one JSON line; exit code 1
at the first difference.

Each training is a fork of this process, which has loaded the libraries, so that a kill costs a second or two and not
the time to start; `--spawn` starts a new interpreter for each instead. Linux and macOS.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = [
    "steps=8", "batch_size=2", "micro_batch=1", "sampling.steps=2", "window=[0,2]", "validation_pairs=2",
    "validate_every=3", "checkpoint_every=2", "checkpoint_minutes=0.005", "sampling.guidance_scale=4", "device=cpu",
]  # fmt: skip
UNTIMED = ("seconds", "memory_mib")
CALLS = ("os.fsync", "os.replace", "record", "unlink")
KILLS_A_TRIAL = 4


@dataclass(frozen=True)
class Moment:
    """When a training is killed: after ``delay`` seconds, or around the ``number``-th of its calls of ``call``."""

    delay: float = 0.0
    call: str = ""
    number: int = 0
    after: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often a training is killed (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--spawn", action="store_true", help="a new interpreter for each training")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), args.kills, args.seed, spawned if args.spawn else Forked())
    print(json.dumps(found))
    return 1 if found["fault"] else 0


def campaign(folder: Path, kills: int, seed: int, start: Callable[[list[str], Moment | None], int]) -> dict[str, Any]:
    """Trials until ``kills`` trainings were killed; counts, seconds, and the first fault in words ("" for none).

    start: runs a command with these arguments, killed at the moment given, and returns its exit status.
    """
    began, source = time.monotonic(), random.Random(seed)
    whole = folder / "whole"
    clock = time.monotonic()
    if start(["train", *SETTINGS, f"output={whole}"], None):
        raise RuntimeError("The unbroken training failed.")
    duration, found = time.monotonic() - clock, {"kills": 0, "at random": 0, "in a call": 0, "trials": 0, "fault": ""}
    while found["kills"] < kills and not found["fault"]:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        moments = [_moment(source, duration) for _ in range(min(KILLS_A_TRIAL, kills - found["kills"]))]
        found["fault"] = _trial(run, whole, moments, start, found)
        found["trials"] += 1
        print(f"{found['kills']} of {kills} kills, {found['trials']} trials", file=sys.stderr, flush=True)
    return {**found, "seed": seed, "seconds": round(time.monotonic() - began)}


def _moment(source: random.Random, duration: float) -> Moment:
    if source.random() < 0.5:
        return Moment(delay=source.uniform(0, 1.1 * duration))
    return Moment(call=source.choice(CALLS), number=source.randrange(12), after=source.random() < 0.5)


def _trial(run: Path, whole: Path, moments: list[Moment], start: Callable, found: dict[str, Any]) -> str:
    for moment in [*moments, None]:
        resume = ["--resume"] if list((run / "checkpoints").glob("step-*")) else []
        status = start(["train", *SETTINGS, f"output={run}", *resume], moment)
        if status == -signal.SIGKILL:
            found["kills"] += 1
            found["in a call" if moment.call else "at random"] += 1
        elif status == 0:
            return difference(run, whole)
        else:
            return f"the training ended with status {status} at {moment}"
    return "the training did not end"


def difference(run: Path, whole: Path) -> str:
    """What a finished run has otherwise than the unbroken one, in words; "" for nothing."""
    from safetensors.torch import load_file

    for name in ("negative", "best"):
        got, wanted = (load_file(folder / f"{name}.safetensors") for folder in (run, whole))
        if any(got[key].numpy().tobytes() != wanted[key].numpy().tobytes() for key in wanted):
            return f"{name}.safetensors differs"
    if lines(run) != lines(whole):
        return f"metrics differ: {lines(run)} instead of {lines(whole)}"
    left = [str(path) for path in run.rglob("*.part")]
    return f"half-written files stay: {left}" if left else ""


def lines(run: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the machine."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [{name: value for name, value in entry.items() if name not in UNTIMED} for entry in entries]


class Forked:
    """Commands in forks of this process, which has loaded the tiny world's model and reward once; their exit status."""

    def __init__(self) -> None:
        import torch

        import reneg_core.backends as backends
        from reneg_core.commands import train
        from reneg_core.rewards import load_reward

        torch.set_num_threads(1)  # a fork has no other thread
        model, reward = backends.load_model("tiny", device="cpu"), load_reward("tiny")
        backends.load_model = lambda *args, **options: model
        train.load_reward = lambda *args, **options: reward

    def __call__(self, arguments: list[str], moment: Moment | None = None, log: str = os.devnull) -> int:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = _command(arguments, moment, log)
            finally:
                os._exit(code)
        return _ended(child, moment)


def spawned(arguments: list[str], moment: Moment | None) -> int:
    """A command in an interpreter of its own."""
    here = [str(Path(__file__).resolve().parent), os.getcwd()]
    code = f"import sys; sys.path[:0] = {here!r}; import kill_campaign as k; from kill_campaign import Moment; "
    code += f"sys.exit(k._command({arguments!r}, {moment!r}))"
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    return _ended(child.pid, moment)


def _ended(child: int, moment: Moment | None) -> int:
    if moment and not moment.call:
        time.sleep(moment.delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _command(arguments: list[str], moment: Moment | None, log: str = os.devnull) -> int:
    """What a child does: its words go to ``log``, and it dies in the call that ``moment`` names."""
    from reneg_core.cli import main as command

    words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(words, stream)
    if moment and moment.call:
        _arm(moment)
    return command(arguments)


def _arm(moment: Moment) -> None:
    from reneg_core.training.run_folder import RunFolder

    owner, name = {"record": (RunFolder, "record"), "unlink": (Path, "unlink")}.get(
        moment.call, (os, moment.call.removeprefix("os."))
    )
    plain, calls = getattr(owner, name), iter(range(10**9))

    def deadly(*args: Any, **options: Any) -> Any:
        due = next(calls) == moment.number
        if due and not moment.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*args, **options)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)


if __name__ == "__main__":
    sys.exit(main())
