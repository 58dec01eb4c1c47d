"""Global training: one negative embedding for all prompts, by gradient ascent on a reward (arXiv 2412.19637)."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..embedding import NegativeEmbedding, Provenance, load_embedding
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import sample
from . import schedule
from .config import TrainConfig
from .memory import micro_batches, peak_memory_mib
from .objective import Batch, Reach, reward_gradient
from .results import Observer, TrainResult
from .state import PART_NAMES, RunDirectory, TrainState, changed, clone, digest_of
from .workers import Workers

T = TypeVar("T")
FREE_TO_CHANGE = frozenset({"micro_batch", "checkpoint_every", "keep_checkpoints", "checkpointing"})
MAX_SKIPPED = 5  # steps in a row without a finite gradient before a run gives up
FP16_LOSS_SCALE = 1024.0
PREVIEWS = 8


class Stopped(Exception):
    """Raised inside a step when stopping was asked for; the step is not counted."""


class Trainer:
    """Owns one run: its state, its directory and its loop. Mathematics lives in :mod:`objective` and :mod:`schedule`.

    prompts, validation_prompts: non-empty lists; directory: where everything is written; watch: a second reward that is
    only measured; resume: go on from the newest checkpoint in ``directory``; should_stop: polled between micro-batches.
    Errors, before any work: ValueError for empty prompts, a directory with another run, changed settings on resuming,
    or a reward that the model's pictures do not fit.
    """

    def __init__(
        self,
        model: DiffusionModel,
        reward: Reward,
        prompts: Sequence[str],
        validation_prompts: Sequence[str],
        config: TrainConfig,
        directory: str | Path,
        *,
        watch: Reward | None = None,
        observer: Observer | None = None,
        should_stop: Callable[[], bool] | None = None,
        resume: bool = False,
        workers: Workers | None = None,
    ) -> None:
        self.model, self.reward, self.watch, self.config = model, reward, watch, config
        self.prompts = _nonempty(prompts, "training prompts")
        self.validation_prompts = _nonempty(validation_prompts, "validation prompts")
        self.files = RunDirectory(directory, config.keep_checkpoints)
        self.observer, self.workers = observer, workers or Workers()
        self.should_stop = should_stop or (lambda: False)
        self._found = self.files.latest()
        if self._found and not resume:
            raise ValueError(
                f"{self.files.path} holds a run at step {self._found[0].step} already. "
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
        start = self._start()
        self.mask = start.mask
        self.origin = clone(_parts(start))
        self.context = {
            **self.config.to_mapping(),
            "reward": self.reward.name,
            "watch": self.watch.name if self.watch else None,
            "prompts": digest_of(self.prompts),
            "validation_prompts": digest_of(self.validation_prompts),
            "model": self.model.digest(),
        }
        if self._found:
            self.state, stored = self._found
            differences = changed(stored, self.context, FREE_TO_CHANGE)
            if differences:
                raise ValueError("This run cannot be resumed with other settings:\n- " + "\n- ".join(differences))
            self.state.micro_batch = min(self.state.micro_batch, self.config.micro_batch)
        else:
            scale = FP16_LOSS_SCALE if getattr(self.model, "dtype", None) == torch.float16 else 1.0
            self.state = TrainState(clone(self.origin), micro_batch=self.config.micro_batch, loss_scale=scale)
            self.state.best = clone(self.origin)
        if self.workers.rank == 0:
            self.files.rewind(self.state.step)
        self._restore_optimizer()

    def _start(self) -> Conditioning:
        """The conditioning that training starts from, one row."""
        init = self.config.init
        if init.endswith((".safetensors", ".bin", ".pt", ".pth")):
            start = load_embedding(init)
            start.require(self.model.family, self.model.width, self.model.max_tokens)
            return start.conditioning()
        return self.model.encode([init])

    def _restore_optimizer(self) -> None:
        state, config = self.state, self.config
        self.parameters = {name: t.clone().requires_grad_() for name, t in state.tensors.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            maximize=True,
        )
        if state.updates:
            for name, parameter in self.parameters.items():
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.updates)),
                    "exp_avg": state.first[name].clone(),
                    "exp_avg_sq": state.second[name].clone(),
                }

    def _capture(self) -> None:
        """Copy parameters and moments from the optimizer into the state."""
        self.state.tensors = clone(self.parameters)
        if self.state.updates:
            moments = {name: self.optimizer.state[p] for name, p in self.parameters.items()}
            self.state.first = clone({name: m["exp_avg"] for name, m in moments.items()})
            self.state.second = clone({name: m["exp_avg_sq"] for name, m in moments.items()})

    def _loop(self) -> str:
        state, config = self.state, self.config
        began = time.monotonic() - state.seconds
        try:
            while True:
                if _due(state.step, config.validate_every, config.steps) and state.validated_at != state.step:
                    self._validate()
                over = state.finished or state.step >= config.steps
                if over or _due(state.step, config.checkpoint_every, config.steps):
                    self._checkpoint()
                if over:
                    return "patience" if state.finished else "done"
                self._step(began)
        except Stopped:
            self._checkpoint()
            return "stopped"

    def _step(self, began: float) -> None:
        state, config = self.state, self.config
        clock = time.monotonic()
        gradients, reward = self._gradient()
        rate = schedule.learning_rate(config, state.step)
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm().item()
        applied = self._apply(gradients, norm, rate)
        state.step += 1
        state.seconds = time.monotonic() - began
        record = {
            "event": "step",
            "step": state.step,
            "reward": reward,
            "learning_rate": rate,
            "gradient_norm": norm if applied else None,
            "distance": self._distance(),
            "seconds": round(time.monotonic() - clock, 4),
            "memory_mib": round(peak_memory_mib(self.model.device)),
        }
        self._record(record)
        if self.observer:
            self.observer.on_step(record)
        if state.skipped_in_a_row >= MAX_SKIPPED:
            self._checkpoint()
            raise FloatingPointError(
                f"Got NaN or infinite gradients in {MAX_SKIPPED} steps in a row at step {state.step}; the best so far "
                f"is in {self.files.best}. Try --dtype bf16 or fp32, or a lower learning rate."
            )

    def _gradient(self) -> tuple[dict[str, Tensor], float]:
        """Mean gradient per tensor over the whole batch (float64) and the mean reward, over all processes."""
        config, step = self.config, self.state.step
        sampling = config.jitter.draw(config.sampling, config.seed, step)
        points = schedule.gradient_points(config.window_of(sampling), config.points, config.seed, step)
        reach = Reach(points, config.through, loss_scale=self.state.loss_scale, checkpoint_reward=config.checkpointing)
        totals = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.parameters.items()}
        reward = torch.zeros(1, dtype=torch.float64)
        negative = self._negative(self.parameters)

        def work(rows: range) -> Any:
            prompts = schedule.batch_prompts(self.prompts, config.seed, step, config.batch_size, rows)
            seeds = schedule.noise_seeds(config.seed, step, rows)
            batch = Batch(prompts, self.model.encode(prompts), self.model.noise(seeds, sampling.size))
            return reward_gradient(self.model, self.reward, batch, negative, sampling, reach)

        for part in self._micro_batches(range(config.batch_size), work):
            for name, gradient in zip(PART_NAMES, (part.tokens, part.pooled), strict=True):
                if gradient is not None:
                    totals[name] += gradient.cpu().double()
            reward += part.rewards.mean(0).sum().cpu().double()
        totals = {name: self.workers.sum(total) / config.batch_size for name, total in totals.items()}
        return totals, (self.workers.sum(reward) / config.batch_size).item()

    def _micro_batches(self, rows: range, work: Callable[[range], T]) -> Iterable[T]:
        """``work`` on this process's rows, a micro-batch at a time; raises Stopped between them when asked to.

        With several processes all of them must leave together, so they agree on it once, before the first part.
        """
        if self.workers.any(self.should_stop()):
            raise Stopped

        def interruptible(part: range) -> T:
            if self.workers.count == 1 and self.should_stop():
                raise Stopped
            return work(part)

        return micro_batches(self.workers.share(rows), self.state.micro_batch, interruptible, self._halved)

    def _halved(self, size: int) -> None:
        self.state.micro_batch = size
        self._record({"event": "out_of_memory", "step": self.state.step, "micro_batch": size})

    def _apply(self, gradients: dict[str, Tensor], norm: float, rate: float) -> bool:
        """One AdamW step upwards; a gradient that is not finite is skipped and lowers the loss scale."""
        state, config = self.state, self.config
        if not math.isfinite(norm):
            state.skipped_in_a_row += 1
            state.loss_scale = max(1.0, state.loss_scale / 2)
            return False
        state.skipped_in_a_row = 0
        clip = min(1.0, config.gradient_clip / max(norm, 1e-12)) if config.gradient_clip else 1.0
        for name, parameter in self.parameters.items():
            parameter.grad = (gradients[name] * clip).float()
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        state.updates += 1
        if config.norm_limit:
            self._project()
        return True

    @torch.no_grad()
    def _project(self) -> None:
        """Pull every token back into a ball around its start; the radius is in units of the mean token norm."""
        tokens, origin = self.parameters["tokens"], self.origin["tokens"]
        radius = self.config.norm_limit * origin.norm(dim=-1).mean()
        offset = tokens - origin
        tokens.copy_(origin + offset * (radius / offset.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1))

    def _distance(self) -> float:
        """Distance from the start relative to the start's norm."""
        origin = self.origin["tokens"]
        return ((self.parameters["tokens"].detach() - origin).norm() / origin.norm()).item()

    def _negative(self, tensors: dict[str, Tensor]) -> Conditioning:
        device = self.model.device
        tokens, pooled = (tensors.get(name) for name in PART_NAMES)
        mask = None if self.mask is None else self.mask.to(device)
        return Conditioning(tokens.detach().to(device), mask, None if pooled is None else pooled.detach().to(device))

    def validation_pairs(self, rows: Sequence[int]) -> tuple[list[str], list[int]]:
        """Prompts and noise seeds of validation pairs: the same in every validation of every run with this seed."""
        prompts = [self.validation_prompts[row % len(self.validation_prompts)] for row in rows]
        return prompts, [schedule.derive_seed("validation", self.config.seed, row) for row in rows]

    @torch.no_grad()
    def _validate(self) -> None:
        state, config = self.state, self.config
        negative = self._negative(self.parameters)
        sums, previews, shown = torch.zeros(2, dtype=torch.float64), [], []

        def work(rows: range) -> tuple[Tensor, Tensor, list[str]]:
            prompts, seeds = self.validation_pairs(rows)
            noise = self.model.noise(seeds, config.sampling.size)
            latents = sample(self.model, self.model.encode(prompts), negative, noise, config.sampling)
            images = self.model.decode(latents)
            scores = [self.reward.score(images, prompts)]
            scores += [self.watch.score(images, prompts)] if self.watch else [torch.zeros(1)]
            return torch.stack([score.sum().cpu().double() for score in scores]), images.cpu(), prompts

        for part, images, prompts in self._micro_batches(range(config.validation_pairs), work):
            sums += part
            if len(shown) < PREVIEWS:
                previews.append(images)
                shown += prompts
        reward, watch = (self.workers.sum(sums) / config.validation_pairs).tolist()
        best = self._judge(reward, watch if self.watch else None)
        record = {
            "event": "validation",
            "step": state.step,
            "reward": reward,
            "watch": watch if self.watch else None,
            "best": best,
        }
        self._record(record)
        if self.observer and previews:
            self.observer.on_validation(record, torch.cat(previews)[:PREVIEWS], shown[:PREVIEWS])

    def _judge(self, reward: float, watch: float | None) -> bool:
        """Decide whether this validation is the best so far, and whether patience has run out."""
        state, config = self.state, self.config
        state.validated_at = state.step
        if state.start_reward is None:
            state.start_reward, state.start_watch = reward, watch
        hacked = config.watch_drop is not None and watch is not None and watch < state.start_watch - config.watch_drop
        best = reward > state.best_reward and not hacked
        if best:
            state.best, state.best_reward, state.best_step = clone(self.parameters), reward, state.step
            state.without_best = 0
            if self.workers.rank == 0:
                self.embedding().save(self.files.best, overwrite=True)
        else:
            state.without_best += 1
            state.finished = bool(config.patience) and state.without_best >= config.patience
        return best

    def embedding(self) -> NegativeEmbedding:
        """The best embedding so far with its provenance."""
        state, config = self.state, self.config
        from .. import __version__

        provenance = Provenance(
            base_model=self.model.name,
            base_digest=self.context["model"],
            rewards=self.reward.name,
            steps=state.best_step,
            guidance_scale=config.sampling.guidance.scale,
            seed=config.seed,
            prompts_digest=self.context["prompts"],
            version=__version__,
            notes={"validation_reward": _finite(state.best_reward), "start_reward": state.start_reward},
        )
        tokens, pooled = (state.best.get(name) for name in PART_NAMES)
        return NegativeEmbedding(tokens, self.model.family, self.mask, pooled, provenance)

    def _checkpoint(self) -> None:
        self._capture()
        if self.workers.rank == 0:
            self.files.save(self.state, self.context)
        self.workers.wait()

    def _record(self, entry: dict[str, Any]) -> None:
        if self.workers.rank == 0:
            self.files.record(entry)

    def _result(self, reason: str) -> TrainResult:
        state = self.state
        embedding = self.embedding()
        if self.workers.rank == 0:
            embedding.save(self.files.final, overwrite=True)
        return TrainResult(
            embedding,
            state.best_step,
            _finite(state.best_reward),
            state.start_reward,
            state.step,
            reason,
            self.files.path,
        )


def _parts(conditioning: Conditioning) -> dict[str, Tensor]:
    parts = {"tokens": conditioning.tokens, "pooled": conditioning.pooled}
    return {name: tensor for name, tensor in parts.items() if tensor is not None}


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _nonempty(prompts: Sequence[str], what: str) -> list[str]:
    kept = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not kept:
        raise ValueError(f"Got no {what}, expected at least one non-empty line.")
    return kept
