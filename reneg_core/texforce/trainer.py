"""TexForce: a LoRA on the text encoder, tuned by a reward while the denoiser is frozen (arXiv 2311.15657)."""

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..digests import digest_of
from ..embedding import NegativeEmbedding, load_embedding
from ..model import Conditioning, TunableModel
from ..sampling import check_branches
from ..seeds import derive_seed
from ..training import schedule
from ..training.config import EMBEDDING_SUFFIXES
from ..training.decoding import Decoder
from ..training.judging import check_reward, require_finite, score
from ..training.learner import Climber
from ..training.run import Origin, Run, Stopped
from ..training.state import LearnerState
from ..training.validation import finite
from .adapter import Adapter, attached
from .advantages import PromptStatistics
from .config import TexForceConfig
from .lora import TextLora, load_text_lora
from .means import Means
from .objective import Branches, direct_gradient, path_divergence, policy_gradient, through_encoder
from .policy import stochastic_steps
from .rollout import Kept, Rollout, roll_out

T = TypeVar("T")


@dataclass(frozen=True)
class TexForceResult:
    """What a run gave: the best LoRA by validation, and why it ended ("done", "stopped", "patience").

    The rewards are None if the run was stopped before its first validation.
    """

    lora: TextLora
    best_step: int
    best_reward: float | None
    start_reward: float | None
    steps: int
    reason: str
    directory: Path


class Tuner(Climber):
    """The LoRA's parameters while they climb, and the statistics of every prompt's rewards."""

    def __init__(
        self, origin: Mapping[str, Tensor], config: TexForceConfig, prompts: int, state: LearnerState | None = None
    ) -> None:
        super().__init__(origin, config, state)
        kept = state.statistics if state else None
        self.statistics = PromptStatistics(prompts, config.statistics_buffer, config.statistics_minimum, kept)

    def state(self) -> LearnerState:
        return replace(super().state(), statistics=self.statistics.tensors)


