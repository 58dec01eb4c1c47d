"""Broken and hostile files by the thousand: every one must be read, or refused with the error that is documented.

    python scripts/fuzz.py embeddings --count 10000
    python scripts/fuzz.py checkpoints --count 3000 --seed 1
    python scripts/fuzz.py pngs --count 1000
    python scripts/fuzz.py configs --count 3000

The files are read in a process beside this one, which is replaced when it dies and after some hundred files. A case
fails if it takes more than 5 s of processor time or its process more than 1 GiB (the peak of its whole resident set,
torch included, asked of the kernel anew for each file), if it ends with any other error, kills its process, runs code.
Needs Linux. Exit code 1 if any case failed.
"""

import argparse
import json
import math
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from fuzzing import TARGETS, Target

SECONDS = 5.0
MEBIBYTES = 1024.0
CODE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
RAN_CODE = 77
FILES_PER_PROCESS = 200
PATIENCE = 600
"""Seconds of the clock after which a process that says nothing is given up."""


@dataclass(frozen=True)
class Outcome:
    """How one case ended: "read", "refused", or what is wrong; its processor time and peak memory."""

    verdict: str
    message: str
    seconds: float
    mebibytes: float

    @property
    def fault(self) -> str:
        """What is wrong with it, "" for nothing."""
        if self.verdict not in ("read", "refused"):
            return f"{self.verdict}: {self.message}"
        if self.seconds > SECONDS:
            return f"took {self.seconds:.1f} s of processor time"
        return f"took {self.mebibytes:.0f} MiB" if self.mebibytes > MEBIBYTES else ""


class Reader:
    """A forked process that calls ``read(path)`` for one path after the other; a context that ends it."""

    def __init__(self, read: Callable[[Path], None], documented: tuple[type[Exception], ...]) -> None:
        self.read, self.documented = read, documented
        self.child, self.files = 0, 0

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ask(self, path: Path) -> Outcome:
        """Read one file there and say how that ended."""
        if not self.child or self.files >= FILES_PER_PROCESS:
            self._end()
            self._start()
        self.files += 1
        os.write(self.questions, f"{path}\n".encode())
        ready, _, _ = select.select([self.answers], [], [], PATIENCE)
        told = self.answers.readline() if ready else b""
        if told:
            return Outcome(*json.loads(told))
        code = self._end()
        return Outcome("ran code" if code == RAN_CODE else "killed", f"the process ended with {code}", 0, 0)

    def _start(self) -> None:
        (questions, self.questions), (answers, sink) = os.pipe(), os.pipe()
        self.files, self.child = 0, os.fork()
        if self.child == 0:
            os.close(self.questions)
            os.close(answers)
            _work(self.read, self.documented, questions, sink)
        os.close(questions)
        os.close(sink)
        self.answers = os.fdopen(answers, "rb")

    def _end(self) -> int:
        """Kill the process if it lives; its exit code, below 0 for a signal."""
        if not self.child:
            return 0
        os.close(self.questions)
        self.answers.close()
        with suppress(ChildProcessError):
            deadline = time.monotonic() + 1
            while (found := os.waitpid(self.child, os.WNOHANG))[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(self.child, signal.SIGKILL)
                time.sleep(0.01)
        self.child = 0
        return os.waitstatus_to_exitcode(found[1])


def _work(read: Callable[[Path], None], documented: tuple[type[Exception], ...], questions: int, sink: int) -> NoReturn:
    """The child: silence, a limit, a line of JSON for each path, and no way back."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.addaudithook(lambda event, _: os._exit(RAN_CODE) if event in CODE else None)
    try:
        for line in os.fdopen(questions, "rb"):
            outcome = _outcome(read, Path(line[:-1].decode()), documented)
            os.write(sink, json.dumps(astuple(outcome)).encode() + b"\n")
    finally:
        os._exit(0)


def _outcome(read: Callable[[Path], None], path: Path, documented: tuple[type[Exception], ...]) -> Outcome:
    tempfile.tempdir = str(path.parent)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begun = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(begun + 2 * SECONDS), resource.RLIM_INFINITY))
    try:
        read(path)
        verdict, message = "read", ""
    except documented as error:
        verdict, message = "refused", _shortened(str(error))
    except BaseException as error:
        verdict, message = type(error).__name__, _shortened(str(error))
    return Outcome(verdict, message, time.process_time() - begun, peak_mebibytes())


def peak_mebibytes() -> float:
    """The largest that this process has been since its peak was last cleared."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**10


def _shortened(text: str) -> str:
    return (text.splitlines() or [""])[0][:200].encode("ascii", "backslashreplace").decode()


def run(target: Target, count: int, seed: int, keep: Path | None) -> Iterator[tuple[str, Outcome]]:
    """The kind and the outcome of ``count`` files; those that fail are copied to ``keep``."""
    with tempfile.TemporaryDirectory(prefix="reneg-fuzz-") as name:
        folder = Path(name)
        make = target.maker(folder)
        with Reader(target.read, target.documented) as reader:
            for number in range(count):
                kind, path = make(random.Random(f"{seed}/{target.name}/{number}"))
                outcome = reader.ask(path)
                if outcome.fault and keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, keep / f"{target.name}-{seed}-{number}-{kind}{path.suffix}")
                yield kind, outcome


def report(target: str, count: int, seed: int, found: list[tuple[str, Outcome]], seconds: float) -> dict[str, object]:
    """The counts, and every kind of fault with how often it came."""
    faults = Counter(f"{kind}: {outcome.fault}" for kind, outcome in found if outcome.fault)
    verdicts = Counter("fault" if outcome.fault else outcome.verdict for _, outcome in found)
    return {
        "target": target, "count": count, "seed": seed, "read": verdicts["read"], "refused": verdicts["refused"],
        "faults": sum(faults.values()), "kinds": len({kind for kind, _ in found}), "wall_seconds": round(seconds),
        "most_seconds": round(max(outcome.seconds for _, outcome in found), 2),
        "most_mebibytes": round(max(outcome.mebibytes for _, outcome in found)),
        "what": dict(faults.most_common(20)),
    }  # fmt: skip


def main() -> int:
    """Run one target, print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--count", type=int, default=1000, help="files (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another set of files (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy files that fail there")
    args = parser.parse_args()
    if args.count < 1:
        parser.error(f"--count: got {args.count}, expected 1 or more")
    clock = time.monotonic()
    found = list(run(TARGETS[args.target], args.count, args.seed, args.keep))
    result = report(args.target, args.count, args.seed, found, time.monotonic() - clock)
    print(json.dumps(result, indent=1))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
