"""One process or many: who does which share of the work, and how sums, results and failures travel between them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from ..backends.devices import pick_device
from ..failures import EndedElsewhere

Item = TypeVar("Item")
T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""How long a process waits for a slow one; one that has ended is noticed at once."""


class Workers:
    """A single process. ``rank`` 0 of ``count`` 1 writes the files."""

    rank: int = 0
    count: int = 1
    _ended: BaseException | None = None

    def share(self, items: range) -> range:
        """This process's contiguous part of ``items``; parts differ by at most one item."""
        return _share(items, self.rank, self.count)

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` (float64, CPU) added up over all processes."""
        return tensor

    def gather(self, own: T) -> list[T]:
        """What every process gives, by rank, in every process; tensors on the CPU."""
        return [own]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return bool(self.sum(torch.tensor([float(flag)], dtype=torch.float64)).item())

    def wait(self) -> None:
        """Return when every process is here."""

    def together(self, work: Callable[[], T]) -> T:
        """``work()`` in step: where it fails in one process, it fails in all of them, and one says why.

        Every process must call it; it may be nested, and ``work`` must not sum. Errors: what ``work`` raises, in the
        first process where it does; :class:`EndedElsewhere` in the others.
        """
        if self.count == 1:
            return work()
        found, failure = None, None
        try:
            found = work()
        except (Exception, KeyboardInterrupt) as error:
            if error is self._ended:
                raise  # the others know
            failure = error
        failed = self.gather(failure is not None)
        if not any(failed):
            return found
        self._ended = failure if failed.index(True) == self.rank else EndedElsewhere()
        raise self._ended

    def rounds(self, items: Sequence[Item], work: Callable[[Item], T]) -> Iterator[dict[int, T]]:
        """``work`` on every item, each process its share and one item a round: yields, in every process, what a round
        gave by the items' places. In step, as :meth:`together`."""
        places = range(len(items))
        shares = [_share(places, rank, self.count) for rank in range(self.count)]
        for turn in range(max(map(len, shares))):
            now = [share[turn] if turn < len(share) else None for share in shares]
            own = now[self.rank]
            found = self.together(lambda own=own: None if own is None else work(items[own]))
            yield {place: one for place, one in zip(now, self.gather(found), strict=True) if place is not None}


def _share(items: range, rank: int, count: int) -> range:
    size = len(items)
    return items[size * rank // count : size * (rank + 1) // count]


class AccelerateWorkers(Workers):
    """Processes started by ``accelerate launch`` or torchrun: many GPUs, many nodes, or CPUs with gloo.

    Errors of everything that needs the others: :class:`EndedElsewhere` once one of them has ended.
    """

    def __init__(self, cpu: bool = False) -> None:
        # First, because it keeps for ever the group that exists when it is imported: that group's threads would outlive
        # it, and a process whose work is done could crash as it ends.
        import torch.distributed.nn.functional
        from accelerate import Accelerator, InitProcessGroupKwargs

        self._accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
        self.rank = self._accelerator.process_index
        self.count = self._accelerator.num_processes
        self.device = torch.device("cpu") if cpu else self._accelerator.device
        if self.count != launched():
            raise ValueError(
                f"Got {launched()} processes that cannot reach each other on {self.device}, expected CUDA devices or "
                "CPUs. Try device=cpu, or one process."
            )

    def sum(self, tensor: Tensor) -> Tensor:
        if self.count == 1:
            return tensor
        with self._heard():
            return self._accelerator.reduce(tensor.to(self.device), reduction="sum").cpu()

    def gather(self, own: T) -> list[T]:
        from accelerate.utils import gather_object

        with self._heard():
            return gather_object([own])

    def wait(self) -> None:
        with self._heard():
            self._accelerator.wait_for_everyone()

    @contextmanager
    def _heard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            gone = f"another of the {self.count} processes has ended before the work was done; what it said is above."
            self._ended = EndedElsewhere(gone if self.rank == 0 else "")
            raise self._ended from error


def launched() -> int:
    """How many processes there are, as the environment says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def processes(device: str) -> Iterator[Workers]:
    """The processes that the environment describes, on ``device`` (:func:`.pick_device`), until they part; a single one
    needs no accelerate. Errors: ValueError for a device whose processes cannot reach each other."""
    if launched() == 1:
        yield Workers()
        return
    try:
        yield AccelerateWorkers(cpu=pick_device(device).type == "cpu")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def device_of(workers: Workers, device: str) -> str:
    """Where this process works: what accelerate gives it, else ``device``."""
    return str(getattr(workers, "device", device))
