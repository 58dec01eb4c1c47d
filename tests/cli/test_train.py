"""``reneg train`` around a training: resuming from anywhere, extending, dry runs, signals, previews."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from reneg_core import NegativeEmbedding
from reneg_core.cli import main
from reneg_core.commands.train import resume_command
from reneg_core.training.run_config import RunConfig
from reneg_core.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    "steps=2", "batch_size=2", "micro_batch=2", "sampling.steps=2", "window=[0,2]", "validation_pairs=2",
    "validate_every=1", "checkpoint_every=1", "sampling.guidance_scale=4", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps; tests copy it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *QUICK, f"output={folder}"]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_resuming_without_a_run_is_an_error_before_anything_is_loaded(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reneg_core.commands.train.prepare", lambda *_: pytest.fail("loaded"))
    assert main(["train", *QUICK, f"output={tmp_path}/none", "--resume"]) == 1
    assert f"There is nothing to resume in {tmp_path}/none: it holds no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_moved_run_is_extended_from_another_folder(
    run: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration still names the place where the run was; the folder that the file lies in is meant."""
    moved = run.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "moved/config.yaml", "--resume", "steps=3"]) == 0
    streams = capsys.readouterr()
    assert "steps: 2 before, 3 from step 2 on. The learning rate goes on as in a run of 3 steps" in streams.err
    assert "done after 3 steps" in streams.out and not run.exists()
    settings = yaml.safe_load((moved / "config.yaml").read_text())
    assert settings["steps"] == 3 and settings["output"] == str(moved)


def test_a_refused_resume_leaves_the_configuration(run: Path, capsys) -> None:
    before = (run / "config.yaml").read_bytes()
    assert main(["train", "--config", str(run / "config.yaml"), "--resume", f"output={run}", "batch_size=3"]) == 1
    assert "batch_size: the run was started with 2, now it is 3" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_a_configuration_means_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p.txt", "start.safetensors", "mine.py", "ugly", "tiny", "hpsv2.1"):
        Path(name).write_text("x")
    config = RunConfig(prompts="p.txt", init="start.safetensors", reward="mine.py:Mine", output="runs/a").anchored()
    assert (config.prompts, config.init) == (f"{tmp_path}/p.txt", f"{tmp_path}/start.safetensors")
    assert (config.reward, config.output) == (f"{tmp_path}/mine.py:Mine", f"{tmp_path}/runs/a")
    assert (config.model, config.anchored()) == ("tiny", config)
    words = RunConfig(init="ugly", reward="hpsv2.1", watch="tiny", prompts="absent.txt").anchored()
    assert (words.init, words.reward, words.watch, words.prompts) == ("ugly", "hpsv2.1", "tiny", "absent.txt")


def test_the_printed_command_needs_no_folder_and_no_environment(run: Path) -> None:
    command = shlex.split(resume_command(run))
    assert command[:2] == ["env", f"PYTHONPATH={ROOT}"] and Path(command[2]).is_absolute()
    done = subprocess.run(command, cwd="/", env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500)
    assert "done after 2 steps" in done.stdout, done.stderr


def test_an_installed_package_needs_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert resume_command(Path("/a b")) == (
        f"{sys.executable} -m reneg_core train --config '/a b/config.yaml' --resume"
    )


def test_a_second_training_in_the_folder_is_refused_before_anything_is_loaded(
    run: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reneg_core.commands.train.prepare", lambda *_: pytest.fail("loaded"))
    with RunFolder(run).locked():
        assert main(["train", "--config", str(run / "config.yaml"), "--resume"]) == 1
    assert f"Another process is training in {run}" in capsys.readouterr().err


def test_a_dry_run_finds_what_a_run_would_stumble_over(tmp_path: Path, capsys) -> None:
    NegativeEmbedding(torch.ones(1, 4, 8)).save(tmp_path / "narrow.safetensors")
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "flat.py").write_text(
        "from reneg_core.rewards import Reward\nclass Flat(Reward):\n    name = 'flat'\n"
        "    def _score(self, images, prompts):\n        return images.detach().mean((1, 2, 3))\n"
    )
    for setting, words in (
        ("init=absent.safetensors", "No embedding file at absent.safetensors"),
        (f"init={tmp_path}/narrow.safetensors", "Got an embedding for the text encoder width-8"),
        (f"reward={tmp_path}/flat.py", "reward 'flat' carries no gradient"),
        (f"output={tmp_path}/taken/run", "Could not write"),
    ):
        assert main(["train", *QUICK, f"output={tmp_path}/run", setting, "--dry-run"]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_it_rests_on(tmp_path: Path, capsys) -> None:
    assert main(["train", *QUICK, f"output={tmp_path}/run", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"about [\d.]+ s a step and [\d.]+ s a validation, \d+ s in all without loading", printed)
    assert re.search(r"mean of \d parts of first steps and of \d of a validation", printed)
    assert re.search(
        r"[\d,]+ MiB computed for micro_batch \d+; what fits a card:\n"
        r" +decoder=full: micro_batch at most 8 GB \d+, .*\n"
        r" +decoder=recomputed: micro_batch at most .*\n +checkpointing=true: micro_b",
        printed,
    )
    assert re.search(r"checkpointing=true: micro_batch at most 8 GB \d+, 12 GB \d+, 16 GB \d+, 24 GB \d+\n", printed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked and killed")
def test_a_small_kill_campaign(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "kill_campaign.py"), "--kills", "4", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and (found["kills"], found["fault"]) == (4, ""), done.stderr
