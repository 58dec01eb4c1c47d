"""Memory: how much was used, and what to do when there is none left."""

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is an accelerator's or the CPU allocator's out-of-memory."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory in MiB: the accelerator's own count on CUDA, the process's resident set elsewhere (0 if unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def batches(rows: int, size: int) -> list[range]:
    """``rows`` rows in consecutive parts of ``size``; the last may be smaller."""
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def micro_batches(
    rows: range, size: int, work: Callable[[range], T], on_halved: Callable[[int], None] = lambda size: None
) -> Iterator[T]:
    """Yield ``work(part)`` for consecutive parts of at most ``size`` rows.

    A part that runs out of memory is halved and done again, and so are all later ones; ``on_halved`` gets the new
    size. With a single row left the error is passed on.
    """
    done = 0
    while done < len(rows):
        part = rows[done : done + size]
        try:
            result = work(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
            result = None
            size = len(part) // 2
        if result is None:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            on_halved(size)
            continue
        yield result
        done += len(part)
