"""What is random or scheduled in a run: pure functions of the seed and the step, the same in every version."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from processes import in_processes
from small import SmallModel, start_of

from reneg_core.model import Conditioning
from reneg_core.rewards.smoke import Brightness
from reneg_core.sampling import Jitter, Sampling
from reneg_core.seeds import derive_seed
from reneg_core.texts import LIMIT, Texts, stacked
from reneg_core.training import AdaptConfig, Prompts, Session, TrainConfig, Trainer, adapt, schedule, split_prompts
from reneg_core.training.adapt import AdaptResult
from reneg_core.training.loss_scale import FP16_LOSS_SCALE, GROWTH, MAX_SKIPPED, LossScale, loss_scale_for
from reneg_core.training.memory import is_out_of_memory, micro_batches
from reneg_core.training.names import merge, normalised
from reneg_core.training.rehearsal import PARTS, rehearse
from reneg_core.training.workers import Workers, launched, processes

SEEDS = st.integers(0, 2**31)
SPREAD = [[9, 23], [13, 18], [6, 28]]
LEVELS = Sampling(steps=2).at_scale(4.0)


def test_the_draws_of_a_run_are_those_of_earlier_versions() -> None:
    """A run that is resumed by another version goes on with the same noise, prompts, points and samplings."""
    assert derive_seed("a", 1, None) == 2674747616106988296
    assert schedule.noise_seeds(3, 7, [0, 5]) == [derive_seed("noise", 3, 7, 0), derive_seed("noise", 3, 7, 5)]
    assert schedule.batch_prompts(list("abcdefg"), 3, 2, 4, range(4)) == PROMPTS_DRAWN
    assert [schedule.gradient_points((4, 30), 3, 0, step) for step in range(3)] == POINTS_DRAWN
    jitter = Jitter(("euler", "dpmpp_2m"), (10, 20, 30), ("trailing", "karras"), (2.0, 3.0, 5.0))
    drawn = [jitter.draw(Sampling(), 5, step) for step in range(3)]
    assert [(d.solver, d.steps, d.spacing, d.guidance.scale) for d in drawn] == SAMPLINGS_DRAWN


PROMPTS_DRAWN = ["b", "a", "d", "f"]
POINTS_DRAWN = [[10, 15, 21], [11, 12, 23], [8, 18, 25]]
SAMPLINGS_DRAWN = [
    ("dpmpp_2m", 20, "karras", 3.0), ("dpmpp_2m", 30, "karras", 3.0), ("dpmpp_2m", 30, "trailing", 3.0)
]  # fmt: skip


@given(st.lists(st.one_of(st.integers(), st.text(alphabet="ab1", max_size=5), st.none()), min_size=1, max_size=4))
def test_a_seed_depends_on_every_part_and_fits_a_generator(parts: list) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63 and seed == derive_seed(*parts) != derive_seed(*parts, 0)


def test_seeds_use_the_whole_range() -> None:
    seeds = [derive_seed("range", i) for i in range(200)]
    assert max(seeds) > 0.97 * 2**63 and min(seeds) < 0.03 * 2**63
    assert derive_seed("a", "b") != derive_seed("ab") != derive_seed("b", "a")


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300), st.floats(1e-6, 10))
def test_the_rate_warms_up_and_falls_to_zero(steps: int, warmup: int, step: int, rate: float) -> None:
    config = TrainConfig(steps=steps, warmup=warmup, learning_rate=rate)
    found = schedule.learning_rate(config, step)
    assert 0 <= found <= rate * (1 + 1e-12)
    if step < warmup:
        assert found == pytest.approx(rate * (step + 1) / warmup)
        return
    assume(steps > warmup)
    assert found == pytest.approx(rate * math.cos(math.pi / 2 * min(1, (step - warmup) / (steps - warmup))) ** 2)


def test_a_warm_up_as_long_as_the_run_has_no_cosine() -> None:
    config = TrainConfig(steps=4, warmup=4, learning_rate=1.0)
    assert [schedule.learning_rate(config, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 0.0]


@given(st.integers(0, 20), st.integers(1, 40), st.data())
def test_points_are_one_of_each_equal_part_of_the_window(first: int, width: int, data: st.DataObject) -> None:
    points, seed = data.draw(st.integers(1, width)), data.draw(SEEDS)
    found = schedule.gradient_points((first, first + width), points, seed)
    assert len(found) == points and found == schedule.gradient_points((first, first + width), points, seed)
    for i, point in enumerate(found):
        assert first + width * i // points <= point < first + width * (i + 1) // points


def test_every_step_of_the_window_is_drawn_about_equally_often() -> None:
    counts = [0] * 10
    for seed in range(2000):
        [point] = schedule.gradient_points((3, 13), 1, seed, 0)
        counts[point - 3] += 1
    assert min(counts) > 150 and max(counts) < 250


@given(st.integers(1, 30), SEEDS, st.integers(0, 3))
def test_every_epoch_is_a_permutation_of_all_prompts(count: int, seed: int, epoch: int) -> None:
    order = [schedule.prompt_index(count, seed, epoch * count + i) for i in range(count)]
    assert sorted(order) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        [schedule.prompt_index(50, seed, epoch * 50 + i) for i in range(50)] for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4 and list(range(50)) not in orders


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.integers(0, 6), SEEDS)
def test_rows_of_a_batch_are_places_in_the_run(count: int, batch: int, workers: int, step: int, seed: int) -> None:
    """Whoever does which rows, the step's prompts are the next of the run."""
    prompts = [f"p{i}" for i in range(count)]
    whole = [prompts[schedule.prompt_index(count, seed, step * batch + row)] for row in range(batch)]
    found = []
    for rank in range(workers):
        one = Workers()
        one.rank, one.count = rank, workers
        found += schedule.batch_prompts(prompts, seed, step, batch, one.share(range(batch)))
    assert found == whole


