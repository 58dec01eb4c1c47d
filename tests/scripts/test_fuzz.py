"""The fuzzer on a few files of each kind, and what it must notice."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("needs Linux", allow_module_level=True)

fuzz = pytest.importorskip("fuzz")


@pytest.mark.parametrize(("name", "count"), [("embeddings", 120), ("configs", 60)])
def test_every_file_is_read_or_refused_as_documented(name: str, count: int) -> None:
    result = fuzz.report(name, count, 1, list(fuzz.run(fuzz.TARGETS[name], count, 1, None)), 0)
    assert result["what"] == {} and result["read"] + result["refused"] == count
    assert result["read"] >= 3, "files that are sound are among them"


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    def made(folder: Path) -> list[bytes]:
        folder.mkdir()
        make = fuzz.TARGETS["configs"].maker(folder)
        return [make(random.Random(f"x/{i}"))[1].read_bytes() for i in range(20)]

    assert made(tmp_path / "a") == made(tmp_path / "b")


def busy(path: Path) -> None:
    clock = time.process_time()
    while time.process_time() - clock < 1.5:
        pass


def large(path: Path) -> None:
    _ = b"x" * (200 << 20)


def runs_code(path: Path) -> None:
    os.system("true")


def dies(path: Path) -> None:
    os.kill(os.getpid(), 9)


def wrong(path: Path) -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        (busy, "processor time"),
        (large, " MiB"),
        (runs_code, "ran code"),
        (dies, "ended with -9"),
        (wrong, "KeyError"),
    ],
)
def test_what_is_wrong_is_noticed(tmp_path: Path, read: object, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fuzz.Reader(lambda path: None, ()) as reader:
        idle = reader.ask(tmp_path / "x").mebibytes
    monkeypatch.setattr(fuzz, "SECONDS", 1.0)
    monkeypatch.setattr(fuzz, "MEBIBYTES", idle + 100)
    with fuzz.Reader(read, (ValueError,)) as reader:
        assert fault in reader.ask(tmp_path / "x").fault


def test_one_process_reads_on_and_another_follows_a_dead_one(tmp_path: Path) -> None:
    def read(path: Path) -> None:
        if path.name == "dies":
            os._exit(3)
        if path.name == "large":
            _ = b"x" * (300 << 20)
        raise ValueError(f"{path.name} {os.getpid()}")

    with fuzz.Reader(read, (ValueError,)) as reader:
        found = [reader.ask(tmp_path / name) for name in ("a", "large", "b", "dies", "c")]
    assert [outcome.verdict for outcome in found] == ["refused", "refused", "refused", "killed", "refused"]
    assert [outcome.fault for outcome in found if outcome.verdict == "refused"] == [""] * 4
    assert found[0].message.split()[1] == found[2].message.split()[1] != found[4].message.split()[1]
    assert found[1].mebibytes > found[2].mebibytes + 250, "each file has a peak of its own"


def test_the_command_says_what_it_found() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPTS / "fuzz.py"), "configs", "--count", "4"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0 and '"count": 4' in found.stdout and '"faults": 0' in found.stdout
