"""Shared by the host benchmarks: re-run in ComfyUI's Python, import the host and the pack, load the test checkpoint."""

import importlib.util
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT)]

import hosting  # noqa: E402
from measure import publish, seconds, table  # noqa: E402


def enter(script: str) -> None:
    """Continue in the Python of the host, with a base folder of its own; a message and exit 1 without a host."""
    if "RENEG_BENCH_BASE" in os.environ:
        return
    host = next(iter(hosting.find_hosts()), None)
    python = host and hosting.find_python(host)
    if not host or not python:
        sys.exit(hosting.MISSING.replace("the host tests are skipped", "nothing is measured"))
    base = hosting.base_directory(Path(tempfile.mkdtemp()) / "base", hosting.models_folder(host, python))
    os.environ |= hosting.environment(python, base) | {"RENEG_BENCH_BASE": str(base), "COMFYUI_PATH": str(host)}
    os.execv(python, [python, script, *sys.argv[1:]])


def host_and_pack() -> Any:
    """Import ComfyUI on the CPU and the pack by its folder; returns the host's ``nodes``."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.base_directory = os.environ["RENEG_BENCH_BASE"]
    import nodes

    spec = importlib.util.spec_from_file_location(
        "reneg_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["reneg_pack"] = module
    spec.loader.exec_module(module)
    return nodes


def ratios(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> tuple[float, float, float]:
    """Medians over ``pairs`` runs in turn, the order swapped each time: ratio of a pair, seconds of ours, of theirs."""
    seconds(ours, 1), seconds(theirs, 1)
    found = []
    for index in range(pairs):
        if index % 2:
            found.append((seconds(ours, 1, 0), seconds(theirs, 1, 0)))
        else:
            found.append((seconds(theirs, 1, 0), seconds(ours, 1, 0))[::-1])
    own, other = (statistics.median(column) for column in zip(*found, strict=True))
    return statistics.median(a / b for a, b in found), own, other


def report(name: str, rows: list[tuple[str, str]], numbers: dict[str, Any]) -> None:
    """The table, and the JSON line with the host's version."""
    from comfyui_version import __version__ as version

    print(table(rows, ("what", "figure")))
    publish(name, {"comfyui": version, **numbers})
