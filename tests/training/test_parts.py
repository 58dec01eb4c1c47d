"""Rollout and gradient cut differently, rows with points of their own, and leaps: on numbers in closed form."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import Curved, Recorder
from safetensors import safe_open
from small import SmallModel
from torch import Tensor

from reneg_core.files import write_tensors
from reneg_core.guidance import Guidance
from reneg_core.model import Branch, Conditioning
from reneg_core.rewards import RewardMix, Statistics
from reneg_core.sampling import Jitter, Sampling
from reneg_core.training import Batch, Prompts, Reach, Session, TrainConfig, Trainer, reward_gradient, schedule
from reneg_core.training import trainer as module
from reneg_core.training.config import recorded_passes
from reneg_core.training.identity import reward_contents
from reneg_core.training.loss_scale import LossScale
from reneg_core.training.objective import Parts
from reneg_core.training.run import Stopped
from reneg_core.training.state import load_state

PROMPTS = ["a red fox", "blue", "sun over sea", "an old door", "ice"]
SAMPLING = Sampling("dpmpp_2m", 6, "trailing", Guidance(3.0))
POINTS = [[1, 4], [0, 5], [1, 3], [2, 4], [1, 4]]
CONFIG = TrainConfig(
    steps=3, batch_size=8, micro_batch=2, sampling=SAMPLING, learning_rate=0.05, window=(0, 6), points=2,
    validate_every=3, validation_pairs=2, checkpoint_every=1, checkpoint_minutes=0,
)  # fmt: skip


def negative_of(model: SmallModel, rows: int = 1) -> Conditioning:
    shift = 0.2 * torch.randn(rows, 2, 3, generator=torch.Generator().manual_seed(3))
    empty = model.encode([""])
    return Conditioning(empty.tokens + shift, None, None if empty.pooled is None else empty.pooled.expand(rows, 3))


def gradient(
    model: Any,
    points: Any = POINTS,
    rows: int = 1,
    parts: Parts | None = None,
    sampling: Sampling = SAMPLING,
    **reach: Any,
):
    batch = Batch(PROMPTS, model.encode(PROMPTS), model.noise(range(5)))
    return reward_gradient(
        model, Curved(), batch, negative_of(model, rows), sampling, Reach(points, **reach), parts or Parts()
    )


def alone(model: SmallModel, row: int, rows: int, **reach: Any):
    batch = Batch([PROMPTS[row]], model.encode([PROMPTS[row]]), model.noise([row]))
    negative = negative_of(model, rows)[[row if rows > 1 else 0]]
    return reward_gradient(model, Curved(), batch, negative, SAMPLING, Reach(POINTS[row], **reach))


@pytest.mark.parametrize("through", [1, 2, 0, "leap"])
@pytest.mark.parametrize("rows", [1, 5])
def test_every_row_has_the_gradient_of_its_own_points(rows: int, through: int | str) -> None:
    model = SmallModel(pooled=True)
    single = [alone(model, row, rows, through=through) for row in range(5)]
    join: Callable[[list[Tensor]], Tensor] = torch.cat if rows > 1 else sum
    for size in (None, 1, 2):
        found = gradient(model, rows=rows, through=through, parts=Parts(size))
        assert torch.allclose(found.rewards, torch.cat([one.rewards for one in single], 1), atol=1e-5)
        assert torch.allclose(found.tokens, join([one.tokens for one in single]), atol=1e-5)
        assert torch.allclose(found.pooled, join([one.pooled for one in single]), atol=1e-5)


@pytest.mark.parametrize("through", [3, 0, "leap"])
def test_every_row_keeps_the_history_of_its_steps(through: int | str) -> None:
    """On levels that are even enough for a step of second order, which looks back at the one before."""
    model, points = SmallModel(), [[3, 5], [2, 6], [3, 4], [2, 5], [4, 6]]
    sampling = Sampling("dpmpp_2m", 12, "model", Guidance(3.0))
    single = []
    for row in range(5):
        batch = Batch([PROMPTS[row]], model.encode([PROMPTS[row]]), model.noise([row]))
        reach = Reach(points[row], through=through, complete=True)
        single.append(reward_gradient(model, Curved(), batch, negative_of(model), sampling, reach))
    found = gradient(model, points, sampling=sampling, through=through, complete=True)
    assert torch.allclose(found.tokens, sum(one.tokens for one in single), atol=1e-5)
    assert torch.allclose(found.images, torch.cat([one.images for one in single]), atol=1e-6)
    first = gradient(model, points, sampling=replace(sampling, solver="euler"), through=through, complete=True)
    assert (first.tokens - found.tokens).abs().max() > 3e-4


def test_what_is_completed_goes_on_behind_the_last_point() -> None:
    model = SmallModel()
    found, single = gradient(model, complete=True), [alone(model, row, 1, complete=True) for row in range(5)]
    assert torch.allclose(found.final_rewards, torch.cat([one.final_rewards for one in single]), atol=1e-5)
    assert torch.allclose(found.images, torch.cat([one.images for one in single]), atol=1e-5)
    assert gradient(model).images is None


class Passes(SmallModel):
    """Notes each pass: its step, whether with a graph, and its rows of each branch; has no memory above ``most``."""

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.passes: list[tuple[int, bool, int, tuple[Branch, ...]]] = []
        self.most = most

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Any = (Branch.POSITIVE,)):
        recorded, rows = conditioning.tokens.requires_grad or x.requires_grad, len(x) // len(branches)
        if recorded and rows > self.most:
            raise torch.OutOfMemoryError("out of memory")
        levels = self.sigmas(SAMPLING)
        self.passes.append((int((levels - sigma).abs().argmin()), recorded, rows, tuple(branches)))
        return super().denoise(x, sigma, conditioning, branches)


BOTH = (Branch.NEGATIVE, Branch.POSITIVE)


def test_a_rollout_is_whole_a_graph_in_parts_and_rows_that_are_through_leave() -> None:
    model = Passes()
    gradient(model, parts=Parts(2))
    rolled = [(step, rows) for step, recorded, rows, branches in model.passes if branches == BOTH]
    assert rolled == [(0, 4), (1, 2), (2, 4), (3, 4), (4, 1)], "all that have no point there and one later"
    positive = [(step, rows) for step, recorded, rows, branches in model.passes if branches == (Branch.POSITIVE,)]
    assert positive == [(0, 1), (1, 3), (2, 1), (3, 1), (4, 3), (5, 1)], "without a graph, in one pass"
    recorded = [(step, rows) for step, recorded, rows, branches in model.passes if recorded]
    assert recorded == [(0, 1), (1, 2), (1, 1), (2, 1), (3, 1), (4, 2), (4, 1), (5, 1)]
    assert not any(recorded and branches != (Branch.NEGATIVE,) for _, recorded, _, branches in model.passes)


def test_a_part_that_does_not_fit_is_halved_and_no_rollout_is_done_again() -> None:
    halved, model = [], Passes(most=1)
    found = gradient(model, [3], parts=Parts(4, halved.append))
    assert halved == [2, 1] and [rows for _, recorded, rows, _ in model.passes if recorded] == [1] * 5
    assert [rows for _, recorded, rows, _ in model.passes if not recorded] == [5] * 4
    assert torch.allclose(found.tokens, gradient(SmallModel(), [3]).tokens, atol=1e-5)
    with pytest.raises(torch.OutOfMemoryError):
        gradient(Passes(most=0), [3], parts=Parts(4))


def test_it_tells_of_the_rows_that_are_done_and_may_be_stopped_between_passes() -> None:
    done: list[int] = []
    gradient(SmallModel(), parts=Parts(2, done=done.append))
    assert done == [0, 0, 0, 0, 1, 2, 1, 1] and sum(done) == 5

    for most in (0, 3, 9):
        polls = 0

        def pulse(most: int = most) -> None:
            nonlocal polls
            polls += 1
            if polls > most:
                raise Stopped

        model = Passes()
        with pytest.raises(Stopped):
            gradient(model, parts=Parts(2, pulse=pulse))
        assert len(model.passes) <= 2 * most


@pytest.mark.parametrize("points", [[[1]] * 4, [[1], [2], [3], [4], [1, 2]], [[1]] * 4 + [[]], [[1]] * 4 + [[6]]])
def test_points_that_are_not_as_many_for_each_row_are_refused(points: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 5 .* for all rows or equally many for each of 5\."):
        gradient(SmallModel(), points)


class TestLeaps:
    @pytest.mark.parametrize("point", range(6))
    def test_the_gradient_is_that_of_the_rewards(self, point: int) -> None:
        """Finite differences on a schedule that begins at the point, where no earlier state depends on the negative."""
        model = SmallModel(pooled=True)
        levels = model.sigmas(SAMPLING)[point:].double()
        model.sigmas = lambda sampling: levels
        batch = Batch(PROMPTS, model.encode(PROMPTS), model.noise(range(5)).double())
        tokens, pooled = (part.double() for part in (negative_of(model).tokens, negative_of(model).pooled))
        direction = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

        def found(step: float):
            negative = Conditioning(tokens + step * direction, None, pooled)
            reach = Reach([0], "leap")
            return reward_gradient(model, Curved(), batch, negative, SAMPLING, reach)

        rise = (found(1e-3).rewards.double().sum() - found(-1e-3).rewards.double().sum()) / 2e-3
        assert (found(0).tokens * direction).sum().item() == pytest.approx(rise.item(), rel=2e-3)

    @pytest.mark.parametrize(("point", "middle"), [(0, 3), (1, 4), (2, 4), (3, 5), (4, 5), (5, None)])
    def test_it_goes_half_way_and_no_further(self, point: int, middle: int | None) -> None:
        model = Passes()
        gradient(model, [point], through="leap")
        recorded = [(step, branches) for step, recorded, _, branches in model.passes if recorded]
        assert recorded == [(point, (Branch.NEGATIVE,)), *([(middle, BOTH)] if middle else [])]

    def test_two_steps_before_the_end_it_is_the_gradient_to_the_end(self) -> None:
        euler = SAMPLING.changed(solver="euler")
        for point, same in ((4, True), (3, False)):
            leap, whole = (gradient(SmallModel(), [point], sampling=euler, through=way).tokens for way in ("leap", 0))
            assert torch.allclose(leap, whole, atol=1e-5) is same

    def test_it_counts_as_two_passes(self) -> None:
        assert [recorded_passes("leap", left) for left in (1, 2, 9)] == [1, 2, 2]
        assert [recorded_passes(through, 5) for through in (1, 3, 9, 0)] == [1, 3, 5, 5]


class TestDraws:
    @pytest.mark.parametrize("draws", [1, 2, 3, 4, 7, 12])
    @pytest.mark.parametrize(("window", "points"), [((2, 12), 1), ((0, 7), 3), ((4, 5), 1)])
    def test_every_draw_is_even_over_its_part_and_together_they_cover_it(self, window, points: int, draws: int) -> None:
        found = [schedule.spread_points(window, points, draws, 5, step) for step in range(3000)]
        size = window[1] - window[0]
        edges = [window[0] + size * i // points for i in range(points + 1)]
        for drawn in found:
            assert len(drawn) == draws
            for row in drawn:
                assert all(low <= at < high for at, (low, high) in zip(row, itertools.pairwise(edges), strict=True))
        for i in range(points):
            length = edges[i + 1] - edges[i]
            for draw in {0, draws - 1}:
                seen = Counter(drawn[draw][i] for drawn in found)
                assert {*seen} == {*range(edges[i], edges[i + 1])}
                assert all(abs(count / 3000 - 1 / length) < 0.05 for count in seen.values())
            if draws > 1 and length % draws == 0:
                assert all(len({row[i] for row in drawn}) == draws for drawn in found)
            elif draws % length == 0:
                assert all({*Counter(row[i] for row in drawn).values()} == {draws // length} for drawn in found)

    def test_one_draw_is_that_of_older_runs(self) -> None:
        for step in range(20):
            one = schedule.gradient_points((0, 6), 2, 0, step)
            assert schedule.points_of(CONFIG, SAMPLING, step, range(3, 8)) == [one] * 5

    def test_parts_of_the_batch_have_draws_of_their_own_however_it_is_cut(self) -> None:
        config = replace(CONFIG, draws=3)
        for step in range(20):
            whole = schedule.points_of(config, SAMPLING, step, range(8))
            assert [whole.count(row) for row in (whole[0], whole[3], whole[6])] == [3, 3, 2]
            assert whole == [schedule.points_of(config, SAMPLING, step, [row])[0] for row in range(8)]
            assert min(map(min, whole)) == min(map(min, schedule.spread_points((0, 6), 2, 3, 0, step)))

    def test_the_heaviest_step_is_that_of_the_earliest_of_all_draws(self) -> None:
        config = replace(CONFIG, draws=4, through=0)
        for step in range(20):
            first = min(map(min, schedule.points_of(config, SAMPLING, step, range(8))))
            assert schedule.recorded_steps(config, step) == 6 - first
            assert schedule.recorded_steps(replace(config, through="leap"), step) == min(2, 6 - first)


class Sizes(Recorder):
    """Notes how many rows a rollout begins with."""

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        self.began.append(len(noise))
        return self._model.start(noise, sigma)


def trained(folder: Path, config: TrainConfig = CONFIG, model: Any = None, **session: Any) -> Trainer:
    run = Trainer(
        model or SmallModel(), Curved(), Prompts(PROMPTS, PROMPTS[:2]), config, folder, session=Session(**session)
    )
    run.run()
    return run


def tokens_of(run: Trainer) -> Tensor:
    return run.learner.negative(torch.device("cpu")).tokens


@pytest.mark.parametrize(("rollout_batch", "sizes"), [(0, [8]), (3, [3, 3, 2]), (8, [8]), (50, [8])])
def test_a_rollout_takes_as_many_as_it_is_told(tmp_path: Path, rollout_batch: int, sizes: list[int]) -> None:
    model = Sizes(SmallModel())
    model.began = []
    run = trained(tmp_path / "a", replace(CONFIG, rollout_batch=rollout_batch, validate_every=50, draws=3), model)
    assert model.began == [2, *sizes * 3, 2], "between two validations"
    plain = trained(tmp_path / "b", replace(CONFIG, rollout_batch=1, micro_batch=1, draws=3))
    assert torch.allclose(tokens_of(run), tokens_of(plain), atol=2e-5)


def test_a_step_says_the_reward_of_all_its_parts_and_the_file_its_draws(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / f"{cut}", replace(CONFIG, rollout_batch=cut, micro_batch=1, draws=2)) for cut in (1, 3, 8)
    ]
    rewards = [[entry["reward"] for entry in run.files.records() if entry["event"] == "step"] for run in runs]
    assert rewards[1:] == [pytest.approx(rewards[0], abs=1e-5)] * 2 and len(rewards[0]) == 3
    notes = [run.embedding().provenance.notes["training"] for run in (runs[0], trained(tmp_path / "one"))]
    assert notes[0]["draws"] == 2 and "draws" not in notes[1]


def test_a_run_remembers_what_fitted_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class Narrow(SmallModel):
        def denoise(self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Any = (Branch.POSITIVE,)):
            recorded = conditioning.tokens.requires_grad
            if len(x) > (1 if recorded else 8):
                raise torch.OutOfMemoryError("out of memory")
            return super().denoise(x, sigma, conditioning, branches)

    whole = trained(tmp_path / "whole", model=Narrow())
    noted = [entry for entry in whole.files.records() if entry["event"] == "out_of_memory"]
    assert [(e.get("rollout_batch"), e.get("micro_batch")) for e in noted] == [(4, None), (None, 1)]
    steps = []

    class Count:
        on_validation = staticmethod(lambda *_: None)
        on_step = staticmethod(lambda record: steps.append(record))

    trained(tmp_path / "broken", model=Narrow(), observer=Count, should_stop=lambda: len(steps) == 1)
    state, _ = load_state(tmp_path / "broken/checkpoints/step-00000001.safetensors")
    assert (state.progress.rollout_batch, state.progress.micro_batch) == (4, 1)
    resumed = trained(tmp_path / "broken", model=Narrow(), resume=True)
    assert torch.equal(tokens_of(resumed), tokens_of(whole))
    assert len([entry for entry in resumed.files.records() if entry["event"] == "out_of_memory"]) == 2


def test_a_run_of_an_older_version_goes_on_with_one_size_for_both(tmp_path: Path) -> None:
    """Its checkpoint knows neither of draws nor of a rollout's own size."""
    trained(tmp_path, replace(CONFIG, steps=1))
    path = tmp_path / "checkpoints/step-00000001.safetensors"
    with safe_open(path, "pt") as file:
        texts, tensors = dict(file.metadata()), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    numbers, context = json.loads(texts["state"]), json.loads(texts["context"])
    assert numbers.pop("rollout_batch") == 8
    for name in ("draws", "rollout_batch"):
        del context["settings"][name]
    metadata = {"format": "reneg-checkpoint-1", "state": json.dumps(numbers), "context": json.dumps(context)}
    write_tensors(path, tensors, metadata)
    model = Sizes(SmallModel())
    model.began = []
    run = trained(tmp_path, CONFIG, model, resume=True)
    assert run.progress.step == 3 and [rows for rows in model.began if rows == 2] == model.began
    with pytest.raises(ValueError, match="draws: the run was started with 1, now it is 2"):
        trained(tmp_path, replace(CONFIG, draws=2), resume=True)


