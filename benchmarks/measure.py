"""Time and peak memory of a function, the same way in every benchmark."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def seconds(work: Callable[[], Any], repeat: int = 5, warm_up: int = 1) -> float:
    """Median wall-clock seconds."""
    found = []
    for index in range(warm_up + repeat):
        _synchronise()
        clock = time.perf_counter()
        work()
        _synchronise()
        if index >= warm_up:
            found.append(time.perf_counter() - clock)
    return statistics.median(found)


def in_turn(works: Mapping[str, Callable[[], Any]], repeat: int = 5) -> dict[str, float]:
    """Median seconds of several functions, run one after the other in every round so that drift hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for index in range(repeat + 1):
        for name, work in works.items():
            taken = seconds(work, 1, 0)
            if index:
                found[name].append(taken)
    return {name: statistics.median(values) for name, values in found.items()}


def peak_bytes(work: Callable[[], Any]) -> int:
    """Highest number of bytes that tensors held above the level at the start, from the allocator's own record."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Aligned columns."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def publish(name: str, result: Mapping[str, Any]) -> None:
    """Print one JSON line and keep it in ``benchmarks/results``."""
    line = json.dumps({"benchmark": name, "machine": machine(), **result})
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(line + "\n", encoding="utf-8")
    print(line if len(line) < 4000 else f"{RESULTS.name}/{name}.json, {len(line)} characters")
