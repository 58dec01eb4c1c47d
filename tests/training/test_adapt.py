"""Per-sample adaptation: never below its start, early stop per pair, batched equals single."""

from dataclasses import replace

import pytest
import torch
from doubles import Constant, Curved, Recorder, Wrapped
from processes import in_processes
from small import SmallModel, start_of
from torch import Tensor

from reneg_core import NegativeEmbedding
from reneg_core.failures import EndedElsewhere
from reneg_core.model import Conditioning
from reneg_core.rewards import Reward
from reneg_core.rewards.smoke import Brightness
from reneg_core.sampling import Sampling, sample
from reneg_core.training import AdaptConfig, AdaptResult, adapt, adapt_table
from reneg_core.training.trainer import Stopped
from reneg_core.training.workers import Workers

PROMPTS, SEEDS = ["a red fox", "blue", "sun over sea"], [1, 2, 3]
SAMPLING = Sampling(steps=4).at_scale(4.0)
CONFIG = AdaptConfig(steps=4, sampling=SAMPLING, learning_rate=0.05, window=(0, 4), points=2)


@pytest.fixture
def start(model) -> NegativeEmbedding:
    return NegativeEmbedding(model.encode([""]).tokens, model.family)


def test_improves_and_never_falls_below_the_start(model, start) -> None:
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    assert (result.rewards >= result.start_rewards).all() and (result.rewards > result.start_rewards).any()
    assert result.negatives.tokens.shape == (3, 16, 32)
    wild = adapt(model, Curved(), PROMPTS, SEEDS, start, AdaptConfig(**{**vars(CONFIG), "learning_rate": 100.0}))
    assert (wild.rewards >= wild.start_rewards).all()


def test_rewards_are_those_of_the_finished_pictures(model, start) -> None:
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    latents = sample(model, model.encode(PROMPTS), result.negatives, model.noise(SEEDS), SAMPLING)
    images = model.decode(latents)
    assert torch.allclose(Curved().score(images, PROMPTS), result.rewards, atol=1e-4)
    assert torch.allclose(images, result.images, atol=1e-4)


def test_batched_equals_one_at_a_time(model, start) -> None:
    together = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    for row in range(3):
        alone = adapt(model, Curved(), [PROMPTS[row]], [SEEDS[row]], start, CONFIG)
        assert torch.allclose(alone.rewards[0], together.rewards[row], atol=1e-3)


def test_patience_ends_pairs_that_do_not_improve(model, start) -> None:
    calls = []
    config = AdaptConfig(**{**vars(CONFIG), "steps": 10, "patience": 2})

    class Counting(Constant):
        def _score(self, images, prompts):
            calls.append(len(images))
            return super()._score(images, prompts)

    result = adapt(model, Counting(), PROMPTS, SEEDS, start, config)
    assert result.steps.tolist() == [0, 0, 0]
    assert len(calls) == 3 * (config.points + 1)


def test_row_becomes_a_file_ready_embedding(model, start) -> None:
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    assert torch.equal(result.embedding(1, start).tokens[0], result.negatives.tokens[1])
    assert result.embedding(1, start).sampling == SAMPLING and start.sampling is None


def test_bad_input(model, start) -> None:
    with pytest.raises(ValueError, match="Got 3 prompts and 1 seeds, expected equal numbers"):
        adapt(model, Curved(), PROMPTS, [1], start, CONFIG)
    with pytest.raises(ValueError, match="Got an embedding for the text encoder clip-l"):
        adapt(model, Curved(), PROMPTS, SEEDS, NegativeEmbedding(torch.zeros(1, 77, 768)), CONFIG)


def test_all_positions_of_a_mask_are_kept(model) -> None:
    masked = NegativeEmbedding(model.encode([""]).tokens, model.family, torch.ones(1, 16))
    result = adapt(model, Curved(), PROMPTS, SEEDS, masked, AdaptConfig(**{**vars(CONFIG), "steps": 1}))
    assert isinstance(result.negatives, Conditioning) and result.negatives.mask.shape == (3, 16)


