"""Broken and hostile files by the thousand: every one must be read, or refused with the error that is documented.

    python scripts/fuzz.py embeddings --count 10000
    python scripts/fuzz.py checkpoints --count 3000 --seed 1
    python scripts/fuzz.py pngs --count 1000
    python scripts/fuzz.py configs --count 3000

Each file is read in a process of its own, whose processor time and peak memory (its whole resident set, torch
included) are taken from the operating system. A case fails if it takes more than 5 s or 1 GiB, ends with any other
error, kills the process, or runs code. Needs os.fork (Linux, macOS). Exit code 1 if any case failed.
"""

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from fuzzing import TARGETS, Target

SECONDS = 5.0
MEBIBYTES = 1024.0
CODE = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "ctypes.dlopen")
RAN_CODE = 77


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


def in_a_process(read: Callable[[Path], None], path: Path, documented: tuple[type[Exception], ...]) -> Outcome:
    """Call ``read(path)`` in a forked process and say how that ended."""
    source, sink = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(source)
        _work(read, path, documented, sink)
    os.close(sink)
    with os.fdopen(source, "rb") as stream:
        told = stream.read()
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    mebibytes = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    if told:
        verdict, message = json.loads(told)
    elif os.waitstatus_to_exitcode(status) == RAN_CODE:
        verdict, message = "ran code", ""
    else:
        verdict, message = "killed", f"the process ended with {os.waitstatus_to_exitcode(status)}"
    return Outcome(verdict, message, seconds, mebibytes)


def _work(read: Callable[[Path], None], path: Path, documented: tuple[type[Exception], ...], sink: int) -> None:
    """The child: limits, silence, the call, one line of JSON, and no way back."""
    resource.setrlimit(resource.RLIMIT_CPU, (2 * int(SECONDS), 2 * int(SECONDS)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    tempfile.tempdir = str(path.parent)
    sys.addaudithook(lambda event, _: os._exit(RAN_CODE) if event in CODE else None)
    try:
        read(path)
        told = ["read", ""]
    except documented as error:
        told = ["refused", _shortened(str(error))]
    except BaseException as error:
        told = [type(error).__name__, _shortened(str(error))]
    os.write(sink, json.dumps(told).encode())
    os._exit(0)


def _shortened(text: str) -> str:
    return (text.splitlines() or [""])[0][:200].encode("ascii", "backslashreplace").decode()


def run(target: Target, count: int, seed: int, keep: Path | None) -> Iterator[tuple[str, Outcome]]:
    """The kind and the outcome of ``count`` files; those that fail are copied to ``keep``."""
    with tempfile.TemporaryDirectory(prefix="reneg-fuzz-") as name:
        folder = Path(name)
        make = target.maker(folder)
        for number in range(count):
            chance = random.Random(f"{seed}/{target.name}/{number}")
            kind, path = make(chance)
            outcome = in_a_process(target.read, path, target.documented)
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
