"""Processes: which share each takes, and what goes through accelerate (two real ones: tests/cli/test_processes.py)."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import in_processes
from small import SmallModel, start_of
from torch import Tensor

from reneg_core.failures import EndedElsewhere
from reneg_core.rewards.smoke import Brightness
from reneg_core.sampling import Sampling
from reneg_core.training import AdaptConfig, Prompts, Session, TrainConfig, Trainer, adapt
from reneg_core.training.adapt import AdaptResult
from reneg_core.training.workers import PATIENCE, AccelerateWorkers, Workers, device_of, processes


class Accelerator:
    """The second of three processes, as accelerate describes them."""

    process_index, num_processes, device = 1, 3, torch.device("cpu")

    def __init__(self, cpu: bool, kwargs_handlers: list[Any]) -> None:
        self.cpu, self.waited = cpu, 0
        assert [handler.timeout for handler in kwargs_handlers] == [PATIENCE]

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum" and tensor.device == self.device
        return tensor * self.num_processes

    def wait_for_everyone(self) -> None:
        self.waited += 1


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("accelerate.Accelerator", Accelerator)
    monkeypatch.setenv("WORLD_SIZE", "3")
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
    assert one.gather("own") == ["own"] and one.together(lambda: 5) == 5 and device_of(one, "mps") == "mps"
    assert list(one.rounds("abc", str.upper)) == [{0: "A"}, {1: "B"}, {2: "C"}]
    with pytest.raises(KeyError, match="mine"):
        one.together(lambda: {}["mine"])


def test_many_processes_are_accelerates(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = workers()
    assert (one.rank, one.count, one.device) == (1, 3, torch.device("cpu")) and one._accelerator.cpu is False
    assert list(one.share(range(7))) == [2, 3]
    assert one.sum(torch.tensor([2.0])).tolist() == [6.0] and one.any(True) is True and one.any(False) is False
    one.wait()
    assert one._accelerator.waited == 1
    monkeypatch.setattr(Accelerator, "num_processes", 1)
    with pytest.raises(ValueError, match="Got 3 processes that cannot reach each other on cpu"):
        workers()
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    assert [workers(cpu).device.type for cpu in (True, False)] == ["cpu", "meta"]
    monkeypatch.setattr(Accelerator, "num_processes", 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone, tensor = workers(), torch.tensor([2.0])
    assert alone.sum(tensor) is tensor


def test_a_process_is_heard_no_more(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is left ends at once; the first one says why, the others are silent."""

    def closed(*_: Any, **__: Any) -> None:
        raise RuntimeError("[gloo] Connection closed by peer")

    monkeypatch.setattr(Accelerator, "reduce", closed)
    monkeypatch.setattr(Accelerator, "wait_for_everyone", closed)
    monkeypatch.setattr("accelerate.utils.gather_object", closed)
    for rank, sentence in ((0, "another of the 3 processes has ended before the work was done"), (1, "")):
        monkeypatch.setattr(Accelerator, "process_index", rank)
        one = workers()
        for talk in (one.wait, lambda one=one: one.sum(torch.zeros(1)), lambda one=one: one.gather(1)):
            with pytest.raises(EndedElsewhere) as error:
                one.together(talk)
            assert str(error.value).startswith(sentence) and bool(str(error.value)) == bool(sentence)


