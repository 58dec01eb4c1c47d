"""The stop button ends a training or an adaptation anywhere in its work, keeps the best, and lets the graph go on."""

import json
from typing import Any

import comfy.model_management as memory
import pytest
import torch
from reneg_pack.nodes.adapting import AdaptEmbedding
from reneg_pack.nodes.host import files, rewards
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.host.text import embedding_from
from reneg_pack.nodes.older import TrainEmbedding

import nodes

OPTIONS = {
    "width": 32,
    "height": 32,
    "sampling_steps": 4,
    "cfg": 3.0,
    "learning_rate": 0.02,
    "points": 1,
    "micro_batch": 2,
    "scheduler": "karras",
    "solver": "euler",
    "checkpointing": False,
}
TRAIN = {
    **OPTIONS,
    "steps": 6,
    "batch_size": 2,
    "seed": 0,
    "validate_every": 3,
    "validation_pairs": 2,
    "patience": 0,
    "norm_limit": 0.0,
    "prompts": "a red circle on a blue background\na green ring on a white background",
    "prompt_file": "none",
}


@pytest.fixture(scope="module")
def parts(world: tuple) -> dict[str, Any]:
    model, clip, vae = world
    return {"model": model, "clip": clip, "vae": vae, "reward": rewards.load("tiny", None, torch.float32)}


def test_stop_keeps_the_best_and_the_run_goes_on_later(call, parts, monkeypatch) -> None:
    from reneg_pack.nodes import watching

    original = watching.NodeObserver.on_step

    def stop_at_four(self: Any, record: dict) -> None:
        original(self, record)
        if record["step"] == 4:
            memory.interrupt_current_processing(True)

    monkeypatch.setattr(watching.NodeObserver, "on_step", stop_at_four)
    inputs = {**parts, **TRAIN}
    began = TrainEmbedding.fingerprint_inputs(run_name="test_stop")
    stopped = call(TrainEmbedding, **inputs, run_name="test_stop")
    first = TrainEmbedding.fingerprint_inputs(run_name="test_stop")
    assert first != began, "what was stopped is not served from the host's cache"
    assert json.loads(stopped[4])["reason"] == "stopped" and json.loads(stopped[4])["steps"] == 4
    assert not memory.processing_interrupted(), "what follows the training still runs"
    monkeypatch.setattr(watching.NodeObserver, "on_step", original)
    resumed = call(TrainEmbedding, **{**inputs, "seed": 77}, run_name="test_stop")  # the page draws new seeds
    whole = call(TrainEmbedding, **inputs, run_name="test_whole")
    assert json.loads(resumed[4])["steps"] == 6
    assert torch.equal(resumed[1].tokens, whole[1].tokens)
    assert (resumed[3] - whole[3]).abs().max() < 0.01, "the pictures of the start are those of step 0"
    assert TrainEmbedding.fingerprint_inputs(run_name="test_stop") == first, "what has finished is, from then on"
    again = call(TrainEmbedding, **inputs, run_name="test_stop")
    assert (again[3] - whole[3]).abs().max() < 0.01, "a run with nothing left to do shows what it found"


class Pressing:
    """Presses stop when a method has been called so many times, in the middle of its work."""

    def __init__(self, monkeypatch: Any, owner: Any, name: str, calls: int) -> None:
        self.calls, original = calls, getattr(owner, name)

        def pressing(*args: Any, **kwargs: Any) -> Any:
            self.calls -= 1
            if self.calls == 0:
                memory.interrupt_current_processing(True)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, pressing)


PLACES = {
    "a pass": (HostModel, "_pass", 21),
    "the decoder": (HostModel, "decode", 5),
    "the backward pass": (torch.autograd, "grad", 3),
}


@pytest.mark.parametrize("place", PLACES)
def test_stop_inside_the_work_keeps_the_best_and_lets_the_graph_go_on(call, parts, monkeypatch, place: str) -> None:
    """Newer hosts raise out of any operation of a network: also there, also while activations are computed again."""
    pressed = Pressing(monkeypatch, *PLACES[place])
    options = {**TRAIN, "steps": 30, "validate_every": 1, "checkpointing": place == "the backward pass"}
    run = f"test_stop_{place.split()[-1]}"
    report = json.loads(call(TrainEmbedding, **parts, run_name=run, **options)[4])
    assert pressed.calls <= 0 and report["reason"] == "stopped" and 0 < report["steps"] < 30
    assert (files.run_folder(run) / "negative.safetensors").is_file()
    assert not memory.processing_interrupted(), "what follows the training still runs"


def test_stop_before_there_is_anything_to_keep_is_the_hosts_own(call, parts, monkeypatch) -> None:
    Pressing(monkeypatch, HostModel, "_encode_one", 1)
    with pytest.raises(memory.InterruptProcessingException):
        call(TrainEmbedding, **parts, run_name="test_stop_early", **TRAIN)


def test_stop_during_adaptation_keeps_the_best_of_every_picture(call, parts, monkeypatch) -> None:
    Pressing(monkeypatch, HostModel, "_pass", 12)
    start = embedding_from(nodes.CLIPTextEncode().encode(parts["clip"], "bad, ugly")[0], "width-128")
    chosen = {"prompt": "a red circle on a blue background", "seed": 4, "pictures": 2, "steps": 50, "patience": 50}
    out = call(AdaptEmbedding, **parts, embedding=start, **chosen, **OPTIONS)
    report = json.loads(out[4])
    assert out[0].shape == (2, 32, 32, 3) and max(report["steps"]) < 5
    assert all(a >= b for a, b in zip(report["rewards"], report["start_rewards"], strict=True))
