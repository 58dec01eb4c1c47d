"""The node that tunes a text encoder: it learns, stops, goes on, and its file is one of the stock loader's."""

import json
import logging
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import folder_paths
import pytest
import torch
from built import build
from reneg_pack.nodes import watching
from reneg_pack.nodes.host import files, rewards
from reneg_pack.nodes.tuning import TrainTextEncoder

import nodes
from reneg_core.texforce import load_text_lora
from reneg_core.tiny import train_prompts

OPTIONS = {
    "prompts": "\n".join(train_prompts()),
    "route": "direct",
    "steps": 6,
    "rank": 4,
    "size": 32,
    "seed": 0,
    "existing_run": "continue",
    "sampling_steps": 6,
    "cfg": 3.0,
    "learning_rate": 3e-3,
    "batch_size": 8,
    "micro_batch": 8,
    "scheduler": "sgm_uniform",
    "solver": "euler",
    "through": 0,
    "validate_every": 3,
    "validation_pairs": 16,
}


@pytest.fixture(scope="module")
def parts(world: tuple) -> dict[str, Any]:
    model, clip, vae = world
    return {"model": model, "clip": clip, "vae": vae, "reward": rewards.load("tiny", None, torch.float32)}


def tokens(clip: Any) -> torch.Tensor:
    return nodes.CLIPTextEncode().encode(clip, "a red circle on a blue background")[0][0][0].clone()


def lora_of(out: Any) -> Any:
    return load_text_lora(Path(folder_paths.get_folder_paths("loras")[0]) / out[1])


def test_it_learns_stops_with_the_best_and_goes_on_to_the_same(call, parts, monkeypatch, caplog) -> None:
    inputs, plain = {**parts, **OPTIONS}, tokens(parts["clip"])
    whole = call(TrainTextEncoder, **inputs, run_name="text/whole")
    report = json.loads(whole[4])
    assert report["reason"] == "done" and report["steps"] == 6 and report["training"]["method"] == "texforce"
    assert report["best_reward"] > report["start_reward"] + 0.03
    assert whole[1] == str(Path("texforce", "text", "whole.safetensors")) == report["file"]
    assert torch.equal(tokens(parts["clip"]), plain), "the user's CLIP is left alone"

    original = watching.NodeObserver.on_step

    def stop_at_four(self: Any, record: dict) -> None:
        original(self, record)
        if record["step"] == 4:
            memory.interrupt_current_processing(True)

    monkeypatch.setattr(watching.NodeObserver, "on_step", stop_at_four)
    stopped = call(TrainTextEncoder, **inputs, run_name="text/stopped")
    monkeypatch.setattr(watching.NodeObserver, "on_step", original)
    report = json.loads(stopped[4])
    assert (report["reason"], report["steps"], report["best_step"]) == ("stopped", 4, 3)
    assert not memory.processing_interrupted(), "what follows the training still runs"
    assert (tokens(stopped[0]) - plain).abs().max() > 1e-3, "the best so far is handed on"
    halfway = TrainTextEncoder.fingerprint_inputs(run_name="text/stopped")

    resumed = call(TrainTextEncoder, **inputs, run_name="text/stopped")
    assert json.loads(resumed[4])["steps"] == 6 and resumed[1] == stopped[1], "the same run, the same file"
    assert lora_of(resumed).digest() == lora_of(whole).digest()
    assert TrainTextEncoder.fingerprint_inputs(run_name="text/stopped") == halfway, "a finished run is served"
    assert (resumed[3] - whole[3]).abs().max() < 0.01 and resumed[3].shape[0] == 8

    folder_paths.filename_list_cache.clear()
    assert whole[1] in folder_paths.get_filename_list("loras")
    with caplog.at_level(logging.DEBUG):
        _, loaded = nodes.LoraLoader().load_lora(parts["model"], parts["clip"], whole[1], 1.0, 1.0)
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    assert torch.equal(tokens(loaded), tokens(whole[0]))
    assert (tokens(loaded) - plain).abs().max() > 1e-3


def parts_of(name: str, checkpoint: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    if name == "SD1":
        return checkpoint
    if name == "SD2.1":
        return nodes.CheckpointLoaderSimple().load_checkpoint("reneg-test-sd21.safetensors")[:3]
    return build("KOALA_700M")


@pytest.mark.parametrize(("name", "layers"), [("SD1", 12), ("SD2.1", 24), ("SDXL", 3 + 3)])
def test_the_file_of_a_published_encoder_loads_through_the_stock_loader(
    call, checkpoint, caplog, name: str, layers: int
) -> None:
    """Another training's file keeps its name. (A LoRA that learned nothing would load as well: it must be better.)"""
    model, clip, vae = parts_of(name, checkpoint)
    parts = {"model": model, "clip": clip, "vae": vae, "reward": rewards.load("brightness", None, torch.float32)}
    changes = {"prompts": "a red house\na blue car", "steps": 1, "size": 64, "sampling_steps": 2}
    small = {"batch_size": 2, "micro_batch": 2, "validate_every": 1, "validation_pairs": 2, "through": 1}
    taken = Path(folder_paths.get_folder_paths("loras")[0]) / "texforce" / f"{name}.safetensors"
    taken.parent.mkdir(exist_ok=True)
    taken.write_bytes(b"another's")
    out = call(TrainTextEncoder, **parts, **{**OPTIONS, **changes, **small}, run_name=name)
    assert json.loads(out[4])["best_step"] == 1
    assert taken.read_bytes() == b"another's" and Path(out[1]).name == f"{name}_002.safetensors"
    encoders = {layer.partition(".")[0] for layer in lora_of(out).layers}
    assert encoders == ({"text_encoder", "text_encoder_2"} if name == "SDXL" else {"text_encoder"})
    assert len(lora_of(out).layers) == 4 * layers
    folder_paths.filename_list_cache.clear()
    with caplog.at_level(logging.DEBUG):
        _, loaded = nodes.LoraLoader().load_lora(model, clip, out[1], 1.0, 1.0)
    assert "lora key not loaded" not in caplog.text and "NOT LOADED" not in caplog.text
    assert torch.equal(tokens(loaded), tokens(out[0]))
    assert (tokens(loaded) - tokens(clip)).abs().max() > 1e-4


def test_what_cannot_be_tuned_is_refused_before_anything_is_written(call, parts) -> None:
    with pytest.raises(ValueError, match="route: got 'both'"):
        call(TrainTextEncoder, **parts, **{**OPTIONS, "route": "both"}, run_name="refused")
    with pytest.raises(ValueError, match=r"jpeg|gradient"):
        jpeg = {**parts, "reward": rewards.load("jpeg_compressibility", None, torch.float32)}
        call(TrainTextEncoder, **jpeg, **OPTIONS, run_name="refused")
    assert not files.tuning_folder("refused").exists() or not any(files.tuning_folder("refused").glob("*.safetensors"))
    assert TrainTextEncoder.validate_inputs(run_name="../x").startswith("Got the file name")