def test_results_are_gathered_by_rank(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: ["a", *own, "c"])
    assert workers().gather("b") == ["a", "b", "c"] and device_of(workers(), "auto") == "cpu"


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_a_round_is_one_item_for_each(count: int, size: int) -> None:
    done: list[tuple[int, int]] = []

    def work(workers: Workers) -> list[dict[int, int]]:
        def square(item: int) -> int:
            done.append((workers.rank, item))
            return item * item

        return list(workers.rounds(range(10, 10 + size), square))

    found = in_processes(count, work)
    assert found == [found[0]] * count and len(found[0]) == -(-size // count)
    assert {place: one for part in found[0] for place, one in part.items()} == {i: (10 + i) ** 2 for i in range(size)}
    shares = [[10 + i for i in range(size * rank // count, size * (rank + 1) // count)] for rank in range(count)]
    assert sorted(done) == [(rank, item) for rank, share in enumerate(shares) for item in share]


def test_a_failure_in_one_process_ends_all_at_once() -> None:
    """Two fail in the same round: the first of them says why, in its own words, and nobody goes on."""
    done: list[int] = []

    def work(workers: Workers) -> None:
        def failing(item: int) -> None:
            done.append(item)
            if item in (4, 7):
                raise ValueError(f"item {item} in process {workers.rank}")

        def inside() -> None:
            for _ in workers.rounds(range(9), failing):
                pass

        workers.together(lambda: workers.together(inside))

    found = in_processes(3, work)
    assert [type(error) for error in found] == [EndedElsewhere, ValueError, EndedElsewhere]
    assert str(found[1]) == "item 4 in process 1" and str(found[0]) == str(found[2]) == ""
    assert sorted(done) == [0, 1, 3, 4, 6, 7], "the third round is not begun"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_a_failure_outside_of_the_rounds_is_heard_in_them(kind: type[BaseException]) -> None:
    def work(workers: Workers) -> None:
        def command() -> None:
            if workers.rank == 1:
                raise kind("alone")
            list(workers.rounds(range(4), str))

        try:
            workers.together(command)
        finally:
            assert workers.talks == 1, "nothing is said after the end"

    found = in_processes(2, work)
    assert [type(error) for error in found] == [EndedElsewhere, kind] and str(found[1]) == "alone"


def test_what_goes_well_together_goes_on() -> None:
    def work(workers: Workers) -> list[int]:
        with pytest.raises(ValueError, match="once") if workers.rank == 0 else pytest.raises(EndedElsewhere):
            workers.together(lambda: int("once") if workers.rank == 0 else 0)
        return [workers.together(lambda: workers.rank), *workers.gather(workers.rank * 10)]

    assert in_processes(3, work) == [[rank, 0, 10, 20] for rank in range(3)]


@pytest.mark.parametrize(("size", "expected"), [(None, Workers), ("1", Workers), ("3", AccelerateWorkers)])
@pytest.mark.parametrize(("device", "cpu"), [("cpu", True), ("auto", True), ("cuda", False)])
def test_the_environment_decides(
    workers: Any, monkeypatch: pytest.MonkeyPatch, size: str | None, expected: type, device: str, cpu: bool
) -> None:
    parted = []
    monkeypatch.setattr("reneg_core.training.workers.pick_device", lambda name: torch.device("cpu" if cpu else name))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: parted.append(1))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size:
        monkeypatch.setenv("WORLD_SIZE", size)
    with processes(device) as found:
        assert type(found) is expected and not parted
        assert expected is Workers or found._accelerator.cpu is cpu
    assert parted == [1] * (expected is AccelerateWorkers)


@pytest.mark.parametrize("pooled", [False, True])
def test_what_travels_in_a_step(tmp_path: Path, pooled: bool) -> None:
    """The gradient of what is learned in float64, the rewards' sum, and two flags: whatever the batch."""
    sent: list[Tensor] = []

    class Counted(Workers):
        def sum(self, tensor: Tensor) -> Tensor:
            sent.append(tensor)
            return tensor

    class Steps:
        def on_step(self, record: dict[str, Any]) -> None:
            ends.append(len(sent))

        def on_validation(self, *_: Any) -> None:
            pass

    for batch in (2, 5):
        ends: list[int] = []
        sent.clear()
        config = TrainConfig(
            steps=3, batch_size=batch, micro_batch=1, sampling=Sampling(steps=2).at_scale(3), validation_pairs=2,
            validate_every=9, checkpoint_every=9,
        )  # fmt: skip
        session = Session(observer=Steps(), workers=Counted())
        prompts = Prompts(["a", "b", "c"], ["d"])
        folder = tmp_path / str(batch)
        Trainer(SmallModel(pooled), Brightness(), prompts, config, folder, session=session).run()
        step = sent[ends[0] : ends[1]]
        assert [part.numel() for part in step] == [1, 1, 6, *([3] if pooled else []), 1]
        assert {part.dtype for part in step} == {torch.float64}


ADAPT = AdaptConfig(steps=1, sampling=Sampling(steps=2).at_scale(3), points=1, micro_batch=1, learning_rate=0.05)


def adapted(workers: Workers, asked: Callable[[], bool], pairs: int = 6) -> AdaptResult:
    model, prompts = SmallModel(), [f"prompt {i}" for i in range(pairs)]
    options = {"should_stop": asked, "workers": workers}
    return adapt(model, Brightness(), prompts, range(pairs), start_of(model), ADAPT, **options)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_is_asked_to_stop_stops_all_after_the_round(rank: int) -> None:
    """Each has three pairs, one a round: the first round is whole in the one that was not asked."""
    everything = adapted(Workers(), lambda: False)
    assert everything.steps.tolist() == [1] * 6, "each pair gets better"
    found = in_processes(2, lambda workers: adapted(workers, lambda: workers.rank == rank))
    expected = [0, 0, 0, 1, 0, 0] if rank == 0 else [1, 0, 0, 0, 0, 0]
    assert [one.steps.tolist() for one in found] == [expected, expected]


def test_who_was_asked_once_stays_asked() -> None:
    answers = iter([False, True, *[False] * 99])
    assert adapted(Workers(), lambda: next(answers)).steps.tolist() == [1, 0, 0, 0, 0, 0]


def test_what_fitted_once_is_taken_from_then_on() -> None:
    refused: list[int] = []

    class Small(SmallModel):
        def denoise(self, x: Tensor, *rest: Any) -> Tensor:
            if len(x) > 2:
                refused.append(len(x))
                raise torch.OutOfMemoryError("out of memory")
            return super().denoise(x, *rest)

    model, config = Small(), replace(ADAPT, micro_batch=4)
    found = adapt(model, Brightness(), ["a", "b", "c", "d", "e", "f"], range(6), start_of(model), config)
    assert refused == [8, 4] and found.steps.tolist() == [1] * 6
