"""Global training: one negative embedding for all prompts, by gradient ascent on a reward (arXiv 2412.19637)."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embedding import NegativeEmbedding, load_embedding
from ..model import Conditioning
from ..sampling import check_branches
from ..texts import foreseen
from . import schedule
from .config import EMBEDDING_SUFFIXES, TrainConfig
from .decoding import Decoder
from .identity import start_contents
from .judging import check_reward
from .learner import Learner
from .objective import Batch, Parts, Reach, RewardGradient, reward_gradient
from .results import TrainResult
from .run import Origin, Run, Session, Stopped
from .state import PART_NAMES
from .validation import finite

__all__ = ["Session", "Stopped", "Trainer"]


class Trainer(Run[TrainConfig, Learner, TrainResult]):
    """A run that learns an embedding. Mathematics in :mod:`objective` and :mod:`schedule`; the rest as :class:`Run`."""

    product, learned, remedy = "negative", "embedding", "Try a lower learning_rate, or norm_limit=1."

    def _origin(self) -> Origin[Learner]:
        check_reward(self.reward, self.prompts.train[0], self.model.device)
        embedding = self._start()
        start = self._encoded_start() if embedding is None else embedding.conditioning()
        self.decoding = Decoder.read(self.config.decoder).load(self.model)
        contents = start_contents(self.config.init, embedding)
        return Origin(contents, partial(Learner, start, self.config), self.decoding.contents())

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

    def _learn(self, rate: float) -> dict[str, Any]:
        gradients, reward = self._gradient()
        return {"reward": reward, "gradient_norm": self._ascend(gradients, rate)}

    def _negative(self) -> Conditioning:
        return self.learner.negative(self.model.device)

    def _gradient(self) -> tuple[dict[str, Tensor], float]:
        """Mean gradient per tensor over the whole batch (float64) and the mean reward, over all processes."""
        config = self.config
        totals = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.learner.parameters.items()}
        reward = torch.zeros(1, dtype=torch.float64)
        workers = self.session.workers
        own = workers.share(range(config.batch_size))
        for part in self._cut(own, "rollout_batch", partial(self._share, own)):
            for name in totals:
                totals[name] += getattr(part, name).cpu().double()
            reward += part.rewards.mean(0).sum().cpu().double()
        totals = {name: workers.sum(total) / config.batch_size for name, total in totals.items()}
        return totals, (workers.sum(reward) / config.batch_size).item()

    def _share(self, own: range, rows: range) -> RewardGradient:
        """What ``rows`` of ``own``, this process's rows of the step's batch, contribute."""
        done = own.index(rows[0])

        def told(count: int) -> None:
            nonlocal done
            done += count
            self.session.progress("step", done, len(own))

        parts = Parts(self.progress.micro_batch, partial(self._halved, "micro_batch"), self._pulse, told)
        return self.part_gradient(self.progress.step, rows, parts)

    def part_gradient(self, step: int, rows: range, parts: Parts) -> RewardGradient:
        """What ``rows`` of the batch of ``step`` contribute; the model must be set up (:meth:`inside`)."""
        config, model = self.config, self.model
        sampling = config.jitter.draw(config.sampling, config.seed, step)
        points = schedule.points_of(config, sampling, step, rows)
        seeds = schedule.noise_seeds(config.seed, step, rows)
        reach = Reach(
            points,
            config.through,
            loss_scale=self.scale.value,
            frames=config.judged_frames,
            decode=self.decoding.of(model, seeds),
        )
        prompts = schedule.batch_prompts(self.prompts.train, config.seed, step, config.batch_size, rows)
        batch = Batch(prompts, model.encode(prompts), model.noise(seeds, sampling.size))
        return reward_gradient(model, self.reward, batch, self.learner.negative(model.device), sampling, reach, parts)

    @property
    def rows_at_once(self) -> int:
        return self.config.rollout_rows

    def foreseen(self, steps: int) -> AbstractContextManager[None]:
        return foreseen(self.model, partial(self._coming, steps))

    def _coming(self, steps: int) -> Iterator[str]:
        """The prompts of this process from now on: of a validation, of steps, of further validations."""
        config, share = self.config, self.session.workers.share
        validation = self.validator.pairs(share(range(config.validation_pairs)))[0]
        yield from validation
        rows = share(range(config.batch_size))
        for step in range(self.progress.step, min(self.progress.step + steps, config.steps)):
            yield from schedule.batch_prompts(self.prompts.train, config.seed, step, config.batch_size, rows)
        yield from validation

    def trial(self, step: int, rows: range) -> None:
        def halved(size: int) -> None:
            self.progress.micro_batch = size

        self.part_gradient(step, rows, Parts(self.progress.micro_batch, halved)).tokens.cpu()

    def heaviest(self, done: int) -> int:
        return max(range(done, done + 50), key=partial(schedule.recorded_steps, self.config))

    def embedding(self) -> NegativeEmbedding:
        """The best embedding so far with its provenance."""
        config, best = self.config, self.progress.best
        training = {"window": list(config.gradient_window), "points": config.points, "through": config.through}
        if config.draws > 1:
            training["draws"] = config.draws
        if config.jitter:
            training["jitter"] = config.jitter.to_mapping()
        training |= self.decoding.notes()
        tokens, pooled = (best.get(name) for name in PART_NAMES)
        return NegativeEmbedding(tokens, self.model.family, self.learner.mask, pooled, self._provenance(training))

    def _save(self, path: Path) -> None:
        self.embedding().save(path, overwrite=True)

    def _result(self, reason: str) -> TrainResult:
        progress = self.progress
        return TrainResult(
            self.embedding(),
            progress.best_step,
            finite(progress.best_reward),
            progress.start_reward,
            progress.step,
            reason,
            self.files.path,
        )
