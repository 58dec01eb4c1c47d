"""Per-sample adaptation: a negative embedding of its own for each (prompt, seed) pair (arXiv 2412.19637).

Starts from a global embedding, takes at most a few steps per pair, stops a pair that no longer improves, and keeps the
best iterate by the reward of the finished picture, so that no pair ends below its start by that reward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..embedding import NegativeEmbedding
from ..model import Conditioning, DiffusionModel
from ..rewards import Reward
from ..sampling import Sampling, sample
from ..seeds import derive_seed
from ..texts import foreseen
from . import schedule
from .config import AdaptConfig
from .decoding import Decode, Decoder, Decoding, recomputing
from .judging import score
from .loss_scale import loss_scale_for
from .memory import batches, micro_batches
from .objective import Batch, Reach, reward_gradient
from .trainer import Stopped
from .workers import Workers


@dataclass(frozen=True)
class AdaptResult:
    """One row per pair, in the order given.

    negatives: tokens ``[N,L,D]`` (and mask, pooled of N rows) on the CPU; start_rewards, rewards: ``[N]`` of the
    finished picture before and after, rewards >= start_rewards; steps: ``[N]`` int64, the step each best came from;
    images: ``[N,3,H,W]``, the finished pictures of the best iterates (of a video its judged frames ``[N,T,3,H,W]``),
    of several processes only in the first, ``[0,3,H,W]`` in the others; sampling: how those were made.
    """

    negatives: Conditioning
    start_rewards: Tensor
    rewards: Tensor
    steps: Tensor
    images: Tensor
    sampling: Sampling

    def embedding(self, index: int, start: NegativeEmbedding) -> NegativeEmbedding:
        """Row ``index`` as a file-ready embedding with ``start``'s family and provenance, learned for ``sampling``."""
        row, scale = self.negatives[[index]], self.sampling.guidance.scale
        provenance = replace(start.provenance, sampling=self.sampling.to_mapping(), guidance_scale=scale)
        return NegativeEmbedding(row.tokens, start.family, row.mask, row.pooled, provenance)


@dataclass
class _Best:
    """The best iterate per pair so far, and how long ago it was found."""

    tokens: Tensor
    rewards: Tensor
    steps: Tensor
    images: Tensor

    def update(self, rows: Tensor, step: int, tokens: Tensor, rewards: Tensor, images: Tensor) -> None:
        better = rewards > self.rewards[rows]
        winners = rows[better]
        self.tokens[winners], self.rewards[winners] = tokens[better], rewards[better]
        self.images[winners], self.steps[winners] = images[better], step


def adapt(
    model: DiffusionModel,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[int],
    start: NegativeEmbedding,
    config: AdaptConfig | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    workers: Workers | None = None,
) -> AdaptResult:
    """Adapt ``start`` to every pair ``(prompts[i], seeds[i])``, ``config.micro_batch`` pairs at a time.

    progress: called with the number of pairs finished by each batch; should_stop: polled once a step; when it says so,
    the pairs keep the best they have. A model may raise ``Stopped`` from a pass to the same end. workers: processes
    that share the batches and stop together; the result is the same, bit for bit.
    Errors: ValueError for empty or unequal lists or an embedding of another family.
    """
    config = config or AdaptConfig()
    if not prompts or len(prompts) != len(seeds):
        raise ValueError(f"Got {len(prompts)} prompts and {len(seeds)} seeds, expected equal numbers, at least one.")
    start.require(model.family, model.width, model.max_tokens)
    workers = workers or Workers()
    job = _Job(prompts, seeds, start.conditioning(), reward, config, _Stop(should_stop or (lambda: False)))

    def prepared(model: DiffusionModel) -> list[AdaptResult]:
        with recomputing(model, config), foreseen(model, partial(job.coming, workers)):
            job.decoding = Decoder.read(config.decoder).load(model)
            return job.run(model, workers, progress or (lambda count: None))

    parts = model.run(prepared)
    tokens, rewards = torch.cat([p.negatives.tokens for p in parts]), torch.cat([p.rewards for p in parts])
    rest = start.conditioning()
    negatives = Conditioning(tokens, *(_repeat(t, len(prompts)) for t in (rest.mask, rest.pooled)))
    starts, steps, images = (torch.cat([getattr(p, f) for p in parts]) for f in ("start_rewards", "steps", "images"))
    return AdaptResult(negatives, starts, rewards, steps, images, config.sampling)


def adapt_table(
    model: DiffusionModel,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[Sequence[int]],
    start: NegativeEmbedding | None,
    config: AdaptConfig,
    *,
    progress: Callable[[int], None] | None = None,
) -> AdaptResult:
    """Adapt ``start`` to every pair of a comparison: ``seeds[i]`` are those of ``prompts[i]``.

    The rows come in pair order, all seeds of the first prompt first. Errors: as :func:`adapt`; ValueError without
    an embedding to start from.
    """
    if start is None:
        raise ValueError("Got no embedding to adapt, expected one. Try a learned embedding, or leave adaptation out.")
    pairs = [(prompt, seed) for prompt, row in zip(prompts, seeds, strict=True) for seed in row]
    return adapt(model, reward, [p for p, _ in pairs], [s for _, s in pairs], start, config, progress=progress)


def _repeat(tensor: Tensor | None, count: int) -> Tensor | None:
    return None if tensor is None else tensor.expand(count, *tensor.shape[1:])


@dataclass(frozen=True)
class _Pairs:
    """A batch of pairs, encoded and drawn once."""

    prompts: list[str]
    positive: Conditioning
    noise: Tensor
    seeds: list[int]
    decoding: Decoding

    def decode(self, model: DiffusionModel, rows: Tensor, step: int) -> Decode:
        return self.decoding.of(model, [derive_seed(self.seeds[row], step) for row in rows])

    def batch(self, rows: Tensor) -> Batch:
        return Batch([self.prompts[row] for row in rows], self.positive[rows], self.noise[rows])


