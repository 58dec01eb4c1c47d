"""The paper's question of parameter efficiency (ReNeg, arXiv 2412.19637): what does a learned negative reach with its
few numbers, against a LoRA on the denoiser and against all of the denoiser's parameters?

All three climb the same reward by the same gradient, with guidance inside, on the same prompts and noises, for the same
number of steps. They begin as the same model: the empty prompt and the denoiser as it is. Each has the best of a few
learning rates by the validation reward.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .backends import DiffusersModel
from .evaluation import Evaluation, Keep, Measure, Mode, Pairs, evaluate
from .evaluation.modes import EMBEDDING, NONE
from .model import Conditioning, DiffusionModel
from .rewards import Reward
from .sampling import Sampling, State, advance
from .training import Batch, Prompts, Reach, TrainConfig, reward_gradient, schedule
from .training.judging import score
from .training.memory import micro_batches
from .training.objective import Way
from .training.validation import Validator
from .training.workers import Workers

LORA, DENOISER = "lora", "denoiser"
METHODS = (EMBEDDING, LORA, DENOISER)
LABELS = {
    NONE: "the model as it is",
    EMBEDDING: "negative embedding",
    LORA: "LoRA on the denoiser",
    DENOISER: "the whole denoiser",
}
RATES: dict[str, tuple[float, ...]] = {
    EMBEDDING: (1e-1, 2e-1, 5e-1),
    LORA: (3e-3, 1e-2, 3e-2),
    DENOISER: (1e-4, 3e-4, 1e-3),
}
"""Learning rates that each method is tried with: on the tiny world the best lie between them."""
RANK = 4
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
"""What of the denoiser the LoRA is on."""


@dataclass(frozen=True)
class Course:
    """One method at one learning rate.

    parameters: how many numbers it trains; seconds: of one step; curve: (step, validation reward), step 0 first.
    """

    method: str
    rate: float
    parameters: int
    seconds: float
    curve: tuple[tuple[int, float], ...]

    @property
    def reward(self) -> float:
        """The validation reward at the end."""
        return self.curve[-1][1]


@dataclass(frozen=True)
class Analysis:
    """courses: every method at every rate; chosen: the best rate's course by method; evaluation: the chosen ones and
    the model as it is (``none``) as modes, on test pairs."""

    courses: tuple[Course, ...]
    chosen: Mapping[str, Course]
    evaluation: Evaluation

    def rows(self) -> list[dict[str, Any]]:
        """A row per method: what it trains, what that takes, and what it reaches on the test pairs."""
        found, judge = [], self.evaluation.judge
        for method, course in self.chosen.items():
            means = {measure: self.evaluation.mean(measure, method) for measure in self.evaluation.measures}
            gain = self.evaluation.difference(judge, method, NONE)
            found.append(
                {
                    "method": method,
                    "label": LABELS[method],
                    "parameters": course.parameters,
                    "rate": course.rate,
                    "seconds": course.seconds,
                    "validation": course.reward,
                    **{measure: mean.value for measure, mean in means.items()},
                    "gain": gain.value,
                    "gain_interval": list(gain.interval) if gain.interval else None,
                    "win_rate": self.evaluation.win_rate(judge, method, NONE).value,
                }
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data; the evaluation in the form of its own ``to_json``."""
        return {
            "rows": self.rows(),
            "courses": [vars(c) for c in self.courses],
            "evaluation": self.evaluation.to_json(),
        }


@dataclass(frozen=True)
class Work:
    """What all methods share: the reward, the prompts, and the settings, whose learning rate does not count."""

    reward: Reward
    prompts: Prompts
    config: TrainConfig
    rank: int = RANK


