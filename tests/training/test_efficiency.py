"""The negative against a LoRA and against the whole denoiser: the same objective and start, and nothing left behind."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import pipeline, pipeline_folder
from doubles import Curved
from pipelines import build

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.cli import main
from reneg_core.efficiency import LORA, Work, analyse, trainable, weight_gradient
from reneg_core.evaluation import Pairs
from reneg_core.sampling import Sampling
from reneg_core.training import Batch, Prompts, Reach, TrainConfig, reward_gradient

PROMPTS = Prompts(["a red fox", "blue sea"], ["a red fox", "blue sea"])
SAMPLING = Sampling(steps=3).at_scale(4.0)
CONFIG = TrainConfig(
    steps=4, batch_size=4, micro_batch=2, sampling=SAMPLING, window=(0, 3), validate_every=2, validation_pairs=4
)
RATES = {"embedding": (0.05,), "lora": (3e-2,), "denoiser": (1e-3, 1e-9)}


@pytest.fixture
def model() -> DiffusersModel:
    return wrap(pipeline(), "random")


def work(**changes: object) -> Work:
    return Work(Curved(), PROMPTS, replace(CONFIG, **changes))


def batch_of(model: DiffusersModel) -> Batch:
    return Batch(PROMPTS.train[:2], model.encode(PROMPTS.train[:2]), model.noise([1, 2]))


@pytest.mark.parametrize(("points", "through"), [([1], 1), ([0, 2], 2), ([0], 0)])
def test_the_objective_is_the_embeddings(model: DiffusersModel, points: list[int], through: int) -> None:
    null, reach = model.encode([""]), Reach(points, through)
    leaf = null.tokens.clone().requires_grad_()
    weights = {"tokens": leaf}
    found = weight_gradient(model, Curved(), batch_of(model), replace(null, tokens=leaf), SAMPLING, reach, weights)
    expected = reward_gradient(model, Curved(), batch_of(model), null, SAMPLING, reach)
    assert torch.allclose(found["tokens"], expected.tokens, atol=1e-6, rtol=1e-3)


def test_the_gradient_of_weights_equals_central_differences(model: DiffusersModel) -> None:
    null, reach = model.encode([""]), Reach([0], 2)
    with trainable(model, "denoiser", work()) as (parameters, _):
        found = weight_gradient(model, Curved(), batch_of(model), null, SAMPLING, reach, parameters)
        length = torch.stack([g.norm() for g in found.values()]).norm()
        step, rewards = 2e-3 / length, []
        for sign in (1, -2):
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter += sign * step * found[name]
            with torch.no_grad():
                probe = reward_gradient(model, Curved(), batch_of(model), null, SAMPLING, reach)
            rewards.append(probe.rewards.double().sum().item())
    slope = (rewards[0] - rewards[1]) / (2 * 2e-3)
    assert slope == pytest.approx(length.item(), rel=0.02)


def test_every_method_climbs_from_the_same_start_and_leaves_the_model_as_it_was(model: DiffusersModel) -> None:
    pytest.importorskip("peft", reason="peft is not installed: the LoRA is not tested")
    digest, names = model.digest(), [*model.network.state_dict()]
    told = []
    pairs = Pairs.own(PROMPTS.validation, 1)
    found = analyse(model, work(), pairs, {"reward": Curved().score}, RATES, progress=lambda *state: told.append(state))
    assert model.digest() == digest and [*model.network.state_dict()] == names
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    assert [(c.method, c.rate) for c in found.courses] == [(m, r) for m, rates in RATES.items() for r in rates]
    assert len({course.curve[0] for course in found.courses}) == 1
    assert [step for step, _ in found.courses[0].curve] == [0, 2, 4]
    assert all(course.reward > course.curve[0][1] + 1e-3 for course in found.chosen.values())
    assert found.chosen["denoiser"].rate == 1e-3
    counts = {method: course.parameters for method, course in found.chosen.items()}
    assert counts["embedding"] == 16 * 32 and counts["denoiser"] == sum(p.numel() for p in model.network.parameters())
    assert counts["embedding"] < counts["lora"] < counts["denoiser"]
    assert len(told) == 4 * CONFIG.steps and told[-1] == ("denoiser", 1e-9, 4)
    means = {mode: found.evaluation.mean("reward", mode).value for mode in found.evaluation.modes}
    assert [*means] == ["none", "embedding", "lora", "denoiser"] and len(set(means.values())) == 4
    for row in found.rows():
        assert row["reward"] == means[row["method"]]
        assert row["gain"] == pytest.approx(means[row["method"]] - means["none"], abs=1e-9)
    json.dumps(found.to_json())


@pytest.mark.parametrize("name", ["sd15", "zeroscope", "flux"])
def test_a_failure_leaves_the_model_as_it_was(name: str) -> None:
    model = wrap(build(name), name)
    digest, names = model.digest(), [*model.network.state_dict()]
    for method in ("denoiser", LORA):
        if method == LORA:
            pytest.importorskip("peft")
        with pytest.raises(RuntimeError, match="stop"), trainable(model, method, work()) as (parameters, _):
            with torch.no_grad():
                for parameter in parameters.values():
                    parameter += 1
            assert model.digest() != digest
            raise RuntimeError("stop")
        assert model.digest() == digest and [*model.network.state_dict()] == names


def test_what_cannot_be_analysed_is_refused(model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, measures = Pairs.own(["a"], 1), {"reward": Curved().score}
    for rates, message in (
        ({"prefix": (1e-3,)}, "Got prefix, expected learning rates for some of embedding, lora, denoiser"),
        ({"embedding": ()}, "Got no learning rates, expected"),
    ):
        with pytest.raises(ValueError, match=message):
            analyse(model, work(), pairs, measures, rates)
    half = wrap(pipeline().to(torch.bfloat16), "half")
    with pytest.raises(ValueError, match=r"Got a model in torch.bfloat16, expected fp32"):
        analyse(half, work(), pairs, measures)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"The package peft is missing; it makes the LoRA. Try: pip install peft"):
        analyse(model, work(), pairs, measures)


def test_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, prompts = pipeline_folder(tmp_path / "model"), tmp_path / "prompts.txt"
    prompts.write_text("a red fox\nblue sea\nthe sun\n")
    settings = [
        f"model={folder}", f"prompts={prompts}", f"validation_prompts={prompts}", "reward=sharpness", "steps=2",
        "batch_size=2", "micro_batch=2", "sampling.steps=2", "window=[0,2]", "validation_pairs=2",
        f"output={tmp_path / 'out'}", "device=cpu",
    ]  # fmt: skip
    command = [
        "analyze",
        *settings,
        "--test-prompts",
        str(prompts),
        "--noises",
        "1",
        "--methods",
        "embedding",
        "denoiser",
    ]
    assert main([*command, "--rate", "embedding=0.05", "--rate", "denoiser=1e-3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["method", "parameters", "rate", "s", "a", "step", "validation", "test", "gain", "wins"]
    assert out[1].startswith("negative embedding  512") and out[2].startswith("the whole denoiser  203,204")
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [row["rate"] for row in found["rows"]] == [0.05, 1e-3]
    assert all((tmp_path / "out" / name).exists() for name in ("efficiency.png", "report.html", "grid.png"))
    assert main([*command, "--rate", "lora=1"]) == 1
    assert "Got --rate lora=1, expected METHOD=RATE with one of embedding, denoiser" in capsys.readouterr().err
