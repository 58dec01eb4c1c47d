"""Processes: which share each takes, and what goes through accelerate (two real ones: tests/cli/test_processes.py)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reneg_core.training.workers import AccelerateWorkers, Workers, pick_workers


class Accelerator:
    """The second of three processes, as accelerate describes them."""

    process_index, num_processes, device = 1, 3, torch.device("cpu")

    def __init__(self, cpu: bool) -> None:
        self.cpu, self.waited = cpu, 0

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum" and tensor.device == self.device
        return tensor * self.num_processes

    def wait_for_everyone(self) -> None:
        self.waited += 1


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("accelerate.Accelerator", Accelerator)
    return AccelerateWorkers


def test_shares_are_whole_and_differ_by_at_most_one() -> None:
    for count in range(1, 6):
        for size in range(8):
            shares = [SimpleNamespace(rank=rank, count=count) for rank in range(count)]
            parts = [Workers.share(one, range(10, 10 + size)) for one in shares]
            assert [item for part in parts for item in part] == list(range(10, 10 + size))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_sums_what_it_has() -> None:
    one, tensor = Workers(), torch.tensor([2.0])
    assert (one.rank, one.count) == (0, 1) and one.sum(tensor) is tensor and one.wait() is None
    assert one.any(True) is True and one.any(False) is False


def test_many_processes_are_accelerates(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = workers()
    assert (one.rank, one.count, one.device) == (1, 3, torch.device("cpu")) and one._accelerator.cpu is False
    assert list(one.share(range(7))) == [2, 3]
    assert one.sum(torch.tensor([2.0])).tolist() == [6.0] and one.any(True) is True and one.any(False) is False
    one.wait()
    assert one._accelerator.waited == 1
    monkeypatch.setattr(Accelerator, "num_processes", 1)
    alone, tensor = workers(), torch.tensor([2.0])
    assert alone.sum(tensor) is tensor


@pytest.mark.parametrize(("size", "expected"), [(None, Workers), ("1", Workers), ("2", AccelerateWorkers)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_environment_decides(
    workers: Any, monkeypatch: pytest.MonkeyPatch, size: str | None, expected: type, device: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    found = pick_workers(device)
    assert type(found) is expected
    assert expected is Workers or found._accelerator.cpu is (device == "cpu")