@dataclass
class _Stop:
    """Whether to stop: asked for here, or in any process by the end of a round."""

    ask: Callable[[], bool]
    asked: bool = False

    def __call__(self) -> bool:
        self.asked |= bool(self.ask())
        return self.asked


@dataclass
class _Job:
    """All pairs of an adaptation, and how they are adapted."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    start: Conditioning
    reward: Reward
    config: AdaptConfig
    stop: _Stop
    decoding: Decoding = field(default_factory=Decoding)

    @property
    def batches(self) -> list[range]:
        return batches(len(self.prompts), self.config.micro_batch)

    def coming(self, workers: Workers) -> list[str]:
        """The prompts of this process, in their order."""
        own = workers.share(range(len(self.batches)))
        return [self.prompts[row] for place in own for row in self.batches[place]]

    def run(self, model: DiffusionModel, workers: Workers, progress: Callable[[int], None]) -> list[AdaptResult]:
        """The results in pair order, in parts of as many pairs as memory takes."""
        size = self.config.micro_batch

        def smaller(fitting: int) -> None:
            nonlocal size
            size = fitting

        def work(rows: range) -> tuple[list[AdaptResult], bool]:
            parts = list(micro_batches(rows, size, lambda part: self._adapted(model, part), smaller))
            return parts, self.stop.asked

        found: dict[int, list[AdaptResult]] = {}
        for results in workers.rounds(self.batches, work):
            for place, (parts, asked) in results.items():
                found[place] = parts if workers.rank == 0 else [_without_images(part) for part in parts]
                self.stop.asked |= asked
                progress(sum(len(part.rewards) for part in parts))
        return [part for place in sorted(found) for part in found[place]]

    def _adapted(self, model: DiffusionModel, rows: range) -> AdaptResult:
        prompts, seeds = [self.prompts[i] for i in rows], [self.seeds[i] for i in rows]
        noise = model.noise(seeds, self.config.sampling.size)
        pairs = _Pairs(prompts, model.encode(prompts), noise, seeds, self.decoding)
        return _adapt_batch(model, self.reward, pairs, self.start, self.config, self.stop)


def _without_images(result: AdaptResult) -> AdaptResult:
    return replace(result, images=result.images.new_empty(0, *result.images.shape[1:]))


def _adapt_batch(
    model: DiffusionModel,
    reward: Reward,
    pairs: _Pairs,
    start: Conditioning,
    config: AdaptConfig,
    should_stop: Callable[[], bool],
) -> AdaptResult:
    """A batch of pairs; pairs that ran out of patience leave it. Only the tokens are adapted."""
    count, scale = len(pairs.prompts), loss_scale_for(model)
    tokens = [start.tokens[0].clone().requires_grad_() for _ in range(count)]
    optimizer = torch.optim.AdamW(tokens, lr=config.learning_rate, betas=config.betas, weight_decay=0, maximize=True)
    best, starts, alive = None, None, torch.arange(count)
    for step in range(config.steps + 1):
        current = torch.stack([tokens[row].detach() for row in alive])
        rest = (_repeat(part, len(alive)) for part in (start.mask, start.pooled))
        negative, batch = Conditioning(current, *rest).to(model.device), pairs.batch(alive)
        try:
            decode = pairs.decode(model, alive, step)
            images, scores, gradients = _visit(model, reward, batch, negative, config, step, scale.value, decode)
        except Stopped:
            if best is not None:
                break
            images, scores, gradients = *_finished(model, reward, batch, negative, config), None
        if best is None:
            starts = scores.clone()
            best = _Best(current.clone(), scores.clone(), torch.zeros(count, dtype=torch.int64), images.clone())
        best.update(alive, step, current, scores, images)
        keep = step - best.steps[alive] < config.patience
        if gradients is None or not keep.any() or should_stop():
            break
        alive, gradients = alive[keep], gradients[keep]
        sound = gradients.flatten(1).isfinite().all(1)
        scale.update(bool(sound.all()))
        optimizer.zero_grad(set_to_none=True)
        for row, gradient in zip(alive[sound], gradients[sound], strict=True):
            tokens[row].grad = gradient
        optimizer.step()
    return AdaptResult(Conditioning(best.tokens), starts, best.rewards, best.steps, best.images, config.sampling)


def _visit(
    model: DiffusionModel,
    reward: Reward,
    batch: Batch,
    negative: Conditioning,
    config: AdaptConfig,
    step: int,
    loss_scale: float,
    decode: Decode,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The finished pictures, their rewards and the gradient there, on the CPU; after the last step none is needed."""
    if step == config.steps:
        return *_finished(model, reward, batch, negative, config), None
    points = schedule.gradient_points(config.window_of(config.sampling), config.points, "adapt", step)
    reach = Reach(points, config.through, True, loss_scale, config.judged_frames, decode)
    found = reward_gradient(model, reward, batch, negative, config.sampling, reach)
    return found.images.cpu(), found.final_rewards.cpu(), found.tokens.cpu()


@torch.no_grad()
def _finished(
    model: DiffusionModel, reward: Reward, batch: Batch, negative: Conditioning, config: AdaptConfig
) -> tuple[Tensor, Tensor]:
    """The finished pictures and their rewards, on the CPU."""
    latents = sample(model, batch.positive, negative, batch.noise, config.sampling)
    images = model.decode(latents, config.judged_frames)
    return images.cpu(), score(reward, images, batch.prompts).cpu()
