"""What the command line leaves behind, and in which order it checks: folders first, nothing half-written."""

import json
import os
from pathlib import Path

import pytest
import torch
from builders import pipeline, pipeline_folder

from reneg_core import NegativeEmbedding
from reneg_core.backends import wrap
from reneg_core.cli import main, parse
from reneg_core.embedding import Provenance

QUICK = [
    "steps=2", "batch_size=2", "micro_batch=2", "sampling_steps=2", "window=[0,2]", "validation_pairs=2",
    "validate_every=1", "checkpoint_every=1", "guidance_scale=4",
]  # fmt: skip


def test_settings_stand_before_between_and_after_the_options() -> None:
    args = parse(["train", "steps=3", "--dry-run", "batch_size=4", "--config", "fast", "seed=2"])
    assert args.overrides == ["steps=3", "batch_size=4", "seed=2"] and args.dry_run and args.config == "fast"


def test_an_error_at_the_start_of_a_training_stands_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *QUICK, f"output={run}"]) == 0
    capsys.readouterr()
    assert main(["train", *QUICK, f"output={run}"]) == 1
    said = capsys.readouterr().err
    assert "learning" not in said and said.splitlines()[-1].startswith("reneg train: ")


def test_a_preview_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "previews").write_text("a file where the folder should be")
    assert main(["train", *QUICK, f"output={run}"]) == 0
    assert capsys.readouterr().err.count("note: previews are left out: Could not write") == 1
    assert (run / "negative.safetensors").exists()


def test_infer_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline_folder(tmp_path / "model")
    out = tmp_path / "out"
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # the trial of the folder and the first picture pass
            raise OSError(28, "No space left on device")

    options = ["--model", str(tmp_path / "model"), "--prompt-type", "only_pos", "--steps", "1", "--output", str(out)]
    monkeypatch.setattr(os, "fsync", full)
    assert main(["infer", *options, "--prompt", "a", "--prompt", "b", "--batch-size", "1"]) == 1
    assert all(path.stat().st_size > 50 for path in out.iterdir()) and len(list(out.iterdir())) <= 1


def test_a_folder_that_cannot_be_written_is_said_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    options = ["--model", "/no/such/folder", "--prompt", "a", "--output", str(tmp_path / "file" / "out")]
    assert main(["infer", "--prompt-type", "only_pos", *options]) == 1
    assert "Could not write" in capsys.readouterr().err


def test_inspect_prints_no_escapes_and_json_that_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = {"a": "\x1b[2J", "b": "\ud800", "c": float("nan")}
    provenance = Provenance("\x9b1m", notes=notes)
    path = NegativeEmbedding(torch.ones(1, 2, 4), provenance=provenance).save(tmp_path / "e.safetensors")
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "\\u001b[2J" in printed and "\\ud800" in printed and "\\u009b1m" in printed and "\x1b" not in printed
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found["provenance"]["notes"] == {**notes, "c": None}


def test_a_model_with_a_part_missing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = pipeline()
    parts.text_encoder = None
    with pytest.raises(ValueError, match="Got a StableDiffusionPipeline without text_encoder, expected"):
        wrap(parts, "x")
    folder = pipeline_folder(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    options = ["--prompt-type", "only_pos", "--prompt", "a", "--output", str(tmp_path)]
    assert main(["infer", "--model", str(folder), *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("reneg infer: Could not load") and "text_encoder" in said


def test_strength_needs_an_embedding_as_long_as_the_empty_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline_folder(tmp_path / "model")
    short = NegativeEmbedding(torch.ones(1, 3, 32)).save(tmp_path / "short.safetensors")
    options = ["--model", str(tmp_path / "model"), "--prompt", "a", "--steps", "1", "--output", str(tmp_path / "out")]
    assert main(["infer", *options, "--neg-embedding", str(short), "--strength", "0.5"]) == 1
    assert "Got embeddings of 16 and 3 tokens, expected equal lengths" in capsys.readouterr().err
    assert main(["infer", *options, "--neg-embedding", str(short)]) == 0