def test_the_session_hears_of_every_part(tmp_path: Path) -> None:
    heard = []
    trained(tmp_path, replace(CONFIG, steps=1, points=1), progress=lambda *part: heard.append(part))
    assert [part for part in heard if part[0] == "step"] == [("step", done, 8) for done in (2, 4, 6, 8)]


def test_a_step_has_the_sampling_and_the_loss_scale_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, scales = [], []
    draw, gradient = Jitter.draw, module.reward_gradient

    def noted(self: Jitter, sampling: Sampling, seed: int, step: int) -> Sampling:
        drawn.append((seed, step))
        return draw(self, sampling, seed, step)

    def asked(*parts: Any) -> Any:
        scales.append(parts[5].loss_scale)
        return gradient(*parts)

    monkeypatch.setattr(Jitter, "draw", noted)
    monkeypatch.setattr(module, "reward_gradient", asked)
    config = replace(CONFIG, seed=11, jitter=Jitter(guidance_scale=(2.0, 4.0)))
    run = Trainer(SmallModel(), Curved(), Prompts(PROMPTS, PROMPTS[:2]), config, tmp_path)

    def two_steps() -> None:
        run.prepare()
        run.scale = LossScale(8.0, 8.0)
        for step in range(2):
            run.trial(step, range(2))

    run.inside(two_steps)
    assert {*drawn} == {(11, 0), (11, 1)} and {*scales} == {8.0}


