"""Every end of a command: the exit code, one sentence on stderr, and the traceback in a file where there is a fault."""

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reneg_core import __version__
from reneg_core.cli import main
from reneg_core.failures import DONE, REFUSED, STOPPED, UNEXPECTED, EndedElsewhere, explained

ROOT = Path(__file__).resolve().parents[2]


def raising(error: BaseException) -> object:
    def work() -> int:
        raise error

    return work


def test_an_unexpected_error_leaves_its_traceback_in_the_file_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert explained("train", raising(KeyError("state"))) == UNEXPECTED == 3
    said = capsys.readouterr().err
    assert said.startswith("reneg train: unexpected KeyError ('state'). ") and said.count("\n") == 1
    log = Path(re.search(r"raceback is in (\S+);", said)[1])
    assert log.parent == tmp_path and "in work" in log.read_text() and "KeyError: 'state'" in log.read_text()


def test_a_librarys_value_error_is_a_fault_and_ours_is_an_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    from reneg_core.sampling import Sampling

    assert explained("x", lambda: Sampling(steps=0)) == REFUSED == 1
    assert capsys.readouterr().err == "reneg x: Got 0 sampling steps, expected a whole number of 1 or more.\n"
    assert explained("x", lambda: torch.ones(2).reshape(3)) == UNEXPECTED
    assert "unexpected RuntimeError" in capsys.readouterr().err
    assert explained("x", lambda: re.compile("\ud800").nothing) == UNEXPECTED
    assert explained("x", raising(ValueError("not ours"))) == UNEXPECTED


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied. Try another place, or change its"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "a: No space left on device. Try another place"),
        (OSError(errno.EISDIR, "Is a directory", "a"), "a: Is a directory. Expected a file"),
        (FileNotFoundError("No model at x. Check it."), "No model at x. Check it."),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "there is too little memory (CUDA out of memory. Tried"),
        (MemoryError(), "there is too little memory"),
        (ModuleNotFoundError("No module named 'tqdm'", name="tqdm"), "the package tqdm is missing. Try: pip install"),
        (ImportError("x needs y. Try: pip install y."), "x needs y. Try: pip install y."),
    ],
)
def test_errors_that_explain_themselves(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained("infer", raising(error)) == REFUSED
    assert f"reneg infer: {words}" in capsys.readouterr().err


def test_escapes_and_broken_names_are_not_printed_raw(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained("inspect", raising(FileNotFoundError("No file \x1b[2J\udcff."))) == REFUSED
    assert capsys.readouterr().err == "reneg inspect: No file \\u001b[2J\\udcff.\n"


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """As a shell starts a command; one that is begun in the background ignores some signals."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("in_the_foreground")
def test_stopping_says_so_and_restores_the_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        assert explained("train", lambda number=number: (os.kill(os.getpid(), number), time.sleep(5))) == STOPPED == 130
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        assert f"reneg train: stopped by {name} before it was done." in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_what_another_process_has_said_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert explained("adapt", raising(EndedElsewhere())) == REFUSED and capsys.readouterr().err == ""
    assert explained("adapt", raising(EndedElsewhere("another one has gone."))) == REFUSED
    assert capsys.readouterr().err == "reneg adapt: another one has gone.\n"


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert explained("train", lambda: os.kill(os.getpid(), signal.SIGHUP) or DONE) == DONE
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_traceback_is_shown_to_those_who_ask(tmp_path: Path) -> None:
    for arguments in (["--traceback", "inspect", str(tmp_path)], ["inspect", str(tmp_path), "--traceback"]):
        with pytest.raises(ValueError, match="Got the directory"):
            main(arguments)


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "reneg_core", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=300, **options)


def test_the_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", __version__)
    text = (ROOT / "pyproject.toml").read_text()
    assert 'attr = "reneg_core.__version__"' in text and not re.search(r'^version = "', text, re.MULTILINE)
    assert f"## {__version__.partition('.dev')[0]}" in (ROOT / "CHANGELOG.md").read_text()


def test_real_processes(tmp_path: Path) -> None:
    """The version; a file name that is no UTF-8; a reader that goes away; a full disk behind stdout."""
    found = run("--version")
    assert (found.returncode, found.stdout.decode().strip()) == (0, f"reneg {__version__}")
    found = run("inspect", os.fsdecode(b"\xff.pt"))
    assert found.returncode == 1 and found.stderr.startswith(
        b"reneg inspect: No embedding file at \\udcff.pt. Check the"
    )
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            code = subprocess.run(
                [sys.executable, "-m", "reneg_core", "rewards"], env=environment, stdout=full, stderr=subprocess.PIPE
            )
        assert code.returncode == 1 and b"No space left on device" in code.stderr and b"Traceback" not in code.stderr
