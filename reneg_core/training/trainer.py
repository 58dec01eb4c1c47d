"""Global training: one negative embedding for all prompts, by gradient ascent on a reward (arXiv 2412.19637)."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..digests import DIGEST
from ..embedding import NegativeEmbedding, Provenance, load_embedding
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import check_branches
from . import schedule
from .config import EMBEDDING_SUFFIXES, TrainConfig
from .extending import go_on, too_few
from .identity import AnotherRun, differences, identity
from .judging import PicturesNotFinite, check_reward
from .learner import Learner
from .loss_scale import MAX_SKIPPED, loss_scale_for
from .memory import micro_batches, peak_memory_mib
from .objective import Batch, Reach, RewardGradient, reward_gradient
from .prompts import Prompts, split_prompts
from .results import Observer, TrainResult
from .run_folder import RunFolder
from .state import PART_NAMES, Progress, TrainState
from .validation import Validator, finite, judge
from .workers import Workers

T = TypeVar("T")


class Stopped(Exception):
    """Raised inside a step when stopping was asked for; the step is not counted."""


def _never() -> bool:
    return False


def _silent(sentence: str) -> None:
    return None


def _unwatched(stage: str, done: int, total: int) -> None:
    return None


def _at_once(trainer: "Trainer") -> None:
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
    before: Callable[["Trainer"], None] = _at_once


class Trainer:
    """Owns one run: its directory and its loop. The embedding lives in :class:`Learner`, what was found so far in
    :class:`Progress`; mathematics in :mod:`objective` and :mod:`schedule`, judging in :mod:`validation`.

    prompts: non-empty lists; directory: where everything is written; watch: a second reward that is only measured.
    Errors, before any work: ValueError for empty prompts or a directory with another run; then, in :meth:`prepare`, for
    changed settings or contents on resuming, a reward without a gradient, or a start that does not fit the model.
    """

    def __init__(
        self,
        model: DiffusionModel,
        reward: Reward,
        prompts: Prompts,
        config: TrainConfig,
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
        self.files = RunFolder(directory, self.config.keep_checkpoints)
        if not self.session.resume:
            self.files.require_unused()

    def take(self, steps: int) -> None:
        """Take so many steps in all, found out between checking and the first writing (``Session.before``)."""
        if self.progress.step:
            go_on(self.progress, self.context, replace(self.config, steps=steps))
        self.config = replace(self.config, steps=steps)
        self.context["settings"]["steps"] = steps

    def run(self) -> TrainResult:
        """Train until done, stopped or out of patience; the best embedding is on disk in each case.

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
            model.checkpointing(self.config.checkpointing)
            try:
                return work()
            finally:
                model.checkpointing(False)

        return self.model.run(prepared)

    def _run(self) -> TrainResult:
        self.prepare()
        self.session.before(self)
        self._begin()
        return self._result(self._loop())

    def prepare(self) -> None:
        """Check everything that can be checked before the first step, and take up the run's state; writes nothing."""
        rewards = {"reward": self.reward, "watch": self.validator.watch}
        check_reward(self.reward, self.prompts.train[0], self.model.device)
        embedding = self._start()
        start = self._encoded_start() if embedding is None else embedding.conditioning()
        self.context = self.context or identity(self.config, self.model, rewards, embedding, self.prompts)
        found = self.files.latest()
        if found is None:
            self.learner, self.scale = Learner(start, self.config), loss_scale_for(self.model)
            self.progress = Progress(self.learner.state().tensors, micro_batch=self.config.micro_batch)
            return
        if not self.session.resume:
            self.files.require_unused()
        state = found.state
        self._refuse_another_run(found.context, state.progress)
        self.learner = Learner(start, self.config, state.learner)
        self.progress, self.scale = state.progress, state.scale
        self.progress.micro_batch = min(self.progress.micro_batch, self.config.micro_batch)
        sentences = go_on(self.progress, found.context, self.config)
        if found.faults:
            sentences.insert(0, " ".join([*found.faults, f"Going on from step {self.progress.step}."]))
        for sentence in sentences:
            self.session.say(sentence)

    def _refuse_another_run(self, stored: dict[str, Any], progress: Progress) -> None:
        found = differences(stored, self.context, self.files.listed_prompts(), self.prompts)
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

    def _start(self) -> NegativeEmbedding | None:
        """The embedding that training starts from; None for a prompt."""
        init = self.config.init
        if not init.endswith(EMBEDDING_SUFFIXES):
            return None
        start = load_embedding(init)
        start.require(self.model.family, self.model.width, self.model.max_tokens)
        check_branches(self.model.encode([""]), start.conditioning())
        return start

    def _encoded_start(self) -> Conditioning:
        """The prompt that training starts from, one row; its padding is attended to, so that it learns."""
        start = self.model.encode([self.config.init])
        return start if start.mask is None else replace(start, mask=torch.ones_like(start.mask))

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
        with self._explained():
            gradients, reward = self._gradient()
        rate = schedule.learning_rate(self.config, progress.step)
        norm = self.learner.ascend(gradients, rate)
        self.scale.update(norm is not None)
        progress.step += 1
        progress.seconds = time.monotonic() - began
        record = {
            "event": "step",
            "step": progress.step,
            "reward": reward,
            "learning_rate": rate,
            "gradient_norm": norm,
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

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say why pictures are no finite numbers: an embedding that has run away, or the model itself."""
        try:
            yield
        except PicturesNotFinite as error:
            moved, rate = self.learner.distance(), self.config.learning_rate
            reason = "The model makes them before anything was learned; try fp32 instead of half precision."
            if self.learner.updates:
                reason = (
                    f"After {self.learner.updates} steps at learning_rate {rate:g} the embedding has moved {moved:.3g} "
                    "times the start's norm. Try a lower learning_rate, or norm_limit=1."
                )
            raise FloatingPointError(
                f"Got pictures with NaN or infinite pixels at step {self.progress.step}. {reason} "
                f"{self.files.best_so_far()}"
            ) from error

    def _gradient(self) -> tuple[dict[str, Tensor], float]:
        """Mean gradient per tensor over the whole batch (float64) and the mean reward, over all processes."""
        config = self.config
        totals = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.learner.parameters.items()}
        reward = torch.zeros(1, dtype=torch.float64)
        for part in self._parts("step", range(config.batch_size), partial(self.part_gradient, self.progress.step)):
            for name in totals:
                totals[name] += getattr(part, name).cpu().double()
            reward += part.rewards.mean(0).sum().cpu().double()
        workers = self.session.workers
        totals = {name: workers.sum(total) / config.batch_size for name, total in totals.items()}
        return totals, (workers.sum(reward) / config.batch_size).item()

    def part_gradient(self, step: int, rows: range) -> RewardGradient:
        """What ``rows`` of the batch of ``step`` contribute; the model must be set up (:meth:`inside`)."""
        config, model = self.config, self.model
        sampling = config.jitter.draw(config.sampling, config.seed, step)
        points = schedule.gradient_points(config.window_of(sampling), config.points, config.seed, step)
        reach = Reach(points, config.through, loss_scale=self.scale.value)
        prompts = schedule.batch_prompts(self.prompts.train, config.seed, step, config.batch_size, rows)
        noise = model.noise(schedule.noise_seeds(config.seed, step, rows), sampling.size)
        batch = Batch(prompts, model.encode(prompts), noise)
        return reward_gradient(model, self.reward, batch, self.learner.negative(model.device), sampling, reach)

    def _parts(self, stage: str, rows: range, work: Callable[[range], T]) -> Iterable[T]:
        """``work`` on this process's rows, a micro-batch at a time, telling the session how far ``stage`` is; raises
        Stopped between them when asked to.

        With several processes all of them must leave together, so they agree on it once, before the first part.
        """
        workers, should_stop = self.session.workers, self.session.should_stop
        if workers.any(should_stop()):
            raise Stopped

        own = workers.share(rows)

        def interruptible(part: range) -> T:
            if workers.count == 1 and should_stop():
                raise Stopped
            found = work(part)
            self.session.progress(stage, own.index(part[-1]) + 1, len(own))
            return found

        return micro_batches(own, self.progress.micro_batch, interruptible, self._halved)

    def _halved(self, size: int) -> None:
        self.progress.micro_batch = size
        self._record({"event": "out_of_memory", "step": self.progress.step, "micro_batch": size})

    def _validate(self) -> None:
        negative = self.learner.negative(self.model.device)
        with self._explained():
            parts = partial(self._parts, "validation")
            found = self.validator.run(self.model, negative, parts, self.session.workers)
        best = judge(found, self.learner.parameters, self.progress, self.config)
        if best and self.session.workers.rank == 0:
            self.embedding().save(self.files.best, overwrite=True)
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

    def embedding(self) -> NegativeEmbedding:
        """The best embedding so far with its provenance."""
        progress, config = self.progress, self.config
        from .. import __version__

        training = {"window": list(config.gradient_window), "points": config.points, "through": config.through}
        if progress.changes:
            training["steps_changed"] = progress.changes
        if config.jitter:
            training["jitter"] = config.jitter.to_mapping()
        provenance = Provenance(
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
                "training": training,
            },
            sampling=config.sampling.to_mapping(),
        )
        tokens, pooled = (progress.best.get(name) for name in PART_NAMES)
        return NegativeEmbedding(tokens, self.model.family, self.learner.mask, pooled, provenance)

    def _checkpoint(self) -> None:
        if self.session.workers.rank == 0:
            self.files.save(TrainState(self.learner.state(), self.progress, self.scale), self.context)
        self._saved = time.monotonic()
        self.session.workers.wait()

    def _record(self, entry: dict[str, Any]) -> None:
        if self.session.workers.rank == 0:
            self.files.record(entry)

    def _result(self, reason: str) -> TrainResult:
        progress, embedding = self.progress, self.embedding()
        if self.session.workers.rank == 0:
            embedding.save(self.files.final, overwrite=True)
        return TrainResult(
            embedding,
            progress.best_step,
            finite(progress.best_reward),
            progress.start_reward,
            progress.step,
            reason,
            self.files.path,
        )
