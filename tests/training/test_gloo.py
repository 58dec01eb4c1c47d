"""Two real processes over gloo: the same tables as one, and one end for both (as threads: test_workers.py)."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], int, str]]:
    """Of each process what it found, its exit code, and what it said."""
    folder = tmp_path_factory.mktemp("gloo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(TESTS.parent), str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(TESTS / "gloo.py"), str(folder)]
    started = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    said = [one.communicate(timeout=500)[1] for one in started]
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in "01"]
    return [(one, process.returncode, text) for one, process, text in zip(found, started, said, strict=True)]


def test_they_are_two(both: list) -> None:
    assert [(found["rank"], found["count"]) for found, _, _ in both] == [(0, 2), (1, 2)]


def test_a_comparison_is_the_same_in_each(both: list) -> None:
    for found, _, _ in both:
        alone, shared = found["comparison"]
        assert shared == alone and len(alone[1]) == 2


def test_an_adaptation_is_the_same_in_each_and_its_pictures_are_the_firsts(both: list) -> None:
    for found, _, _ in both:
        alone, shared = found["adaptation"]
        assert shared[:3] == alone[:3] and shared[3] == (0 if found["rank"] else alone[3])


def test_a_failure_ends_both_and_is_said_once(both: list) -> None:
    assert [found["failed"] for found, _, _ in both] == [1, 1]
    assert sum(text.count("item 3 is none") for _, _, text in both) == 1


def test_who_is_left_by_a_killed_process_ends_too(both: list) -> None:
    (first, code, said), (second, killed, _) = both
    assert first["left"] == 1 and "left" not in second and (code, killed) == (0, -9)
    assert said.count("another of the 2 processes has ended before the work was done") == 1
