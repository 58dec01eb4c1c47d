"""Every bad input ends with one sentence that says what was got and what to do, the right exit code, and no traceback.

The table is bad_inputs.yaml.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_files import bad_files

from reneg_core.cli import main

HELP = (
    "expected",
    "Expected",
    "Try",
    "Check",
    "did you mean",
    "needs",
    "give",
    "put it",
    "name the version",
    "download the",
)
TEXTS = {"surrogate": "\udcff", "hex": "f" * 5000, "digits": "9" * 5000}


def cases() -> Iterator[Any]:
    """(command as words, exit code, words of the message) for each line of the table and each of its values."""
    table = yaml.safe_load((Path(__file__).parent / "bad_inputs.yaml").read_text(encoding="utf-8"))
    for entry in table:
        for value in entry.get("values", [None]):
            words = shlex.split(entry["command"]) + ([] if value is None else [value])
            yield pytest.param(words, entry["code"], entry["words"], id=" ".join(words)[:70])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bad_files(tmp_path_factory.mktemp("bad"))


def test_there_are_many_and_no_two_alike() -> None:
    commands = [tuple(case.values[0]) for case in cases()]
    assert len(set(commands)) == len(commands) >= 250


@pytest.mark.parametrize(("command", "code", "words"), cases())
def test_one_sentence(
    folder: Path, command: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    try:
        found = main([_placed(word, folder) for word in command])
    except SystemExit as end:
        found = end.code
    out, said = capsys.readouterr()
    assert found == code, said
    assert words in said
    assert any(word in said for word in HELP), said
    assert "Traceback" not in said and "\x1b" not in out + said and "ran" not in out.split()
    assert len(said) < 1500
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "something was written"


def _placed(word: str, folder: Path) -> str:
    """``{name}`` as the text of that name, or as the path of that file."""
    return re.sub(r"\{([\w.]+)\}", lambda found: TEXTS.get(found[1]) or str(folder / found[1]), word)
