"""The training node and its settings: the same training as ever, in words, within its time."""

import json
from typing import Any

import pytest
import torch
from reneg_pack.nodes import running, watching
from reneg_pack.nodes.host import files, rewards
from reneg_pack.nodes.older import TrainEmbedding
from reneg_pack.nodes.presets import RECIPES
from reneg_pack.nodes.running import Task
from reneg_pack.nodes.training import Train, TrainingSettings

CHOICES = {
    "sampling_steps": 4,
    "cfg": 3.0,
    "learning_rate": 0.02,
    "micro_batch": 2,
    "scheduler": "karras",
    "solver": "euler",
    "checkpointing": False,
    "batch_size": 2,
    "validate_every": 3,
    "validation_pairs": 2,
}
PROMPTS = "a red circle on a blue background\na green ring on a white background"


@pytest.fixture(scope="module")
def parts(world: tuple) -> dict[str, Any]:
    model, clip, vae = world
    return {"model": model, "clip": clip, "vae": vae, "reward": rewards.load("tiny", None, torch.float32)}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in (running, watching):
        monkeypatch.setattr(module, "say", lambda text, node_id: lines.append(text))
    return lines


def settings(call: Any, **changes: Any) -> dict[str, Any]:
    plain = {name: value for name, value in RECIPES["quick"].items() if name not in ("steps", "validation_prompts")}
    return call(TrainingSettings, **{**plain, **CHOICES, **changes})[0]


def test_both_training_nodes_learn_the_same(call, parts) -> None:
    own = {"preset": "from settings", "steps": 3, "size": 32, "seed": 5, "existing_run": "continue"}
    new = call(Train, **parts, prompts=PROMPTS, run_name="node_new", settings=settings(call), **own)
    rest = {"width": 32, "height": 32, "points": 1, "patience": 0, "norm_limit": 0.0, "prompt_file": "none"}
    old = call(
        TrainEmbedding, **parts, prompts=PROMPTS, run_name="node_old", steps=3, seed=5, vary="off", **CHOICES, **rest
    )
    assert torch.equal(new[1].tokens, old[1].tokens) and json.loads(new[4])["steps"] == 3


def test_the_node_speaks_at_once_and_says_how_long(call, parts, told) -> None:
    own = {"preset": "from settings", "steps": 60, "size": 32, "seed": 0, "existing_run": "continue"}
    call(Train, **parts, prompts=PROMPTS, run_name="node_words", settings=settings(call, validate_every=60), **own)
    assert told[0] == "loading the model" and told[1] == "measuring what a step takes"
    assert told[2].startswith("60 steps: about ") and "GiB of memory" in told[2]
    assert told[3].startswith("first validation: 2 of 2 pictures, about ")
    steps = [line for line in told if line.startswith("step ") and "reward" in line]
    assert "step 1 of 60: reward" in steps[0] and ", about " in steps[0] and steps[0].endswith(" left")
    assert told[-1].startswith("done at step 60: reward ")


def test_a_limit_of_time_takes_fewer_steps_and_says_so(call, parts, told) -> None:
    options = {**RECIPES["quick"], **CHOICES, "width": 32, "height": 32, "steps": 4000, "seed": 0}
    task = Task(**parts, prompts=PROMPTS, options=options, run_name="node_limit", limit=12.0)
    report = json.loads(running.train(task)[4])
    assert report["reason"] == "done" and 1 <= report["steps"] < 4000
    assert f"{report['steps']} of 4000 steps, which fit into" in told[-1]
    finished = report["steps"]
    more = json.loads(running.train(Task(**{**vars(task), "limit": 6.0}))[4])
    assert more["file"] == "node_limit/negative.safetensors" and finished < more["steps"] < 4000, "each goes on"


def test_a_preset_with_settings_that_it_would_not_use_is_refused(call, parts) -> None:
    own = {"preset": "quick", "steps": 1, "size": 32, "seed": 0, "existing_run": "continue"}
    with pytest.raises(ValueError, match=r"'quick' with a Training Settings node connected"):
        call(Train, **parts, prompts=PROMPTS, run_name="node_refused", settings=settings(call), **own)
    assert not files.run_folder("node_refused").exists()
