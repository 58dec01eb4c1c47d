"""Global training: one negative embedding for all prompts, by gradient ascent on a reward (arXiv 2412.19637)."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..embedding import NegativeEmbedding, Provenance, load_embedding
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from . import schedule
from .config import TrainConfig
from .learner import Learner
from .loss_scale import MAX_SKIPPED, loss_scale_for
from .memory import micro_batches, peak_memory_mib
from .objective import Batch, Reach, reward_gradient
from .prompts import Prompts, split_prompts
from .results import Observer, TrainResult
from .state import PART_NAMES, Progress, RunDirectory, TrainState, changed, digest_of
from .validation import Validator, finite, judge
from .workers import Workers

T = TypeVar("T")
FREE_TO_CHANGE = frozenset({"micro_batch", "checkpoint_every", "keep_checkpoints", "checkpointing"})


class Stopped(Exception):
    """Raised inside a step when stopping was asked for; the step is not counted."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Session:
    """Around a run: who watches it, whether it goes on from the newest checkpoint in its folder, ``should_stop`` that
    is polled between micro-batches, and the processes that share the work."""

    observer: Observer | None = None
    should_stop: Callable[[], bool] = _never
    resume: bool = False
    workers: Workers = field(default_factory=Workers)


class Trainer:
    """Owns one run: its directory and its loop. The embedding lives in :class:`Learner`, what was found so far in
    :class:`Progress`; mathematics in :mod:`objective` and :mod:`schedule`, judging in :mod:`validation`.

    prompts: non-empty lists; directory: where everything is written; watch: a second reward that is only measured.
    Errors, before any work: ValueError for empty prompts or a directory with another run; then for changed settings on
    resuming, or a start that does not fit the model.
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
        self.files = RunDirectory(directory, config.keep_checkpoints)
        self._found = self.files.latest()
        if self._found and not self.session.resume:
            raise ValueError(
                f"{self.files.path} holds a run at step {self._found[0].progress.step} already. "
                "Try resuming it, or another output folder."
            )

    def run(self) -> TrainResult:
        """Train until done, stopped or out of patience; the best embedding is on disk in each case."""
        return self.model.run(self._run)

    def _run(self, model: DiffusionModel) -> TrainResult:
        self.model = model
        model.checkpointing(self.config.checkpointing)
        try:
            self._prepare()
            reason = self._loop()
        finally:
            model.checkpointing(False)
        return self._result(reason)

    def _prepare(self) -> None:
        start, watch = self._start(), self.validator.watch
        self.context = {
            **self.config.to_mapping(),
            "reward": self.reward.name,
            "watch": watch.name if watch else None,
            "prompts": digest_of(self.prompts.train),
            "validation_prompts": digest_of(self.prompts.validation),
            "model": self.model.digest(),
        }
        if self._found:
            found, stored = self._found
            differences = changed(stored, self.context, FREE_TO_CHANGE)
            if differences:
                raise ValueError("This run cannot be resumed with other settings:\n- " + "\n- ".join(differences))
            self.learner = Learner(start, self.config, found.learner)
            self.progress, self.scale = found.progress, found.scale
            self.progress.micro_batch = min(self.progress.micro_batch, self.config.micro_batch)
        else:
            self.learner, self.scale = Learner(start, self.config), loss_scale_for(self.model)
            self.progress = Progress(self.learner.state().tensors, micro_batch=self.config.micro_batch)
        if self.session.workers.rank == 0:
            self.files.rewind(self.progress.step)

    def _start(self) -> Conditioning:
        """The conditioning that training starts from, one row; a prompt's padding is attended to, so that it learns."""
        init = self.config.init
        if init.endswith((".safetensors", ".bin", ".pt", ".pth")):
            start = load_embedding(init)
            start.require(self.model.family, self.model.width, self.model.max_tokens)
            return start.conditioning()
        start = self.model.encode([init])
        return start if start.mask is None else replace(start, mask=torch.ones_like(start.mask))

    def _loop(self) -> str:
        progress, config = self.progress, self.config
        began = time.monotonic() - progress.seconds
        try:
            while True:
                if _due(progress.step, config.validate_every, config.steps) and progress.validated_at != progress.step:
                    self._validate()
                over = progress.finished or progress.step >= config.steps
                if over or _due(progress.step, config.checkpoint_every, config.steps):
                    self._checkpoint()
                if over:
                    return "patience" if progress.finished else "done"
                self._step(began)
        except Stopped:
            self._checkpoint()
            return "stopped"

    def _step(self, began: float) -> None:
        progress, clock = self.progress, time.monotonic()
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
                f"Got NaN or infinite gradients in {MAX_SKIPPED} steps in a row at step {progress.step}; the best so "
                f"far is in {self.files.best}. Try --dtype bf16 or fp32, or a lower learning rate."
            )

    def _gradient(self) -> tuple[dict[str, Tensor], float]:
        """Mean gradient per tensor over the whole batch (float64) and the mean reward, over all processes."""
        config, step, model = self.config, self.progress.step, self.model
        sampling = config.jitter.draw(config.sampling, config.seed, step)
        points = schedule.gradient_points(config.window_of(sampling), config.points, config.seed, step)
        reach = Reach(points, config.through, loss_scale=self.scale.value, checkpoint_reward=config.checkpointing)
        totals = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.learner.parameters.items()}
        reward = torch.zeros(1, dtype=torch.float64)
        negative = self.learner.negative(model.device)

        def work(rows: range) -> Any:
            prompts = schedule.batch_prompts(self.prompts.train, config.seed, step, config.batch_size, rows)
            noise = model.noise(schedule.noise_seeds(config.seed, step, rows), sampling.size)
            batch = Batch(prompts, model.encode(prompts), noise)
            return reward_gradient(model, self.reward, batch, negative, sampling, reach)

        for part in self._parts(range(config.batch_size), work):
            for name in totals:
                totals[name] += getattr(part, name).cpu().double()
            reward += part.rewards.mean(0).sum().cpu().double()
        workers = self.session.workers
        totals = {name: workers.sum(total) / config.batch_size for name, total in totals.items()}
        return totals, (workers.sum(reward) / config.batch_size).item()

    def _parts(self, rows: range, work: Callable[[range], T]) -> Iterable[T]:
        """``work`` on this process's rows, a micro-batch at a time; raises Stopped between them when asked to.

        With several processes all of them must leave together, so they agree on it once, before the first part.
        """
        workers, should_stop = self.session.workers, self.session.should_stop
        if workers.any(should_stop()):
            raise Stopped

        def interruptible(part: range) -> T:
            if workers.count == 1 and should_stop():
                raise Stopped
            return work(part)

        return micro_batches(workers.share(rows), self.progress.micro_batch, interruptible, self._halved)

    def _halved(self, size: int) -> None:
        self.progress.micro_batch = size
        self._record({"event": "out_of_memory", "step": self.progress.step, "micro_batch": size})

    def _validate(self) -> None:
        negative = self.learner.negative(self.model.device)
        found = self.validator.run(self.model, negative, self._parts, self.session.workers)
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
        if config.jitter:
            training["jitter"] = config.jitter.to_mapping()
        provenance = Provenance(
            base_model=self.model.name,
            base_digest=self.context["model"],
            rewards=self.reward.name,
            steps=progress.best_step,
            guidance_scale=config.sampling.guidance.scale,
            seed=config.seed,
            prompts_digest=self.context["prompts"],
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


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last