@given(st.integers(0, 50), st.integers(1, 8))
def test_shares_are_contiguous_and_differ_by_one_at_most(size: int, count: int) -> None:
    shares = []
    for rank in range(count):
        one = Workers()
        one.rank, one.count = rank, count
        shares.append(one.share(range(100, 100 + size)))
    assert [row for share in shares for row in share] == list(range(100, 100 + size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as found:
        assert launched() == 1 and type(found) is Workers
    assert (Workers().rank, Workers().count) == (0, 1) and Workers().any(True) and not Workers().any(False)
    for size in (1, 2):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        assert launched() == size


@given(st.lists(st.text(alphabet="ab \t", max_size=4), max_size=40))
def test_no_prompt_is_trained_on_and_judged_by(prompts: list[str]) -> None:
    """Every tenth is kept aside, nothing is lost; fewer than ten are too few to share."""
    kept = [prompt.strip() for prompt in prompts if prompt.strip()]
    assume(kept)
    numbered = [f"{i} {prompt}" if prompt.strip() else prompt for i, prompt in enumerate(prompts)]
    train, held = split_prompts(numbered)
    kept = [prompt.strip() for prompt in numbered if prompt.strip()]
    if len(kept) < 10:
        assert list(train) == list(held) == kept
        return
    assert list(held) == kept[::10] and list(train) == [p for i, p in enumerate(kept) if i % 10]
    assert not set(train) & set(held) and {*train, *held} == {*kept}


def test_draws_are_those_of_earlier_versions() -> None:
    assert schedule.spread_points((4, 30), 2, 3, 7, 1) == SPREAD
    assert {max(row) for step in range(200) for row in schedule.spread_points((0, 6), 2, 3, step)} == {3, 4, 5}


def test_ten_prompts_are_enough_to_keep_one_aside() -> None:
    prompts = [str(i) for i in range(10)]
    assert split_prompts(prompts) == (prompts[1:], ["0"]) and split_prompts(prompts[:9]) == (prompts[:9], prompts[:9])


def test_given_validation_prompts_are_used_as_they_are() -> None:
    assert split_prompts([" a ", "", "b"], ["x", " y\n", " "]) == (["a", "b"], ["x", "y"])
    with pytest.raises(ValueError, match=r"^Got no training prompts, expected at least one non-empty line\.$"):
        split_prompts(["", " "], ["x"])


class TestLossScale:
    def test_a_step_that_was_not_finite_halves_it_down_to_one(self) -> None:
        scale = LossScale(5.0, 8.0)
        values = []
        for _ in range(4):
            scale.update(False)
            values.append((scale.value, scale.skipped))
        assert values == [(2.5, 0), (1.25, 0), (1.0, 0), (1.0, 1)]

    def test_it_grows_back_after_so_many_finite_steps_in_a_row_and_no_further(self) -> None:
        scale = LossScale(2.0, 5.0)
        for _ in range(GROWTH - 1):
            scale.update(True)
        assert scale.value == 2.0
        scale.update(True)
        assert scale.value == 4.0
        for _ in range(GROWTH):
            scale.update(True)
        assert scale.value == 5.0
        scale.update(False)
        assert (scale.value, scale.finite) == (2.5, 0)

    def test_a_finite_step_ends_a_row_of_skipped_ones(self) -> None:
        scale = LossScale()
        for _ in range(MAX_SKIPPED - 1):
            scale.update(False)
        assert not scale.hopeless
        scale.update(True)
        assert (scale.value, scale.finite, scale.skipped) == (1.0, 1, 0)
        for _ in range(MAX_SKIPPED):
            scale.update(False)
        assert scale.hopeless and scale.finite == 0

    @given(st.lists(st.booleans(), max_size=300), st.sampled_from([1.0, 2.0, FP16_LOSS_SCALE]))
    def test_it_stays_between_one_and_its_highest(self, steps: list[bool], highest: float) -> None:
        scale = LossScale(highest, highest)
        for finite in steps:
            scale.update(finite)
            assert 1 <= scale.value <= highest


@given(st.integers(0, 40), st.integers(1, 12), st.integers(1, 12))
def test_micro_batches_do_every_row_once_in_order_whatever_fits(count: int, size: int, fits: int) -> None:
    halved: list[int] = []

    def work(part: range) -> list[int]:
        if len(part) > fits:
            raise MemoryError
        return list(part)

    parts = list(micro_batches(range(7, 7 + count), size, work, halved.append))
    assert [row for part in parts for row in part] == list(range(7, 7 + count))
    assert all(0 < len(part) <= min(size, fits) for part in parts)
    assert halved == sorted(halved, reverse=True) and all(1 <= one < size for one in halved)
    if count >= size <= fits:
        assert not halved and all(len(part) == size for part in parts[:-1])


def test_one_row_that_does_not_fit_and_other_errors_are_passed_on() -> None:
    def fail(error: BaseException) -> None:
        raise error

    for error in (MemoryError("one"), RuntimeError("shapes"), ValueError("what")):
        with pytest.raises(type(error)) as caught:
            list(micro_batches(range(1), 4, lambda part, error=error: fail(error)))
        assert caught.value is error
    with pytest.raises(RuntimeError, match="shapes"):
        list(micro_batches(range(4), 4, lambda part: fail(RuntimeError("shapes"))))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA error: Out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_names_of_every_form_become_one() -> None:
    values = {
        "sampling_steps": 7,
        "sampling": {"solver": "ddim"},
        "jitter.steps": [3],
        "width": 64,
        "steps": 2,
        5: "x",
    }
    assert normalised(values) == {
        "sampling": {"steps": 7, "solver": "ddim", "width": 64}, "jitter": {"steps": [3]}, "steps": 2, "5": "x",
    }  # fmt: skip
    assert normalised({"sampling": 3, "sampling.steps": 4}) == {"sampling": {"steps": 4}}
    assert normalised({"sampling.steps": 4, "sampling": 3}) == {"sampling": 3}
    assert normalised({"other.name": 1, "sampling.": 2}) == {"other.name": 1, "sampling": {"": 2}}
    first = {"sampling": {"steps": 1}, "other": {"a": 1}}
    assert merge(first, {"sampling": {"solver": "x"}, "other": {"b": 2}}) is first
    assert first == {"sampling": {"steps": 1, "solver": "x"}, "other": {"b": 2}}


def test_the_heaviest_of_the_next_steps_is_the_one_that_is_tried() -> None:
    """What a rehearsal takes: the recorded steps of a step as that step will draw its sampling and its points."""
    config = TrainConfig(sampling=Sampling(steps=8).at_scale(3), window=(0, 8), points=1, through=0, seed=5,
                         jitter=Jitter(steps=(4, 6, 8)))  # fmt: skip

    def recorded(step: int) -> int:
        sampling = config.jitter.draw(config.sampling, 5, step)
        return sampling.steps - min(schedule.gradient_points(config.window_of(sampling), 1, 5, step))

    found = [schedule.recorded_steps(config, step) for step in range(60)]
    assert found == [recorded(step) for step in range(60)] and len(set(found)) > 4
    trainer = object.__new__(Trainer)
    for done in (0, 7, 9):
        trainer.config = config
        assert found[trainer.heaviest(done)] == max(found[done : done + 50]) and trainer.heaviest(done) >= done


def test_half_precision_begins_with_a_scale() -> None:
    model = SmallModel()
    assert loss_scale_for(model) == loss_scale_for(object()) == LossScale(1.0, 1.0)
    model.dtype = torch.float16
    assert loss_scale_for(model) == LossScale(1024.0, 1024.0)


# which prompts are coming


class Knowing(SmallModel):
    """Encodes a prompt once at most, and notes what it encoded."""

    limit = LIMIT

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[list[str]] = []
        self.texts: Texts | None = None

    @contextmanager
    def foreseeing(self, coming: Any) -> Iterator[None]:
        def encode(prompt: str) -> Conditioning:
            self.encoded[-1].append(prompt)
            return SmallModel.encode(self, [prompt])

        @contextmanager
        def around() -> Iterator[None]:
            self.encoded.append([])
            yield

        self.texts = Texts(encode, around, coming, self.limit)
        try:
            yield
        finally:
            self.texts = None

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return super().encode(prompts) if self.texts is None else stacked(self.texts.rows(prompts))


CONFIG = TrainConfig(
    steps=4, batch_size=4, micro_batch=3, sampling=LEVELS, validation_pairs=3, validate_every=2, checkpoint_every=1,
    learning_rate=0.05,
)  # fmt: skip
PROMPTS = Prompts([f"prompt {i}" for i in range(40)], ["one", "two"])


def trained(folder: Path, model: SmallModel, **session: Any) -> Any:
    return Trainer(model, Brightness(), PROMPTS, CONFIG, folder, session=Session(**session)).run()


def test_the_prompts_of_a_run_are_encoded_once_before_its_loop(tmp_path: Path) -> None:
    """And no others: 4 steps of 4 pictures, and the prompts of the validations."""
    model, plain = Knowing(), SmallModel()
    found, expected = trained(tmp_path / "a", model), trained(tmp_path / "b", plain)
    assert torch.equal(found.embedding.tokens, expected.embedding.tokens) and found.best_reward == expected.best_reward
    [once] = model.encoded
    assert once[:2] == ["one", "two"] and len(once) == len(set(once)) == 2 + 16


def test_a_limit_and_a_new_beginning_change_nothing(tmp_path: Path) -> None:
    expected, model = trained(tmp_path / "a", SmallModel()), Knowing()
    model.limit = 5 * 24
    stop = iter([False] * 9 + [True] * 99)
    trained(tmp_path / "b", model, should_stop=lambda: next(stop))
    between = len(model.encoded)
    found = trained(tmp_path / "b", model, resume=True)
    assert torch.equal(found.embedding.tokens, expected.embedding.tokens) and found.best_reward == expected.best_reward
    assert 1 < between < len(model.encoded) and max(map(len, model.encoded)) == 5


def test_a_rehearsal_encodes_what_it_takes(tmp_path: Path) -> None:
    """Not the whole run's: that is left to the run."""
    model = Knowing()
    config = TrainConfig(**{**vars(CONFIG), "steps": 400})
    rehearse(Trainer(model, Brightness(), Prompts([f"{i}" for i in range(4000)], ["one"]), config, tmp_path / "a"), ())
    assert len(model.encoded[0]) == 1 + PARTS * 4 and model.texts is None


def test_an_adaptation_encodes_each_prompt_once() -> None:
    model, prompts = Knowing(), ["fox", "sun", "fox", "sea", "sun"]
    config = AdaptConfig(steps=2, sampling=LEVELS, window=(0, 2), points=1, micro_batch=2)
    found = adapt(model, Brightness(), prompts, [1, 2, 3, 4, 5], start_of(model), config)
    assert model.encoded == [["fox", "sun", "sea"]]
    plain = adapt(SmallModel(), Brightness(), prompts, [1, 2, 3, 4, 5], start_of(model), config)
    assert torch.equal(found.negatives.tokens, plain.negatives.tokens)


def test_a_run_that_goes_on_foresees_what_is_left(tmp_path: Path) -> None:
    left = schedule.batch_prompts(PROMPTS.train, CONFIG.seed, 3, 4, range(4))
    run = Trainer(SmallModel(), Brightness(), PROMPTS, CONFIG, tmp_path)

    def looked() -> None:
        run.prepare()
        run.progress.step = 3
        assert list(run._coming(1)) == list(run._coming(9)) == ["one", "two", "one", *left, "one", "two", "one"]

    run.inside(looked)


def test_each_process_encodes_its_own_prompts_and_the_first_one_has_the_pictures() -> None:
    prompts = ["fox", "sun", "ice", "sea", "owl"]
    config = AdaptConfig(steps=1, sampling=LEVELS, points=1, micro_batch=2)
    models = [Knowing(), Knowing()]

    def work(workers: Workers) -> AdaptResult:
        model = models[workers.rank]
        return adapt(model, Brightness(), prompts, range(5), start_of(model), config, workers=workers)

    first, second = in_processes(2, work)
    assert [model.encoded for model in models] == [[["fox", "sun"]], [["ice", "sea", "owl"]]]
    assert first.images.shape == (5, 3, 2, 2) and second.images.shape == (0, 3, 2, 2)
    assert torch.equal(first.rewards, second.rewards) and len(second.rewards) == 5
