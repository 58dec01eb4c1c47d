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


@pytest.fixture()
def passes() -> Iterator[tuple[Any, list[Any]]]:
    """A HostModel on doubles whose passes give the branch's number, and a list of what the host was asked."""
    with imported("host.model") as [module]:
        model, asked = object.__new__(module.HostModel), []

        def calculate(network: Any, conditions: list[Any], x: Tensor, level: Tensor, options: Any) -> list[Tensor]:
            asked.append((conditions, len(x), level.tolist()))
            return [torch.full_like(x, branch) for branch in range(2)]

        module.comfy.samplers.calc_cond_batch = calculate
        model._passing, model._guider, model._options = nullcontext, SimpleNamespace(inner_model=None), {}
        model._condition = lambda x, conditioning, branch: (branch, conditioning.tokens[:, 0, 0].tolist())
        yield model, asked


def test_a_joint_pass_is_one_call_with_both_branches(passes: Any) -> None:
    model, asked = passes
    x, tokens = torch.randn(2, 4, 2, 2), torch.arange(4.0).reshape(4, 1, 1)
    order = (Branch.NEGATIVE, Branch.POSITIVE)
    found = model.denoise(torch.cat([x, x]), torch.tensor(2.0), Conditioning(tokens), order)
    assert asked == [([[(Branch.POSITIVE, [2.0, 3.0])], [(Branch.NEGATIVE, [0.0, 1.0])]], 2, [2.0, 2.0])]
    assert found[:, 0, 0, 0].tolist() == [1, 1, 0, 0], "negative rows first"


@pytest.mark.parametrize("branch", list(Branch))
def test_a_single_pass_is_labelled_as_its_branch(passes: Any, branch: Branch) -> None:
    model, asked = passes
    found = model.denoise(torch.randn(2, 4, 2, 2), torch.tensor(2.0), Conditioning(torch.zeros(2, 1, 1)), (branch,))
    [(conditions, _, _)] = asked
    assert conditions[branch] and conditions[1 - branch] is None and (found == branch).all()


def test_branches_at_different_levels_are_passed_one_after_the_other(passes: Any) -> None:
    model, asked = passes
    x = torch.randn(1, 4, 2, 2)
    levels, order = torch.tensor([2.0, 3.0]), (Branch.NEGATIVE, Branch.POSITIVE)
    model.denoise(torch.cat([x, x]), levels, Conditioning(torch.zeros(2, 1, 1)), order)
    assert [(conditions.index(None), level) for conditions, _, level in asked] == [(0, [2.0]), (1, [3.0])]


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
