"""Fill the disk under train, infer, adapt and evaluate: `python scripts/full_disk.py --fills 6` (as root, on Linux).

Each command runs on the tiny world in a small file system in memory (tmpfs) in which only so many bytes are free: none,
then more and more up to what the command writes. It must end with exit code 1 and a sentence that names the folder or a
file in it, or, where the room was enough, with 0; whatever files are there must be whole. A training is then given room
and resumed, and must end as an unbroken one. Prints one JSON line; exit code 1 at the first fault.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kill_campaign import SETTINGS, Forked, difference

SIZE = 16 << 20
SAMPLED = ["--steps", "2", "--batch-size", "4"]
PROMPTS = ["a red circle on a blue background", "a green ring on white", "a blue square on black"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fills", type=int, default=6, help="amounts of free room for each command (%(default)s)")
    args = parser.parse_args()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        print("Mounting a small file system needs Linux and root.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        found = trials(Path(folder), args.fills)
    print(json.dumps(found))
    return 1 if any(one["fault"] for one in found.values()) else 0


def trials(folder: Path, fills: int) -> dict[str, dict[str, Any]]:
    """By command: how often it was refused, how often it had room, and the first fault in words ("" for none)."""
    start, whole = Forked(), folder / "whole"
    if start(["train", *SETTINGS, f"output={whole}"]):
        raise RuntimeError("The unbroken training failed.")
    found = {}
    for name, arguments in commands(whole / "negative.safetensors", folder).items():
        plain = folder / name
        if start([*arguments(plain)]):
            raise RuntimeError(f"{name} failed with all the room there is.")
        written = sum(path.stat().st_blocks * 512 for path in plain.rglob("*"))
        one = found[name] = {"refused": 0, "had room": 0, "fault": ""}
        for fill in range(fills):
            if not one["fault"]:
                free = written * fill // max(1, fills - 1)
                one["fault"] = _trial(folder, free, arguments, start, whole if name == "train" else None, one)
    return found


def commands(embedding: Path, folder: Path) -> dict[str, Any]:
    """The commands under trial, each a function from its output folder to its arguments."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    listed = ["--prompts", str(prompts)]
    quick = ["--set", "steps=1", "--set", "sampling.steps=2", "--set", "window=[0,2]", "--set", "points=1"]
    shared = ["--embedding", str(embedding), *listed]
    return {
        "train": lambda out: ["train", *SETTINGS, f"output={out}"],
        "infer": lambda out: ["infer", *SAMPLED, "--neg-embedding", str(embedding), *listed, "--output", str(out)],
        "adapt": lambda out: ["adapt", *shared, *quick, "--output", str(out)],
        "evaluate": lambda out: ["evaluate", *shared, *SAMPLED, "--seeds", "2", "--output", str(out)],
    }


def _trial(folder: Path, free: int, arguments: Any, start: Forked, whole: Path | None, one: dict[str, Any]) -> str:
    log = folder / "log"
    with small_disk(folder / "disk", free) as disk:
        out = disk / "out"
        status = start(arguments(out), log=str(log))
        words = log.read_text(errors="replace").strip().splitlines()
        one["had room" if status == 0 else "refused"] += 1
        if status not in (0, 1) or (status == 1 and str(disk) not in words[-1]):
            return f"with {free} bytes free: exit status {status}, {words[-3:]}"
        broken = [str(path) for path in out.rglob("*") if path.is_file() and not _whole(path)]
        if broken:
            return f"with {free} bytes free: files are not whole: {broken}"
        if whole is None:
            return ""
        (disk / "ballast").unlink(missing_ok=True)
        resume = ["--resume"] if list((out / "checkpoints").glob("step-*")) else []
        if start([*arguments(out), *resume], log=str(log)):
            return f"with {free} bytes free: not resumed: {log.read_text(errors='replace')[-300:]}"
        return difference(out, whole)


@contextmanager
def small_disk(place: Path, free: int) -> Iterator[Path]:
    """A file system with ``free`` bytes left."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], check=True)
    try:
        (place / "ballast").write_bytes(bytes(SIZE - free))
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _whole(path: Path) -> bool:
    """Whether a file can be read to its end as what its name says; the metrics may lack the end of their last line."""
    from PIL import Image
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        return path.suffix != ".part"
    except Exception:  # any error says that it cannot be read
        return False


if __name__ == "__main__":
    sys.exit(main())
