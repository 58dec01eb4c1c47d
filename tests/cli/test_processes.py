"""What needs real processes: signals, kill -9, several workers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reneg_core import NegativeEmbedding, load_embedding
from reneg_core.backends import load_model
from reneg_core.embedding import Provenance
from reneg_core.sampling import Sampling

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


FAILING = """
import os
from reneg_core.rewards import Reward

SENT = []

class Judge(Reward):
    name = "judge"

    def _score(self, images, prompts):
        if "a yellow" in " ".join(prompts):
            {action}
        return images.mean((1, 2, 3))
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An embedding for the tiny world and five prompts, the last of which the second process has."""
    folder, model = tmp_path_factory.mktemp("pairs"), load_model("tiny", device="cpu")
    provenance = Provenance(sampling=Sampling(steps=2, spacing="trailing").at_scale(4).to_mapping())
    start = NegativeEmbedding(model.encode(["blurry"]).tokens, model.family, provenance=provenance)
    start.save(folder / "start.safetensors")
    colours = ("red", "green", "blue", "white", "yellow")
    (folder / "prompts.txt").write_text("".join(f"a {colour} circle on a black background\n" for colour in colours))
    return ["--embedding", str(folder / "start.safetensors"), "--prompts", str(folder / "prompts.txt")]


def command(name: str, *options: str, shared: bool) -> subprocess.Popen:
    launcher = (*LAUNCHER, "-m") if shared else ("-m",)
    words = [sys.executable, *launcher, "reneg_core", name, "--device", "cpu", *options]
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


EVALUATE = ["evaluate", "--modes", "none", "embedding", "adapted", "--noises", "1", "--batch-size", "2"]
ADAPT = ["adapt", "--set", "micro_batch=2", "--set", "steps=2", "--set", "learning_rate=0.05"]


@pytest.mark.parametrize("words", [EVALUATE, ADAPT], ids=["evaluate", "adapt"])
def test_two_processes_write_the_same_files_as_one(tmp_path: Path, pairs: list[str], words: list[str]) -> None:
    outputs = [finish(command(*words, *pairs, "--output", str(tmp_path / name), shared=name == "two"))
               for name in ("one", "two")]  # fmt: skip
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == (6 if words is EVALUATE else 11), outputs[1]
    assert [name for name in one if one[name] != two[name]] == []
    assert [output.count("2 processes share the work") for output in outputs] == [0, 1]
    said = [[line for line in output.splitlines() if "embedding" in line or "->" in line] for output in outputs]
    assert said[0] and [line.replace("/two", "/one") for line in said[1]] == said[0], "said once"


NONE = [*EVALUATE[:2], "none", *EVALUATE[5:]]


@pytest.mark.parametrize(
    ("words", "action", "sentence"),
    [
        (ADAPT, "raise TypeError('no such colour')", "no such colour"),
        (NONE, "os.kill(os.getpid(), 9)", "another of the 2 processes has ended before the work was done"),
        (NONE, "os.kill(os.getpid(), 15)", "stopped by SIGTERM before it was done"),
    ],
    ids=["fails", "is killed", "is stopped"],
)
def test_a_process_that_ends_ends_the_other(
    tmp_path: Path, pairs: list[str], words: list[str], action: str, sentence: str
) -> None:
    """In the last round, which the second has for itself; all end, one sentence says why, nothing is written."""
    reward = tmp_path / "reward.py"
    reward.write_text(FAILING.format(action=action))
    out = tmp_path / "out"
    process = command(*words, *pairs, "--reward", str(reward), "--output", str(out), shared=True)
    output = finish(process)
    assert process.returncode != 0 and output.count(sentence) == 1, output
    assert "unexpected" not in output and not contents(out)


def test_one_process_asked_to_stop_stops_an_adaptation_with_the_best_kept(tmp_path: Path, pairs: list[str]) -> None:
    reward = tmp_path / "reward.py"
    once = FAILING.format(action="SENT or SENT.append(os.kill(os.getpid(), 15))")
    reward.write_text(once.replace("a yellow", "a blue"))
    out = tmp_path / "out"
    process = command(*ADAPT, *pairs, "--reward", str(reward), "--output", str(out), shared=True)
    output = finish(process)
    rows = json.loads((out / "adapted.json").read_text())
    assert process.returncode == 0 and len(contents(out)) == 11, output
    assert [row["step"] for row in rows[2:]] == [0, 0, 0] and all(row["reward"] >= row["start"] for row in rows)


LEAVING = """
from pathlib import Path
from reneg_core.training.workers import processes

with processes("cpu") as workers:
    import diffusers.models.transformers.transformer_flux
    workers.gather(workers.rank)
print([name for name in (task.read_text() for task in Path("/proc/self/task").glob("*/comm")) if "gloo" in name])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not name threads")
def test_nothing_of_the_group_outlives_it(tmp_path: Path) -> None:
    """A thread that lets go of Python's objects while Python ends aborts the process, after all its work is done."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    command = [sys.executable, *LAUNCHER, str(tmp_path / "leaving.py")]
    done = subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("[]") == 2, done.stdout


def test_a_mistake_is_said_once(tmp_path: Path, pairs: list[str]) -> None:
    process = command("evaluate", *pairs, "--baseline", "tex", "--output", str(tmp_path / "out"), shared=True)
    output = finish(process)
    assert process.returncode != 0 and output.count("Got the baseline 'tex', expected one of") == 1, output