@pytest.mark.parametrize("sampling", [Sampling("dpmpp_2m", 4, "karras"), Sampling("euler", 4, "trailing")])
def test_the_pictures_are_those_of_the_given_sampling(model, start, sampling: Sampling) -> None:
    recorder, config = Recorder(model), replace(CONFIG, sampling=sampling.at_scale(4.0), steps=1)
    result = adapt(recorder, Curved(), PROMPTS, SEEDS, start, config)
    assert set(recorder.samplings) == {config.sampling} and recorder.seeds == SEEDS
    latents = sample(model, model.encode(PROMPTS), result.negatives, model.noise(SEEDS), config.sampling)
    assert torch.allclose(Curved().score(model.decode(latents), PROMPTS), result.rewards, atol=1e-4)


def test_the_last_iterate_is_scored_without_a_gradient(model, start) -> None:
    """Two steps are three pictures; the third needs none of the passes at its points."""
    scored = []

    class Counting(Curved):
        def _score(self, images, prompts):
            scored.append(images.requires_grad)
            return super()._score(images, prompts)

    adapt(model, Counting(), PROMPTS[:1], SEEDS[:1], start, replace(CONFIG, steps=2, patience=9))
    assert scored == [True, True, False] * 2 + [False]


def test_every_pair_of_a_comparison_in_its_order(model, start) -> None:
    config = replace(CONFIG, steps=1)
    table = adapt_table(model, Curved(), PROMPTS[:2], [[1, 2], [7, 8]], start, config)
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    flat = adapt(model, Curved(), prompts, [1, 2, 7, 8], start, config)
    assert torch.equal(table.negatives.tokens, flat.negatives.tokens) and torch.equal(table.rewards, flat.rewards)
    with pytest.raises(ValueError, match="Got no embedding to adapt, expected one"):
        adapt_table(model, Curved(), PROMPTS, [[1]] * 3, None, config)


class Half(Wrapped):
    dtype = torch.float16


def test_half_precision_has_a_loss_scale_that_changes_nothing_else(model, start) -> None:
    config = replace(CONFIG, steps=2)
    plain, half = (adapt(m, Curved(), PROMPTS, SEEDS, start, config) for m in (model, Half(model)))
    assert torch.allclose(plain.negatives.tokens, half.negatives.tokens, atol=1e-3)


def test_a_pair_whose_gradient_is_not_finite_stays_where_it_is(model, start) -> None:
    class Broken(Curved):
        def _score(self, images, prompts):
            factor = [float("nan") if images.requires_grad and p == PROMPTS[1] else 1.0 for p in prompts]
            return super()._score(images, prompts) * torch.tensor(factor)

    result = adapt(model, Broken(), PROMPTS, SEEDS, start, CONFIG)
    sound = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG)
    assert torch.equal(result.negatives.tokens[1], start.tokens[0])
    assert torch.allclose(result.rewards[[0, 2]], sound.rewards[[0, 2]], atol=1e-3)


def test_the_best_tokens_are_those_of_the_best_picture(model, start) -> None:
    """A rate so high that later iterates are worse: tokens, pictures and rewards of each pair are of the same step."""
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, replace(CONFIG, learning_rate=2.0, patience=9))
    assert result.steps.max() > 0 and result.steps.min() < CONFIG.steps
    latents = sample(model, model.encode(PROMPTS), result.negatives, model.noise(SEEDS), SAMPLING)
    assert torch.allclose(Curved().score(model.decode(latents), PROMPTS), result.rewards, atol=1e-4)


def test_stopping_keeps_the_best_so_far(model, start) -> None:
    polls = iter([False, True, True])
    result = adapt(model, Curved(), PROMPTS, SEEDS, start, CONFIG, should_stop=lambda: next(polls))
    assert result.steps.max() <= 1 and (result.rewards >= result.start_rewards).all()


