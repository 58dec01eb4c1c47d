"""Without a host: the nodes' inputs become one Sampling and one Jitter, embeddings say what they were learned for, and
a pass of the host's model tells its branch."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reneg_core.embedding import NegativeEmbedding, Provenance
from reneg_core.guidance import Guidance
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import Jitter, Sampling, Size
from reneg_core.training import AdaptConfig, TrainConfig

from .fake_host import imported

OPTIONS = {
    "width": 64,
    "height": 32,
    "sampling_steps": 30,
    "cfg": 3.0,
    "learning_rate": 0.1,
    "points": 2,
    "micro_batch": 4,
    "scheduler": "simple",
    "solver": "dpmpp_2m",
    "checkpointing": False,
}
SAMPLING = Sampling("dpmpp_2m", 30, "trailing", Guidance(3.0), Size(32, 64))


@pytest.fixture(scope="module")
def settings() -> Iterator[Any]:
    with imported("settings") as [module]:
        yield module


@pytest.fixture(scope="module")
def schedules() -> Iterator[Any]:
    with imported("host.schedules") as [module]:
        yield module


def test_the_inputs_become_one_sampling(settings: Any) -> None:
    assert settings.sampling_of(OPTIONS) == SAMPLING
    assert settings.sampling_of({k: v for k, v in OPTIONS.items() if k != "solver"}).solver == "euler"


@pytest.mark.parametrize(
    ("scheduler", "spacing"),
    [("karras", "karras"), ("simple", "trailing"), ("ddim_uniform", "leading"), ("normal", "model"), ("beta", "model")],
)
def test_a_scheduler_is_recorded_as_the_spacing_that_it_is(settings: Any, schedules: Any, scheduler, spacing) -> None:
    sampling = settings.sampling_of({**OPTIONS, "scheduler": scheduler})
    assert sampling.spacing == spacing
    assert schedules.scheduler_of(sampling, own=scheduler) == scheduler


def test_levels_come_from_the_scheduler_of_the_spacing(schedules: Any) -> None:
    asked = []

    def calculate(network: Any, scheduler: str, steps: int) -> Tensor:
        asked.append(scheduler)
        return torch.linspace(1, 0, steps + 1 + (scheduler == "ddim_uniform"))

    schedules.comfy.samplers.calculate_sigmas = calculate
    for spacing in ("model", "trailing", "karras"):
        assert len(schedules.levels(None, Sampling(steps=3, spacing=spacing), "beta")) == 4
    assert asked == ["beta", "simple", "karras"]
    with pytest.raises(ValueError, match="ddim_uniform gives 4 steps for 3, expected 3"):
        schedules.levels(None, Sampling(steps=3, spacing="leading"), "beta")


def test_the_settings_are_the_cores(settings: Any) -> None:
    found = settings.rollout_settings({**OPTIONS, "steps": 5, "last_steps": 12, "through": 0, "vary": "off"})
    config = TrainConfig(**found, jitter=settings.jitter_of(OPTIONS))
    assert config.sampling == SAMPLING and config.window == (18, 30) and config.through == 0 and not config.jitter
    assert (config.steps, config.points, config.micro_batch) == (5, 2, 4)
    assert AdaptConfig(**settings.rollout_settings(OPTIONS)).gradient_window == (20, 30)


def test_vary_draws_around_what_is_set(settings: Any) -> None:
    jitter = settings.jitter_of({**OPTIONS, "vary": "samplers and guidance"})
    assert jitter == Jitter(("euler", "dpmpp_2m"), (10, 20, 30), ("trailing", "karras"), (2.0, 3.0, 4.0))
    other = settings.jitter_of({**OPTIONS, "scheduler": "normal", "vary": "samplers and guidance"})
    assert other.spacing == ("model", "trailing", "karras")
    TrainConfig(**settings.rollout_settings(OPTIONS), jitter=jitter)
    for nothing in ({**OPTIONS, "vary": "off"}, OPTIONS):
        assert not settings.jitter_of(nothing)


def test_vary_leaves_room_for_the_gradient_points(settings: Any) -> None:
    crowded = {**OPTIONS, "points": 6, "vary": "samplers and guidance"}
    jitter = settings.jitter_of(crowded)
    assert jitter.steps == (20, 30)
    TrainConfig(**settings.rollout_settings(crowded), jitter=jitter)


def test_levels_are_asked_for_before_any_work(settings: Any) -> None:
    class Asked:
        def __init__(self) -> None:
            self.samplings: list[Sampling] = []

        def sigmas(self, sampling: Sampling) -> None:
            self.samplings.append(sampling)

    one, many = Asked(), Asked()
    settings.check_levels(one, SAMPLING, Jitter())
    assert one.samplings == [SAMPLING]
    settings.check_levels(many, SAMPLING, Jitter(steps=(10, 30), spacing=("trailing", "karras")))
    assert [(s.steps, s.spacing) for s in many.samplings] == [
        (10, "trailing"),
        (10, "karras"),
        (30, "trailing"),
        (30, "karras"),
    ]


def embedding(**origin: Any) -> NegativeEmbedding:
    return NegativeEmbedding(torch.zeros(1, 2, 768), provenance=Provenance(**origin))


def test_an_embedding_says_what_it_was_learned_for(schedules: Any) -> None:
    told = schedules.learned_for(embedding(sampling=SAMPLING.to_mapping()))
    assert told == f"learned for {SAMPLING.describe()} (in KSampler: dpmpp_2m and simple)"
    assert "in KSampler: euler)" in schedules.learned_for(embedding(sampling=Sampling("ddim").to_mapping()))
    varied = {"training": {"jitter": Jitter(steps=(10, 20)).to_mapping()}}
    assert schedules.learned_for(embedding(sampling=SAMPLING.to_mapping(), notes=varied)).endswith("guidance around it")


def test_an_embedding_that_does_not_say_is_told_of(schedules: Any) -> None:
    assert "does not say for which sampler" in schedules.learned_for(embedding())
    assert schedules.learned_for(embedding(guidance_scale=7.5)).endswith("learned at guidance scale 7.5")
    assert schedules.learned_for(embedding(source="conditioning")) == ""


class Cond:
    """What the host's architecture makes of a prompt: here its first number, which says whose it is, and its length."""

    def __init__(self, cond: list[float], length: int) -> None:
        self.cond, self.length = cond, length

    def can_concat(self, other: "Cond") -> bool:
        return self.length == other.length

    def concat(self, others: list["Cond"]) -> list[float]:
        return [*self.cond, *(number for other in others for number in other.cond)]

    def _copy_with(self, cond: list[float]) -> "Cond":
        return Cond(cond, self.length)


