"""Processes that are threads: the same protocol between them, in milliseconds and without a network."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reneg_core.training.workers import Workers


class Threads(Workers):
    """One of ``count``. They hand over what they give at ``door``, where nobody waits for longer than ten seconds."""

    def __init__(self, rank: int, count: int, door: threading.Barrier, given: list[Any]) -> None:
        self.rank, self.count, self._door, self._given = rank, count, door, given
        self.talks = 0

    def gather(self, own: Any) -> list[Any]:
        self.talks += 1
        self._given[self.rank] = own
        self._door.wait(10)
        found = list(self._given)
        self._door.wait(10)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather(tensor)).sum(0)


def in_processes(count: int, work: Callable[[Workers], Any]) -> list[Any]:
    """What ``work`` returned, or raised, by rank."""
    door, given = threading.Barrier(count), [None] * count
    found: list[Any] = [None] * count

    def one(rank: int) -> None:
        try:
            found[rank] = work(Threads(rank, count, door, given))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found
