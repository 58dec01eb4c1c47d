"""Text that others wrote: encodings, limits, and what a terminal gets to see."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reneg_core.text_file import checked_prompts, printable, read_json, read_prompt_lines, read_text

QUICK = settings(
    derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_with_a_mark_are_read_and_the_mark_is_no_text(tmp_path: Path, encoding: str) -> None:
    text = "\ufeff" * encoding.startswith("utf-16-") + "a café\r\n\r\n  猫 \n"
    (tmp_path / "p.txt").write_bytes(text.encode(encoding))
    assert read_prompt_lines(tmp_path / "p.txt") == ["a café", "猫"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a caf\xe9\n", "which is no text in UTF-8 .* at byte 5"),
        (bytes(range(256)), "zero bytes|no text in UTF-8"),
        (b"a\0b", "which holds zero bytes"),
        (b"\xff\xfea", "no text in UTF-8"),
        (b"x" * 100_001, "Got 100,001 characters .* as prompt 1"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "p.txt").write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompt_lines(tmp_path / "p.txt")
    assert str(tmp_path / "p.txt") in str(caught.value)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "p.txt").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(ValueError, match="of 1,099,511,627,776 bytes, expected text of at most 67,108,864"):
        read_text(tmp_path / "p.txt")


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    for text, message in (("{", "no valid JSON"), ("[" * 100_000, "nested too deeply")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_json(path)


@pytest.mark.parametrize("prompt", [7, None, ["a"], {"a": 1}, "a\ud800"])
def test_prompts_that_are_no_text(prompt: object) -> None:
    with pytest.raises(ValueError, match="as prompt 2 of here, expected text"):
        checked_prompts(["fine", prompt], "here")


@QUICK
@given(st.text())
def test_what_is_printed_moves_no_cursor(text: str) -> None:
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u2066" for c in shown)
    shown.encode()
    assert printable(shown) == shown


VALUES = st.recursive(
    st.text() | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@QUICK
@given(VALUES)
def test_printable_json_means_the_same(value: object) -> None:
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value


@QUICK
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)))
def test_prompt_files_give_back_their_lines(tmp_path: Path, prompts: list[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    assert read_prompt_lines(path) == [p.strip() for line in prompts for p in line.splitlines() if p.strip()]
