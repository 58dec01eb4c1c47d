"""One run, whatever it learns: its folder, its loop, checkpoints, validations, and going on where it stopped.

A method (:class:`.trainer.Trainer`, :class:`reneg_core.texforce.TexForce`) says what is learned, and how by a step.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from ..digests import DIGEST
from ..embedding import Provenance
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from . import schedule
from .config import LoopConfig
from .decoding import recomputing
from .extending import go_on, too_few
from .identity import AnotherRun, differences, identity
from .judging import PicturesNotFinite
from .learner import Climber
from .loss_scale import MAX_SKIPPED, loss_scale_for
from .memory import micro_batches, peak_memory_mib
from .prompts import Prompts, split_prompts
from .results import Observer
from .run_folder import RunFolder
from .state import LearnerState, Progress, TrainState
from .validation import Validator, finite, judge
from .workers import Workers

C = TypeVar("C", bound=LoopConfig)
L = TypeVar("L", bound=Climber)
R = TypeVar("R")
T = TypeVar("T")


class Stopped(Exception):
    """Raised inside a step when stopping was asked for; the step is not counted."""


def _never() -> bool:
    return False


def _silent(sentence: str) -> None:
    return None


def _unwatched(stage: str, done: int, total: int) -> None:
    return None


def _at_once(run: "Run") -> None:
    return None


@dataclass(frozen=True)
class Session:
    """Around a run.

    observer: who watches it; should_stop: polled between micro-batches; resume: go on from the newest checkpoint in
    the folder, if there is one; workers: the processes that share the work; say: gets a sentence for each thing that
    resuming did and that the user should know; description: text of the run's config.yaml, "" for none; progress: told
    (stage, done, total) of the pictures of a "validation" and of a "step" as they are made; before: called once all is
    checked and the run's state is known, before anything is written.
    """

    observer: Observer | None = None
    should_stop: Callable[[], bool] = _never
    resume: bool = False
    workers: Workers = field(default_factory=Workers)
    say: Callable[[str], None] = _silent
    description: str = ""
    progress: Callable[[str, int, int], None] = _unwatched
    before: Callable[["Run"], None] = _at_once


@dataclass(frozen=True)
class Origin(Generic[L]):
    """Where a run begins: ``contents`` tell it from others in words and digests, ``learner`` makes what is learned
    there (None) or as a checkpoint has it; ``beside``: what else the run rests on, as the model's own contents."""

    contents: dict[str, str]
    learner: Callable[[LearnerState | None], L]
    beside: dict[str, str] = field(default_factory=dict)


