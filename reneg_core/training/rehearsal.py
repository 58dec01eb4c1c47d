"""What long work will take, measured on parts of its own: a training, an adaptation, the pictures of a comparison."""

import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..clips import FRAMES
from ..embedding import NegativeEmbedding
from ..model import DiffusionModel
from ..rewards import Reward
from ..sampling import Sampling, guided_denoise
from . import schedule
from .adapt import adapt
from .config import AdaptConfig
from .memory import micro_batches
from .run import Run

PARTS, SECONDS = 8, 30.0  # of each kind: at most so many micro-batches are timed, and none is begun after so long


@dataclass(frozen=True)
class Rehearsal:
    """step, validation: seconds of one, from the mean of so many timed parts (``parts``, ``checks``); total:
    seconds of what is left of the run, all validations counted, loading and writing not; micro_batch: the size that
    fitted; kept: bytes that one sample's graph holds at most besides the weights; peak: bytes used on CUDA, else 0.
    """

    step: float
    validation: float
    parts: int
    checks: int
    total: float
    micro_batch: int
    kept: int
    peak: int


def rehearse(trainer: Run, weights: Iterable[Tensor]) -> Rehearsal:
    """Check all that a run checks, then time parts of its first steps and of its validation; writes nothing.

    weights: the networks' tensors, which a graph only refers to. Errors: those of :meth:`Run.prepare`.
    """

    def work() -> Rehearsal:
        trainer.prepare()
        with trainer.foreseen(PARTS):
            return measured(trainer, weights)

    return trainer.inside(work)


def measured(trainer: Run, weights: Iterable[Tensor], parts: int = PARTS) -> Rehearsal:
    """The same for a trainer that is prepared, inside its model; parts: how many of a kind are timed at most."""
    size = trainer.progress.micro_batch
    try:
        return _measured(trainer, weights, parts)
    finally:
        trainer.progress.micro_batch = size  # the run finds out by itself what fits, and notes it


def rehearse_adaptation(
    model: DiffusionModel,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[int],
    start: NegativeEmbedding,
    config: AdaptConfig,
    weights: Iterable[Tensor],
) -> tuple[float, int]:
    """Seconds that :func:`.adapt` takes if no pair runs out of patience, and bytes that its graph holds besides the
    ``weights``; from the first step of the first batch, whose outcome is thrown away."""
    rows = slice(config.micro_batch)

    def work(prepared: DiffusionModel) -> tuple[float, int]:
        began = time.monotonic()
        with _held(weights) as most:
            adapt(prepared, reward, prompts[rows], seeds[rows], start, config, should_stop=lambda: True)
        return time.monotonic() - began, most()

    step, kept = model.run(work)
    return step * (config.steps + 1) * -(-len(prompts) // config.micro_batch), kept


def rehearse_sampling(model: DiffusionModel, sampling: Sampling, prompts: Sequence[str]) -> float:
    """Seconds that a picture of each of the prompts takes, sampled together and decoded; from one guided pass."""

    @torch.no_grad()
    def work(prepared: DiffusionModel) -> float:
        positive, negative = prepared.encode(prompts), prepared.encode([""])
        noise, sigma = prepared.noise(range(len(prompts)), sampling.size), prepared.sigmas(sampling)[0]

        def guided(_: int) -> None:
            guided_denoise(prepared, noise, sigma, positive, negative, sampling.guidance, sampling.guidance.start)

        each, _ = _mean(guided, 1)
        decoded, _ = _mean(lambda _: prepared.decode(noise, FRAMES), 1)
        return each * sampling.steps + decoded

    return model.run(work)


def _measured(trainer: Run, weights: Iterable[Tensor], parts: int) -> Rehearsal:
    config, done, workers = trainer.config, trainer.progress.step, trainer.session.workers
    kept, rows = _kept(trainer, weights), _fitting(trainer)
    size = min(trainer.progress.micro_batch, rows)
    pairs = min(size, config.validation_pairs)

    def part(number: int) -> None:
        trainer.trial(done + number, range(rows))

    def check(number: int) -> None:
        trainer.check(pairs)

    (part_seconds, timed), (check_seconds, checks) = _mean(part, parts), _mean(check, parts)
    step = part_seconds * len(workers.share(range(config.batch_size))) / rows
    validation = check_seconds * len(workers.share(range(config.validation_pairs))) / pairs
    due = [
        s for s in range(done, config.steps + 1) if schedule.validates(s, config) and s != trainer.progress.validated_at
    ]
    total = (config.steps - done) * step + len(due) * validation
    device = trainer.model.device
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Rehearsal(step, validation, timed, checks, total, size, kept, peak)


def _mean(work: Callable[[int], None], most: int) -> tuple[float, int]:
    """Mean seconds of ``work(0)``, ``work(1)`` and so on, and how many there were; one before is not counted."""
    work(0)
    began, count = time.monotonic(), 0
    while count == 0 or (count < most and time.monotonic() - began < SECONDS):
        work(count)
        count += 1
    return (time.monotonic() - began) / count, count


def _fitting(trainer: Run) -> int:
    """The samples that a step can begin with together, found as a training finds it."""
    sizes = [min(trainer.progress.rollout_batch, trainer.config.batch_size)]

    def work(rows: range) -> bool:
        trainer.trial(trainer.progress.step, rows)
        return True

    next(micro_batches(range(sizes[0]), sizes[0], work, sizes.append))
    return sizes[-1]


def _kept(trainer: Run, weights: Iterable[Tensor]) -> int:
    """The most bytes that autograd holds for one sample at a time, where the gradient passes through most steps."""
    heaviest = trainer.heaviest(trainer.progress.step)
    with _held(weights) as most:
        trainer.trial(heaviest, range(1))
    return most()


@contextmanager
def _held(weights: Iterable[Tensor]) -> Iterator[Callable[[], int]]:
    """Gives what tells the most bytes, besides the ``weights``, that graphs made within held together so far."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in weights}
    held: Counter[int] = Counter()
    sizes: dict[int, int] = {}
    most = 0

    def pack(tensor: Tensor) -> _Held:
        nonlocal most
        storage, one = tensor.untyped_storage(), _Held(tensor)
        if storage.data_ptr() not in owned:
            held[storage.data_ptr()] += 1
            sizes[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(one, held.subtract, [storage.data_ptr()])
            most = max(most, sum(sizes[place] for place, users in held.items() if users > 0))
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        yield lambda: most


@dataclass(eq=False)
class _Held:
    """A tensor that a graph keeps; it ends with the graph."""

    tensor: Tensor