@pytest.mark.parametrize(("passes", "visits"), [(2, 1), (12, 2)])
def test_a_pass_that_is_stopped_keeps_what_was_found(model, start, passes: int, visits: int) -> None:
    """A host's passes may raise in the middle of a step: the pairs keep the best so far, at first the start's own."""

    class Interrupted(Wrapped):
        left = passes

        def denoise(self, *args):
            self.left -= 1
            if self.left == -1:
                raise Stopped
            return self._model.denoise(*args)

    config, polls = replace(CONFIG, points=1), iter([False] * (visits - 1) + [True])
    polled = adapt(model, Curved(), PROMPTS, SEEDS, start, config, should_stop=lambda: next(polls))
    raised = adapt(Interrupted(model), Curved(), PROMPTS, SEEDS, start, config)
    assert raised.steps.tolist() == polled.steps.tolist() and max(polled.steps) == visits - 1
    assert torch.equal(raised.negatives.tokens, polled.negatives.tokens)
    assert torch.allclose(raised.images, polled.images, atol=1e-5)
    assert torch.allclose(raised.rewards, polled.rewards, atol=1e-5)


class Short(SmallModel):
    """Runs out of memory on more rows than ``most`` in one pass."""

    most = 64

    def denoise(self, x: Tensor, *rest: object) -> Tensor:
        if len(x) > self.most:
            raise MemoryError("out of memory")
        return super().denoise(x, *rest)


def small(model: SmallModel, count: int = 7, reward: Reward | None = None, **options: object) -> AdaptResult:
    config = AdaptConfig(steps=3, sampling=SAMPLING, learning_rate=0.05, window=(0, 4), points=2, micro_batch=2)
    prompts = [f"prompt {i}" for i in range(count)]
    return adapt(model, reward or Brightness(), prompts, list(range(count)), start_of(model), config, **options)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_processes_share_the_batches_and_find_the_same(count: int) -> None:
    """To the last bit, and only the first holds the pictures; progress counts the pairs of all."""
    alone = small(SmallModel(pooled=True))
    told: list[list[int]] = [[] for _ in range(count)]

    def one(workers: Workers) -> AdaptResult:
        return small(SmallModel(pooled=True), workers=workers, progress=told[workers.rank].append)

    found = in_processes(count, one)
    for rank, result in enumerate(found):
        for name in ("start_rewards", "rewards", "steps"):
            assert torch.equal(getattr(result, name), getattr(alone, name))
        assert torch.equal(result.negatives.tokens, alone.negatives.tokens) and result.sampling == SAMPLING
        assert torch.equal(result.images, alone.images if rank == 0 else alone.images[:0])
        assert sum(told[rank]) == 7
    assert (alone.rewards > alone.start_rewards).all()


def test_memory_that_runs_out_in_one_process_is_its_own_matter() -> None:
    alone = small(SmallModel())

    def one(workers: Workers) -> AdaptResult:
        model = Short()
        model.most = 2 if workers.rank else 64  # both branches of one pair
        return small(model, workers=workers)

    for result in in_processes(2, one):
        assert torch.allclose(result.rewards, alone.rewards, atol=1e-6) and torch.equal(result.steps, alone.steps)


def test_stopping_one_process_stops_all() -> None:
    """Asked once, in the first round, in one of them: all later batches stay at their start."""
    asked: list[int] = []

    def one(workers: Workers) -> AdaptResult:
        def should_stop() -> bool:
            asked.append(workers.rank)
            return workers.rank == 1 and asked.count(1) == 1

        return small(SmallModel(), count=8, workers=workers, should_stop=should_stop)

    first, second = in_processes(2, one)
    assert torch.equal(first.steps, second.steps)
    assert first.steps[2:4].tolist() == first.steps[4:].tolist()[:2] == [0, 0] and first.steps[6:].tolist() == [0, 0]
    assert (first.steps[:2] > 0).all(), "the round that was under way in the other one is finished"
    assert (small(SmallModel(), count=8).steps > 0).all()


def test_a_failure_in_one_process_ends_all() -> None:
    class Failing(Brightness):
        def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
            assert "prompt 6" not in prompts
            return super()._score(images, prompts)

    told: list[int] = []

    def one(workers: Workers) -> AdaptResult:
        return small(SmallModel(), 8, Failing(), workers=workers, progress=told.append if workers.rank == 0 else None)

    found = in_processes(2, one)
    assert [type(error) for error in found] == [EndedElsewhere, ValueError] and told == [2, 2]
    assert "The reward 'brightness' failed" in str(found[1])