def test_the_padding_of_a_start_learns_too(tmp_path: Path) -> None:
    class Masked(SmallModel):
        def encode(self, prompts: Sequence[str]) -> Conditioning:
            return replace(super().encode(prompts), mask=torch.tensor([[1, 0]]).expand(len(prompts), 2))

    run = trained(tmp_path, replace(CONFIG, init="blurry"), Masked())
    assert run.embedding().mask.tolist() == [[1, 1]]
    start = SmallModel().encode(["blurry"]).tokens
    assert ((run.embedding().tokens - start).abs().amax(-1) > 1e-3).all(), "both tokens"


def test_a_mix_is_known_by_its_parts_and_their_statistics() -> None:
    one, two = Curved(), Curved()
    two.register_buffer("table", torch.ones(2))
    numbers = {"one": Statistics(0.5, 2.0, "here"), "two": Statistics(1.0, 4.0, "here")}
    mix = RewardMix({"one": one, "two": two}, {"one": 1.0, "two": -2.0}, statistics=numbers)
    found = reward_contents(mix)
    assert json.loads(found["standardisation"]) == {"one": [0.5, 2.0], "two": [1.0, 4.0]}
    assert found["name"] == "one*1 + two*-2" and found["weights of two"].startswith("sha256:")
    assert {*found} == {"name", "standardisation", "weights of two"}
    assert {*reward_contents(two)} == {"name", f"weights of {two.name}"}