@pytest.fixture()
def passes() -> Iterator[tuple[Any, list[Any]]]:
    """A HostModel on doubles whose passes give the branch's number and a hundredth of the prompt's, and a list of what
    the host was asked: the prompts of each branch, and the noise levels."""
    with imported("host.model") as [module]:
        model, asked = object.__new__(module.HostModel), []

        def calculate(network: Any, conditions: list[Any], x: Tensor, level: Tensor, options: Any) -> list[Any]:
            texts = [None if part is None else part[0]["model_conds"]["text"].cond for part in conditions]
            assert all(part is None or part[0]["uuid"] == branch for branch, part in enumerate(conditions))
            asked.append((texts, level.tolist()))
            numbers = [None if text is None else torch.tensor(text).reshape(-1, 1, 1, 1) / 100 for text in texts]
            return [None if n is None else torch.full_like(x, branch) + n for branch, n in enumerate(numbers)]

        module.comfy.samplers.calc_cond_batch = calculate
        model._passing, model._guider, model._options = nullcontext, SimpleNamespace(inner_model=None), {}
        model._uuids = {branch: branch.value for branch in Branch}
        model._processed = lambda x, row, branch: {
            "text": Cond([row.tokens[0, 0, 0].item()], int(row.tokens.shape[1] if row.mask is None else row.mask.sum()))
        }
        yield model, asked


ORDER = (Branch.NEGATIVE, Branch.POSITIVE)


def test_a_joint_pass_is_one_call_with_both_branches(passes: Any) -> None:
    model, asked = passes
    x, tokens = torch.randn(2, 4, 2, 2), torch.arange(4.0).reshape(4, 1, 1)
    found = model.denoise(torch.cat([x, x]), torch.tensor(2.0), Conditioning(tokens), ORDER)
    assert asked == [([[2.0, 3.0], [0.0, 1.0]], [2.0, 2.0])]
    assert found[:, 0, 0, 0].tolist() == pytest.approx([1, 1.01, 0.02, 0.03]), "negative rows first"


@pytest.mark.parametrize("branch", list(Branch))
def test_a_single_pass_is_labelled_as_its_branch(passes: Any, branch: Branch) -> None:
    model, asked = passes
    found = model.denoise(torch.randn(2, 4, 2, 2), torch.tensor(2.0), Conditioning(torch.zeros(2, 1, 1)), (branch,))
    [(texts, _)] = asked
    assert texts[branch] == [0, 0] and texts[1 - branch] is None and (found == branch).all()