class Run(ABC, Generic[C, L, R]):
    """Owns one run: its directory and its loop. What is learned lives in ``learner``, what was found so far in
    :class:`Progress`; judging in :mod:`.validation`.

    prompts: non-empty lists; directory: where everything is written; watch: a second reward that is only measured.
    Errors, before any work: ValueError for empty prompts or a directory with another run; then, in :meth:`prepare`, for
    changed settings or contents on resuming, a reward that nothing can be learned from, or a start that does not fit.
    """

    product: ClassVar[str]
    """What the file of the result is called, without its ending."""
    learned: ClassVar[str]
    """What is learned, in a word or two."""
    remedy: ClassVar[str]
    """What to try when it has run away."""

    learner: L

    def __init__(
        self,
        model: DiffusionModel,
        reward: Reward,
        prompts: Prompts,
        config: C,
        directory: str | Path,
        *,
        watch: Reward | None = None,
        session: Session | None = None,
    ) -> None:
        self.model, self.reward, self.config = model, reward, config
        self.session = session or Session()
        self.prompts = split_prompts(*prompts)
        self.validator = Validator(self.prompts.validation, config, reward, watch)
        self.context: dict[str, Any] = {}
        self.at(directory)

    def at(self, directory: str | Path, session: Session | None = None) -> None:
        """Take another directory, and what is around the run there, before anything was done.

        Errors: ValueError for a directory with a run, unless it is to be resumed.
        """
        self.session = session or self.session
        self.files = RunFolder(directory, self.config.keep_checkpoints, self.product)
        if not self.session.resume:
            self.files.require_unused()

    def take(self, steps: int) -> None:
        """Take so many steps in all, found out between checking and the first writing (``Session.before``)."""
        if self.progress.step:
            go_on(self.progress, self.context, replace(self.config, steps=steps))
        self.config = replace(self.config, steps=steps)
        self.context["settings"]["steps"] = steps

    # what a method adds

    @abstractmethod
    def _origin(self) -> Origin[L]:
        """Where the run begins, checked, the reward too; ValueError for what nothing can be learned from."""

    @abstractmethod
    def _learn(self, rate: float) -> dict[str, Any]:
        """Move what is learned by one step (:meth:`_ascend`); its part of the record, at least the mean ``reward`` and
        the ``gradient_norm``, None where the gradient was not finite."""

    @abstractmethod
    def _negative(self) -> Conditioning:
        """The negative branch, one row, as validations use it."""

    @abstractmethod
    def _save(self, path: Path) -> None:
        """Write the best so far."""

    def _provenance(self, training: dict[str, Any]) -> Provenance:
        """Where the best so far comes from; training: the settings of the method that its file names."""
        from .. import __version__

        progress, config = self.progress, self.config
        changes = {"steps_changed": progress.changes} if progress.changes else {}
        return Provenance(
            base_model=self.model.name,
            base_digest=self.context["model"]["denoiser"].removeprefix(DIGEST),
            rewards=self.reward.name,
            steps=progress.best_step,
            guidance_scale=config.sampling.guidance.scale,
            seed=config.seed,
            prompts_digest=self.context["prompts"]["train"],
            version=__version__,
            notes={
                "validation_reward": finite(progress.best_reward),
                "start_reward": progress.start_reward,
                "training": training | changes,
            },
            sampling=config.sampling.to_mapping(),
        )

    @abstractmethod
    def _result(self, reason: str) -> R:
        """What the run gave; ``reason``: why it ended."""

    @abstractmethod
    def trial(self, step: int, rows: range) -> None:
        """What ``step`` does with ``rows`` of its batch, waited for; nothing is learned. The model must be set up."""

    def heaviest(self, done: int) -> int:
        """The step from ``done`` on whose graph is largest."""
        return done

    def foreseen(self, steps: int) -> AbstractContextManager[None]:
        """Around what follows :meth:`prepare`: where the text encoder stays as it is, the prompts of the next ``steps``
        steps and of a validation are encoded once, and it leaves the device."""
        return nullcontext()

    @property
    def rows_at_once(self) -> int:
        """Samples that a step begins with together, before memory runs out."""
        return self.config.micro_batch

    # the run

    def run(self) -> R:
        """Train until done, stopped or out of patience; the best is on disk in each case.

        Errors: BlockingIOError while another process trains in the same folder; AnotherRun, a ValueError, for other
        contents or settings than a run was started with, before anything is written; FloatingPointError once rewards,
        gradients or pictures are no finite numbers; OSError when the disk is full. The last checkpoint stays good in
        each case.
        """
        with self.files.locked() if self.session.workers.rank == 0 else nullcontext():
            return self.inside(self._run)

    def inside(self, work: Callable[[], T]) -> T:
        """Call ``work`` while the model is set up for training."""

        def prepared(model: DiffusionModel) -> T:
            self.model = model
            with recomputing(model, self.config):
                return work()

        return self.model.run(prepared)

    def _run(self) -> R:
        self.prepare()
        with self.foreseen(self.config.steps):
            self.session.before(self)
            self._begin()
            reason = self._loop()
        if self.session.workers.rank == 0:
            self._save(self.files.final)
        return self._result(reason)

    def prepare(self) -> None:
        """Check everything that can be checked before the first step, and take up the run's state; writes nothing."""
        rewards = {"reward": self.reward, "watch": self.validator.watch}
        origin = self._origin()
        if not self.context:
            self.context = identity(self.config, self.model, rewards, origin.contents, self.prompts)
            self.context["model"] |= origin.beside
        found = self.files.latest()
        if found is None:
            self.learner, self.scale = origin.learner(None), loss_scale_for(self.model)
            sizes = {"micro_batch": self.config.micro_batch, "rollout_batch": self.rows_at_once}
            self.progress = Progress(self.learner.state().tensors, **sizes)
            return
        if not self.session.resume:
            self.files.require_unused()
        state = found.state
        self._refuse_another_run(found.context, state.progress)
        self.learner = origin.learner(state.learner)
        self.progress, self.scale = state.progress, state.scale
        together = self.progress.rollout_batch or self.progress.micro_batch  # an older version had one size for both
        self.progress.rollout_batch = min(together, self.rows_at_once)
        self.progress.micro_batch = min(self.progress.micro_batch, self.config.micro_batch)
        sentences = go_on(self.progress, found.context, self.config)
        if found.faults:
            sentences.insert(0, " ".join([*found.faults, f"Going on from step {self.progress.step}."]))
        for sentence in sentences:
            self.session.say(sentence)

    def _refuse_another_run(self, stored: dict[str, Any], progress: Progress) -> None:
        listed = self.files.listed_prompts()
        found = differences(stored, self.context, listed, self.prompts, type(self.config))
        found += too_few(progress, self.config)
        if found:
            raise AnotherRun(found, self.files.path)

    def _begin(self) -> None:
        """The first writing, once every process has read what there was."""
        workers = self.session.workers
        workers.wait()
        if workers.rank == 0:
            self.files.begin(self.progress, self.prompts, self.session.description)
        self._checkpoint()

    def _loop(self) -> str:
        progress, config = self.progress, self.config
        began = time.monotonic() - progress.seconds
        try:
            while True:
                if self._long_ago():
                    self._checkpoint()
                if schedule.validates(progress.step, config) and progress.validated_at != progress.step:
                    self._validate()
                over = progress.finished or progress.step >= config.steps
                if over or progress.step % config.checkpoint_every == 0:
                    self._checkpoint()
                if over:
                    return "patience" if progress.finished else "done"
                self._step(began)
        except Stopped:
            self._checkpoint()
            return "stopped"

    def _long_ago(self) -> bool:
        """Whether the last checkpoint is older than ``config.checkpoint_minutes``; processes agree on it."""
        minutes = (time.monotonic() - self._saved) / 60
        return bool(self.config.checkpoint_minutes) and self.session.workers.any(
            minutes >= self.config.checkpoint_minutes
        )

    def _step(self, began: float) -> None:
        progress, clock = self.progress, time.monotonic()
        rate = schedule.learning_rate(self.config, progress.step)
        with self._explained():
            learned = self._learn(rate)
        progress.step += 1
        progress.seconds = time.monotonic() - began
        record = {
            "event": "step",
            "step": progress.step,
            **learned,
            "learning_rate": rate,
            "distance": self.learner.distance(),
            "seconds": round(time.monotonic() - clock, 4),
            "memory_mib": round(peak_memory_mib(self.model.device)),
        }
        self._record(record)
        if self.session.observer:
            self.session.observer.on_step(record)
        if self.scale.hopeless:
            self._checkpoint()
            raise FloatingPointError(
                f"Got NaN or infinite gradients in {MAX_SKIPPED} steps in a row at step {progress.step}. "
                f"{self.files.best_so_far()} Try bf16 or fp32 instead of fp16, or a lower learning rate."
            )

    def _ascend(self, gradients: Mapping[str, Tensor], rate: float) -> float | None:
        """One step of the optimizer upwards; the gradients' norm, None where it is not finite and nothing was done."""
        norm = self.learner.ascend(gradients, rate)
        self.scale.update(norm is not None)
        return norm

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say why pictures are no finite numbers: what is learned has run away, or the model itself makes them."""
        try:
            yield
        except PicturesNotFinite as error:
            moved, rate = self.learner.distance(), self.config.learning_rate
            reason = "The model makes them before anything was learned; try fp32 instead of half precision."
            if self.learner.updates:
                reason = (
                    f"After {self.learner.updates} steps at learning_rate {rate:g} the {self.learned} has moved "
                    f"{moved:.3g} times the start's norm. {self.remedy}"
                )
            raise FloatingPointError(
                f"Got pictures with NaN or infinite pixels at step {self.progress.step}. {reason} "
                f"{self.files.best_so_far()}"
            ) from error

    def _parts(self, stage: str, rows: range, work: Callable[[range], T]) -> Iterable[T]:
        """``work`` on this process's rows, a micro-batch at a time, telling the session how far ``stage`` is; raises
        Stopped between them when asked to."""
        own = self.session.workers.share(rows)

        def told(part: range) -> T:
            found = work(part)
            self.session.progress(stage, own.index(part[-1]) + 1, len(own))
            return found

        return self._cut(own, "micro_batch", told)

    def _cut(self, own: range, by: str, work: Callable[[range], T]) -> Iterable[T]:
        """``work`` on ``own`` rows, as many at a time as the progress has as its size ``by``.

        With several processes all of them must stop together, so they agree on it once, before the first part.
        """
        if self.session.workers.any(self.session.should_stop()):
            raise Stopped

        def interruptible(part: range) -> T:
            self._pulse()
            return work(part)

        return micro_batches(own, getattr(self.progress, by), interruptible, partial(self._halved, by))

    def _pulse(self) -> None:
        """Stop where it may be: a single process between any two passes."""
        if self.session.workers.count == 1 and self.session.should_stop():
            raise Stopped

    def _halved(self, what: str, size: int) -> None:
        setattr(self.progress, what, size)
        self._record({"event": "out_of_memory", "step": self.progress.step, what: size})

    def _validate(self) -> None:
        with self._explained():
            parts = partial(self._parts, "validation")
            found = self.validator.run(self.model, self._negative(), parts, self.session.workers)
        best = judge(found, self.learner.parameters, self.progress, self.config)
        if best and self.session.workers.rank == 0:
            self._save(self.files.best)
        record = {
            "event": "validation",
            "step": self.progress.step,
            "reward": found.reward,
            "watch": found.watch,
            "best": best,
        }
        self._record(record)
        if self.session.observer and found.images is not None:
            self.session.observer.on_validation(record, found.images, found.prompts)

    def check(self, pairs: int) -> None:
        """Validate the first ``pairs`` pairs; nothing is noted. The model must be set up (:meth:`inside`)."""
        self.validator.run(self.model, self._negative(), lambda rows, work: [work(rows[:pairs])], self.session.workers)

    def _checkpoint(self) -> None:
        if self.session.workers.rank == 0:
            self.files.save(TrainState(self.learner.state(), self.progress, self.scale), self.context)
        self._saved = time.monotonic()
        self.session.workers.wait()

    def _record(self, entry: dict[str, Any]) -> None:
        if self.session.workers.rank == 0:
            self.files.record(entry)