def analyse(
    model: DiffusersModel,
    work: Work,
    pairs: Pairs,
    measures: Mapping[str, Measure],
    rates: Mapping[str, Sequence[float]] = RATES,
    *,
    keep: Keep | None = None,
    progress: Callable[[str, float, int], Any] | None = None,
) -> Analysis:
    """Train the methods that ``rates`` names, each at all of its rates, and compare the best of each on ``pairs``.

    measures: as :func:`reneg_core.evaluation.evaluate` takes them; progress: called with (method, rate, steps done).
    The model is as before afterwards. Errors: ValueError for unknown methods, no rates, and a model that is not in
    fp32; ImportError for a LoRA without peft.
    """
    _check(model, rates)

    def prepared(model: DiffusionModel) -> Analysis:
        courses, chosen, scores = [], {}, {}
        for method, tried in rates.items():
            best, state = None, {}
            for rate in tried:
                tell = progress and (lambda step, m=method, r=rate: progress(m, r, step))
                course, trained = _train(model, work, method, rate, tell)
                courses.append(course)
                if best is None or course.reward > best.reward:
                    best, state = course, trained
            chosen[method] = best
            with trainable(model, method, work) as (parameters, negative):
                _restore(parameters, state)
                scores[method] = _evaluated(model, {method: negative()}, pairs, measures, work.config, keep)
        start = _evaluated(model, {NONE: model.encode([""])}, pairs, measures, work.config, keep)
        return Analysis(tuple(courses), chosen, _joined([start, *scores.values()]))

    return model.run(prepared)


def _check(model: DiffusersModel, rates: Mapping[str, Sequence[float]]) -> None:
    unknown = [method for method in rates if method not in METHODS]
    if unknown or not rates or not all(rates.values()):
        got = unknown[0] if unknown else "no learning rates"
        raise ValueError(f"Got {got}, expected learning rates for some of {', '.join(METHODS)}.")
    if model.dtype != torch.float32:
        raise ValueError(f"Got a model in {model.dtype}, expected fp32: small steps of its weights are lost in less.")
    if LORA in rates:
        _lora_config(RANK)


@contextmanager
def trainable(
    model: DiffusersModel, method: str, work: Work
) -> Iterator[tuple[dict[str, Tensor], Callable[[], Conditioning]]]:
    """What ``method`` trains, by name, and the negative of the moment; the model is as before after the block."""
    null, network = model.encode([""]), model.network
    if method == EMBEDDING:
        start = replace(null, mask=None if null.mask is None else torch.ones_like(null.mask))
        names = [name for name in ("tokens", "pooled") if getattr(start, name) is not None]
        parts = {name: getattr(start, name).clone().requires_grad_() for name in names}
        yield parts, lambda: replace(start, **{name: part.detach() for name, part in parts.items()})
        return
    if method == LORA:
        import peft
        from diffusers.utils import recurse_remove_peft_layers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.config.seed)
            peft.inject_adapter_in_model(_lora_config(work.rank), network)
        parts = {name: part for name, part in network.named_parameters() if part.requires_grad}
        try:
            yield parts, lambda: null
        finally:
            recurse_remove_peft_layers(network)
            del network.peft_config
        return
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try:
        yield dict(network.requires_grad_(True).named_parameters()), lambda: null
    finally:
        network.requires_grad_(False).load_state_dict(before)


def _lora_config(rank: int) -> Any:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(
            f"The package peft is missing; it makes the LoRA. Try: pip install peft, or leave the method {LORA} out."
        ) from error
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=ATTENTION)