def test_branches_at_different_levels_are_passed_one_after_the_other(passes: Any) -> None:
    model, asked = passes
    x = torch.randn(1, 4, 2, 2)
    levels = torch.tensor([2.0, 3.0])
    model.denoise(torch.cat([x, x]), levels, Conditioning(torch.zeros(2, 1, 1)), ORDER)
    assert [(texts.index(None), level) for texts, level in asked] == [(0, [2.0]), (1, [3.0])]


def test_rows_that_the_host_does_not_join_are_passed_by_themselves_and_stay_in_order(passes: Any) -> None:
    """Each row with its own noise level; a row belongs to others where both of its branches do."""
    model, asked = passes
    x, tokens = torch.randn(4, 4, 2, 2), torch.arange(8.0).reshape(8, 1, 1).expand(8, 3, 1)
    lengths = torch.tensor([3, 3, 3, 1, 3, 2, 3, 3])
    mask = (torch.arange(3) < lengths[:, None]).long()
    levels = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(2)
    found = model.denoise(torch.cat([x, x]), levels, Conditioning(tokens, mask), ORDER)
    assert asked == [
        ([[4.0, 6.0], [0.0, 2.0]], [1.0, 3.0]),
        ([[5.0], [1.0]], [2.0]),
        ([[7.0], [3.0]], [4.0]),
    ]
    assert found[:, 0, 0, 0].tolist() == pytest.approx([1, 1.01, 1.02, 1.03, 0.04, 0.05, 0.06, 0.07])


@pytest.fixture()
def rows() -> Iterator[Any]:
    with imported("host.rows") as [module]:
        yield module


def prompt(*numbers: float, masked: bool = False) -> Conditioning:
    tokens = torch.tensor(numbers).reshape(1, -1, 1)
    return Conditioning(tokens, torch.ones(1, len(numbers), dtype=torch.int64) if masked else None)


def test_prompts_of_one_length_are_joined_as_they_are(rows: Any) -> None:
    found = rows.joined([prompt(1, 2), prompt(3, 4)])
    assert found.tokens.squeeze(2).tolist() == [[1, 2], [3, 4]] and found.mask is None
    mixed = rows.joined([prompt(1, 2), prompt(3, 4, masked=True)])
    assert mixed.mask.tolist() == [[1, 1], [1, 1]], "encoders leave out a mask of ones"


def test_shorter_prompts_are_padded_and_the_mask_says_so(rows: Any) -> None:
    for masked in (False, True):
        found = rows.joined([prompt(1, masked=masked), prompt(2, 3, 4, masked=masked)])
        assert found.tokens.squeeze(2).tolist() == [[1, 0, 0], [2, 3, 4]]
        assert found.mask.tolist() == [[1, 0, 0], [1, 1, 1]]


def test_the_family_padding_is_the_end_of_every_prompt(rows: Any) -> None:
    padding = torch.tensor([7.0, 8.0, 9.0]).reshape(1, 3, 1)
    one = rows.joined([prompt(1)], padding)
    assert one.tokens.squeeze(2).tolist() == [[1, 8, 9]] and one.mask.tolist() == [[1, 0, 0]]
    long = rows.joined([prompt(1), prompt(1, 2, 3, 4)], padding)
    assert long.tokens.squeeze(2).tolist() == [[1, 8, 9, 0], [1, 2, 3, 4]]
    assert long.mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]


def test_what_a_mask_hides_at_the_end_is_left_out(rows: Any) -> None:
    row = Conditioning(prompt(1, 2, 3).tokens, torch.tensor([[1, 1, 0]]), torch.ones(1, 2))
    found = rows.attended(row, "X")
    assert found.tokens.flatten().tolist() == [1, 2] and found.mask is None and found.pooled is row.pooled
    assert rows.attended(prompt(1, 2), "X").tokens.shape[1] == 2
    for mask in ([[1, 0, 1]], [[0, 0, 0]]):
        with pytest.raises(ValueError, match=r"tokens left out, which X does not read"):
            rows.attended(Conditioning(row.tokens, torch.tensor(mask)), "X")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sampling_steps": 4, "points": 3},
            r"points: got 3, expected at most the 1 steps that last_steps says \(0: a",
        ),
        ({"cfg": 1.0}, r"^The configuration is not usable:\n- cfg: got 1"),
    ],
)
def test_faults_are_told_under_the_names_of_the_inputs(settings: Any, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), settings.in_own_names():
        TrainConfig(**settings.rollout_settings({**OPTIONS, **changes}))
