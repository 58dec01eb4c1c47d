"""``make gpu`` on small models and the CPU: the script works, and computes the memory that it measures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
        env={"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_every_stage_is_measured_beside_what_is_computed() -> None:
    done = run("sd15", "--small", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["sd15"]["float32"]
    ours = ["ours", "ours, recomputed", *(f"ours, decoder {name}" for name in ("recomputed", "crop:0.5", "tiny"))]
    assert list(found) == ["rollout step", "plain", *ours]
    for stage in ours:
        assert found[stage]["computed_gib"] == pytest.approx(found[stage]["1"]["peak_gib"], rel=0.3)
        assert found[stage]["2"]["peak_gib"] > found[stage]["1"]["peak_gib"] and found[stage]["2"]["seconds"] > 0


def test_without_a_card_it_says_so() -> None:
    done = run()
    assert done.returncode == 1 and "torch finds no CUDA device here" in done.stdout
