"""One process or many: who does which share of a batch, and how sums travel between them."""

import torch
from torch import Tensor


class Workers:
    """A single process. ``rank`` 0 of ``count`` 1 writes the files."""

    rank: int = 0
    count: int = 1

    def share(self, items: range) -> range:
        """This process's contiguous part of ``items``; parts differ by at most one item."""
        size = len(items)
        return items[size * self.rank // self.count : size * (self.rank + 1) // self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """``tensor`` (float64, CPU) added up over all processes."""
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return bool(self.sum(torch.tensor([float(flag)], dtype=torch.float64)).item())

    def wait(self) -> None:
        """Return when every process is here."""


class AccelerateWorkers(Workers):
    """Processes started by ``accelerate launch`` or torchrun: many GPUs, many nodes, or CPUs with gloo."""

    def __init__(self, cpu: bool = False) -> None:
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=cpu)
        self.rank = self._accelerator.process_index
        self.count = self._accelerator.num_processes
        self.device = self._accelerator.device

    def sum(self, tensor: Tensor) -> Tensor:
        if self.count == 1:
            return tensor
        return self._accelerator.reduce(tensor.to(self.device), reduction="sum").cpu()

    def wait(self) -> None:
        self._accelerator.wait_for_everyone()


def launched_by_accelerate() -> bool:
    """Whether the environment says that this is one of several processes."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def pick_workers(device: str) -> Workers:
    """The processes that the environment describes; a single one needs no accelerate."""
    return AccelerateWorkers(cpu=device == "cpu") if launched_by_accelerate() else Workers()