def _train(
    model: DiffusersModel, work: Work, method: str, rate: float, progress: Callable[[int], Any] | None
) -> tuple[Course, dict[str, Tensor]]:
    """A training of ``work.config.steps`` steps; its course and what it ended with."""
    config, spent = replace(work.config, learning_rate=rate), 0.0
    with trainable(model, method, work) as (parameters, negative):
        optimizer = torch.optim.AdamW(
            list(parameters.values()), lr=rate, betas=config.betas, weight_decay=config.weight_decay, maximize=True
        )
        curve = [(0, _validated(model, work, negative()))]
        for step in range(config.steps):
            clock = time.perf_counter()
            gradients = _gradient(model, work, method, parameters, negative(), step)
            for name, parameter in parameters.items():
                parameter.grad = gradients[name]
            optimizer.param_groups[0]["lr"] = schedule.learning_rate(config, step)
            optimizer.step()
            spent += time.perf_counter() - clock
            if progress:
                progress(step + 1)
            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                curve.append((step + 1, _validated(model, work, negative())))
        count = sum(parameter.numel() for parameter in parameters.values())
        course = Course(method, rate, count, spent / config.steps, tuple(curve))
        return course, {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _gradient(
    model: DiffusersModel, work: Work, method: str, parameters: dict[str, Tensor], negative: Conditioning, step: int
) -> dict[str, Tensor]:
    """The batch's mean gradient of ``step`` by parameter: prompts, noises and points are those of a training."""
    config = work.config
    points = schedule.gradient_points(config.gradient_window, config.points, config.seed, step)
    reach = Reach(points, config.through, frames=config.judged_frames)
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def part(rows: range) -> dict[str, Tensor]:
        prompts = schedule.batch_prompts(work.prompts.train, config.seed, step, config.batch_size, rows)
        noise = model.noise(schedule.noise_seeds(config.seed, step, rows), config.sampling.size)
        batch = Batch(prompts, model.encode(prompts), noise)
        if method == EMBEDDING:
            found = reward_gradient(model, work.reward, batch, negative, config.sampling, reach)
            return {name: getattr(found, name) for name in parameters}
        return weight_gradient(model, work.reward, batch, negative, config.sampling, reach, parameters)

    for found in micro_batches(range(config.batch_size), config.micro_batch, part):
        for name, gradient in found.items():
            totals[name] += gradient / config.batch_size
    return totals


def weight_gradient(
    model: DiffusionModel,
    reward: Reward,
    batch: Batch,
    negative: Conditioning,
    sampling: Sampling,
    reach: Reach,
    parameters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """What :func:`reneg_core.training.reward_gradient` finds for the negative, for weights of the denoiser: they act in
    both branches, so both are recorded. Averaged over the points, a rollout for each."""
    sigmas, names = model.sigmas(sampling), list(parameters)
    totals = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    way = Way(model, sigmas, batch.positive, negative, sampling)
    for point in reach.points:
        state = State(model.start(batch.noise, sigmas[0]))
        with torch.no_grad():
            while state.index < point:
                state = advance(state, way.x0(state), sigmas, sampling.solver)
        with torch.enable_grad():
            x0 = way.ahead(state, way.x0(state), reach.through)
            scores = score(reward, model.decode(x0, reach.frames), batch.prompts)
            found = torch.autograd.grad(scores.sum(), [parameters[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                totals[name] += gradient / len(reach.points)
    return totals


def _validated(model: DiffusersModel, work: Work, negative: Conditioning) -> float:
    validator = Validator(work.prompts.validation, work.config, work.reward)
    parts = lambda rows, job: micro_batches(rows, work.config.micro_batch, job)  # noqa: E731
    return validator.run(model, negative, parts, Workers()).reward


def _evaluated(
    model: DiffusionModel,
    negatives: Mapping[str, Conditioning],
    pairs: Pairs,
    measures: Mapping[str, Measure],
    config: TrainConfig,
    keep: Keep | None,
) -> Evaluation:
    modes = {name: Mode(negative.to("cpu"), LABELS[name]) for name, negative in negatives.items()}
    return evaluate(model, pairs, modes, measures, config.sampling, keep=keep, batch_size=config.micro_batch)


def _joined(found: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of one mode each, on the same pairs, as one of several modes."""
    first = found[0]
    scores = {measure: {m: t for one in found for m, t in one.scores[measure].items()} for measure in first.measures}
    images = {mode: kept for one in found for mode, kept in one.pictures.images.items()}
    return replace(
        first,
        scores=scores,
        samplings={mode: sampling for one in found for mode, sampling in one.samplings.items()},
        labels={name: words for one in found for name, words in one.labels.items()},
        baseline=NONE,
        pictures=replace(first.pictures, images=images),
    )


def _restore(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
