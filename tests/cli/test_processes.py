"""What needs real processes: signals, kill -9, several workers."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reneg_core import load_embedding

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
"""Accelerate's own launcher starts a single process on a CPU, whatever number it is told."""
SETTINGS = [
    "steps=8", "batch_size=4", "micro_batch=2", "sampling_steps=3", "window=[0,3]", "validation_pairs=4",
    "validate_every=4", "checkpoint_every=2", "guidance_scale=4", "device=cpu",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(folder: Path, *options: str, launcher: tuple[str, ...] = ("-m",)) -> subprocess.Popen:
    command = [sys.executable, *launcher, "reneg_core", "train", *SETTINGS, f"output={folder}", *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    return output


def wait_for_step(process: subprocess.Popen, folder: Path, step: int) -> None:
    metrics = folder / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and f'"event": "step", "step": {step},' in metrics.read_text():
            return
        if process.poll() is not None:
            pytest.fail(f"the training ended early:\n{process.stdout.read()}")
        time.sleep(0.02)
    pytest.fail("the training did not get that far")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    process = train(folder)
    assert "done after 8 steps" in finish(process)
    return folder


def test_kill_9_then_resume_gives_the_same_embedding(tmp_path: Path, unbroken: Path) -> None:
    process = train(tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 5)
    process.kill()
    process.communicate()
    assert not (tmp_path / "run" / "negative.safetensors").exists()
    assert "done after 8 steps" in finish(train(tmp_path / "run", "--resume"))
    got, expected = (load_embedding(run / "negative.safetensors") for run in (tmp_path / "run", unbroken))
    assert torch.equal(got.tokens, expected.tokens)


def test_sigterm_saves_the_best_and_prints_how_to_resume(tmp_path: Path, unbroken: Path) -> None:
    process = train(tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    assert process.returncode == 130
    assert "-m reneg_core train --config" in output and output.rstrip().endswith("--resume")
    assert (tmp_path / "run" / "negative.safetensors").exists()
    assert "done after 8 steps" in finish(train(tmp_path / "run", "--resume"))
    got, expected = (load_embedding(run / "negative.safetensors") for run in (tmp_path / "run", unbroken))
    assert torch.equal(got.tokens, expected.tokens)


def test_two_processes_give_the_same_embedding_as_one(tmp_path: Path, unbroken: Path) -> None:
    process = train(tmp_path / "run", launcher=(*LAUNCHER, "-m"))
    output = finish(process)
    assert process.returncode == 0 and output.count("2 processes share the work") == 1, output
    got, expected = (load_embedding(run / "negative.safetensors") for run in (tmp_path / "run", unbroken))
    assert (got.tokens - expected.tokens).abs().max() <= 1e-4
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8 + 3