class TexForce(Run[TexForceConfig, Tuner, TexForceResult]):
    """A run that tunes the text encoders of ``model``. A step is counted whole or, when it is stopped, not at all."""

    product, learned, remedy = "text-lora", "LoRA", "Try a lower learning_rate."
    model: TunableModel

    def inside(self, work: Callable[[], T]) -> T:
        with ExitStack() as self._around:
            return super().inside(work)

    def _origin(self) -> Origin[Tuner]:
        config = self.config
        if not isinstance(self.model, TunableModel):
            raise ValueError(
                f"Got the model {self.model.name}, whose text encoders cannot be tuned here. Expected Stable Diffusion "
                "1.x, 2.x or XL, whose text encoders are CLIP's."
            )
        check_reward(self.reward, self.prompts.train[0], self.model.device, gradient=config.route == "direct")
        if config.route == "policy":
            self._check_window(stochastic_steps(self.model.sigmas(config.sampling)))
        start = load_text_lora(config.init) if config.init else None
        self._fixed = self._fixed_negative()
        contents = {"prompt": ""} if start is None else {"file": Path(config.init).name, "LoRA": start.digest()}
        beside = {} if self._fixed is None else {"negative embedding": digest_of({"tokens": self._fixed.tokens})}
        self.decoding = Decoder.read(config.decoder).load(self.model)
        return Origin(contents, partial(self._attached, start), beside | self.decoding.contents())

    def _check_window(self, drawing: int) -> None:
        """ValueError where the policy draws in no step that it may learn from."""
        first = self.config.window[0] if self.config.window else 0
        if first >= drawing:
            raise ValueError(
                f"Got {self.config.sampling.steps} steps, of which the first {drawing} draw noise, and none of "
                f"them from step {first} on. Expected sampling.steps of 2 or more, and a window that begins earlier."
            )

    def _fixed_negative(self) -> Conditioning | None:
        """The negative embedding that ``config.negative`` names, None for a prompt."""
        if not self.config.negative.endswith(EMBEDDING_SUFFIXES):
            return None
        embedding: NegativeEmbedding = load_embedding(self.config.negative)
        embedding.require(self.model.family, self.model.width, self.model.max_tokens)
        check_branches(self.model.encode([""]), embedding.conditioning())
        return embedding.conditioning().to(self.model.device)

    def _attached(self, start: TextLora | None, state: LearnerState | None) -> Tuner:
        """Put the LoRA into the encoders, as ``start`` or the checkpoint has it."""
        config, encoders = self.config, self.model.text_encoders()
        self.adapter: Adapter = self._around.enter_context(attached(encoders, config.rank, config.alpha, config.seed))
        self._start = dict(self.adapter.parameters) if start is None else self.adapter.tensors_of(start)
        self._start = {name: self._start[name].detach().cpu().clone() for name in self.adapter.parameters}
        return self._tuner(state)

    def _tuner(self, state: LearnerState | None) -> Tuner:
        tuner = Tuner(self._start, self.config, len(self.prompts.train), state)
        self.adapter.load(tuner.parameters)
        return tuner

    # a step

    def _learn(self, rate: float) -> dict[str, Any]:
        before, scale = self.learner.state(), replace(self.scale)
        try:
            return self._policy_step(rate) if self.config.route == "policy" else self._direct_step(rate)
        except Stopped:
            self.learner, self.scale = self._tuner(before), scale
            raise

    def _policy_step(self, rate: float) -> dict[str, Any]:
        config, step = self.config, self.progress.step
        rollouts = [Kept.of(self._parts("step", rows, partial(self._numbered, step))) for rows in config.parts]
        rewards = self._everyone(rollouts)
        advantages = self._advantages(step, rewards)
        record = Means(("gradient_norm", "ratio_change", "clipped", "kl"))
        for epoch in range(config.inner_epochs):
            for rows, kept in zip(config.parts, rollouts, strict=True):
                gradients = self._sums(rows, partial(self._policy_part, step, epoch, kept, advantages, record))
                record.add("gradient_norm", self._ascend(gradients, rate))
        return {
            "reward": rewards.mean().item(),
            "reward_std": rewards.std(correction=0).item(),
            **record.over(self.session.workers),
        }

    def _direct_step(self, rate: float) -> dict[str, Any]:
        record, rewards = Means(("gradient_norm",)), torch.zeros(1, dtype=torch.float64)
        for _ in range(self.config.inner_epochs):
            for rows in self.config.parts:
                total = torch.zeros(1, dtype=torch.float64)
                gradients = self._sums(rows, partial(self._direct_part, self.progress.step, total))
                rewards += self.session.workers.sum(total)
                record.add("gradient_norm", self._ascend(gradients, rate))
        mean = rewards.item() / (self.config.batch_size * self.config.inner_epochs)
        return {"reward": mean, **record.over(self.session.workers)}

    def _ascend(self, gradients: Mapping[str, Tensor], rate: float) -> float | None:
        norm = super()._ascend(gradients, rate)
        self.adapter.load(self.learner.parameters)
        return norm

    def _sums(self, rows: range, work: Callable[[range], list[Tensor]]) -> dict[str, Tensor]:
        """The gradient (float64) by parameter: ``work``'s over all ``rows`` and processes, as a mean of a row's."""
        totals = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.learner.parameters.items()}
        for part in self._parts("step", rows, work):
            for total, gradient in zip(totals.values(), part, strict=True):
                total += gradient.detach().cpu().double()
        count = len(rows) * self.scale.value
        return {name: self.session.workers.sum(total) / count for name, total in totals.items()}

    # rows

    def _prompts(self, step: int, rows: range) -> list[int]:
        """Which training prompts the ``rows`` of the batch of ``step`` have."""
        config, count = self.config, len(self.prompts.train)
        different = config.batch_size // config.samples_per_prompt
        return [schedule.prompt_index(count, config.seed, step * different + row % different) for row in rows]

    def _noise(self, step: int, rows: range, *which: object) -> Tensor:
        """Standard normal latents of ``rows``: to begin with, or for the sampling step ``which``."""
        return self.model.noise(self._seeds(step, rows, *which), self.config.sampling.size)

    def _seeds(self, step: int, rows: range, *which: object) -> list[int]:
        return [derive_seed("texforce", self.config.seed, step, row, *which) for row in rows]

    def _branches(self, prompts: list[str], gradient: bool = True) -> Branches:
        """What the tuned encoder says, with its graph where that is asked for."""
        negative = self._fixed
        if negative is None:
            negative = self.model.encode([self.config.negative], gradient=gradient)
        return Branches(self.model.encode(prompts, gradient=gradient), negative)

    def _texts(self, step: int, rows: range) -> list[str]:
        return [self.prompts.train[index] for index in self._prompts(step, rows)]

    def _sampled(self, step: int, rows: range) -> Rollout:
        """Trajectories of ``rows`` with their rewards. The encoder runs as it does when it learns, so that the
        probabilities are the same numbers."""
        prompts = self._texts(step, rows)
        said = self._branches(prompts)
        branches = Branches(said.positive.detach(), said.negative.detach())
        states, log_probs, images = roll_out(
            self.model, branches.positive, branches.negative, self._noise(step, rows), self.config.sampling,
            partial(self._noise, step, rows), self.config.judged_frames,
        )  # fmt: skip
        with torch.no_grad():
            rewards = score(self.reward, images, prompts).cpu().double()
        require_finite(self.reward, rewards, prompts, "sampled")
        return Rollout(prompts, states, log_probs, rewards)

    def _numbered(self, step: int, rows: range) -> tuple[int, Rollout]:
        return rows.start, self._sampled(step, rows)

    def _everyone(self, rollouts: list[Kept]) -> Tensor:
        """The rewards ``[batch_size]`` of all processes."""
        found = torch.zeros(self.config.batch_size, dtype=torch.float64)
        for kept in rollouts:
            kept.place(found)
        return self.session.workers.sum(found)

    def _advantages(self, step: int, rewards: Tensor) -> Tensor:
        prompts = self._prompts(step, range(self.config.batch_size))
        limit = self.config.advantage_clip
        return self.learner.statistics.advantages(prompts, rewards).clamp(-limit, limit)

    def _policy_part(
        self, step: int, epoch: int, kept: Kept, advantages: Tensor, record: Means, rows: range
    ) -> list[Tensor]:
        """The gradient of the clipped objective, summed over ``rows``; what it came to goes into ``record``."""
        rollout, config = kept.rows(rows), self.config
        indices = self._chosen(step, epoch, rows, len(rollout.log_probs))
        found, gradients = through_encoder(
            partial(self._branches, rollout.prompts),
            list(self.adapter.parameters.values()),
            lambda branches: policy_gradient(
                self.model, branches, rollout, advantages[list(rows)], config.sampling, indices,
                clip=config.clip_range, loss_scale=self.scale.value,
            ),
        )  # fmt: skip
        apart = self._divergence(rollout, int(indices[0, 0])) if epoch == 0 else None
        for name, value in (("ratio_change", found.ratio_change), ("clipped", found.clipped), ("kl", apart)):
            record.add(name, value, len(rows))
        return gradients

    def _chosen(self, step: int, epoch: int, rows: range, steps: int) -> Tensor:
        """The sampling steps that each row is learned from, ``[K,rows]``: the first of a permutation of its own."""
        first, last = self.config.window or (0, steps)
        allowed = range(first, min(last, steps))
        count = max(1, round(len(allowed) * self.config.timestep_fraction))
        orders = [
            random.Random(derive_seed("timesteps", self.config.seed, step, epoch, row)).sample(allowed, count)
            for row in rows
        ]
        return torch.tensor(orders).T.contiguous()

    @torch.no_grad()
    def _divergence(self, rollout: Rollout, index: int) -> float:
        """How far ``rollout``'s trajectories are from the start's, in nats, as a mean over its rows."""
        now = self._branches(rollout.prompts, gradient=False)
        self.adapter.load(self._start)
        try:
            start = self._branches(rollout.prompts, gradient=False)
        finally:
            self.adapter.load(self.learner.parameters)
        return path_divergence(self.model, now, start, rollout, self.config.sampling, index).mean().item()

    def _direct_part(self, step: int, total: Tensor, rows: range) -> list[Tensor]:
        """The gradient of the rewards of ``rows``, summed; ``total`` grows by the rewards."""
        prompts, config = self._texts(step, rows), self.config
        rewards, gradients = through_encoder(
            partial(self._branches, prompts),
            list(self.adapter.parameters.values()),
            lambda branches: direct_gradient(
                self.model, branches, self.reward, prompts, self._noise(step, rows), config.sampling,
                through=config.through, loss_scale=self.scale.value, frames=config.judged_frames,
                decode=self.decoding.of(self.model, self._seeds(step, rows)),
            ),
        )  # fmt: skip
        total += rewards.sum().cpu().double()
        return gradients

    def trial(self, step: int, rows: range) -> None:
        if self.config.route == "direct":
            parts = self._direct_part(step, torch.zeros(1, dtype=torch.float64), rows)
        else:
            kept, nothing = Kept.of([self._numbered(step, rows)]), torch.zeros(self.config.batch_size)
            parts = self._policy_part(step, 0, kept, nothing, Means(("ratio_change", "clipped", "kl")), rows)
        for gradient in parts:
            gradient.cpu()

    # what comes out

    def _negative(self) -> Conditioning:
        return self.model.encode([self.config.negative]) if self._fixed is None else self._fixed

    def lora(self) -> TextLora:
        """The best so far with its provenance."""
        config = self.config
        training = {"method": "texforce", "route": config.route, "rank": config.rank, "alpha": config.alpha}
        provenance = self._provenance(training | self.decoding.notes())
        return replace(self.adapter.lora(self.progress.best), provenance=provenance)

    def _save(self, path: Path) -> None:
        lora = self.lora()
        lora.save(path)
        if path == self.files.final:
            wrapped = {name: hasattr(encoder, "text_model") for name, encoder in self.model.text_encoders().items()}
            lora.save_adapters(path.with_suffix(""), wrapped)

    def _result(self, reason: str) -> TexForceResult:
        progress = self.progress
        return TexForceResult(
            self.lora(),
            progress.best_step,
            finite(progress.best_reward),
            progress.start_reward,
            progress.step,
            reason,
            self.files.path,
        )
