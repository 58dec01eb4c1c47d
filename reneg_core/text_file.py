"""Text that others wrote: read from files whatever their encoding, checked, and made safe to print."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20
MAX_PROMPT = 100_000
"""Characters of one prompt."""
MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, marks that turn the writing direction, and lone surrogates."""


def printable(text: str) -> str:
    """``text`` that a terminal shows as it is: what would move the cursor or turn the line is written as \\u001b.

    Inside of JSON strings such an escape means the same character, so JSON stays JSON.
    """
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def read_text(path: str | Path, most: int = MAX_BYTES) -> str:
    """A text file in UTF-8, or in UTF-16 with a byte order mark; the mark is left out.

    Errors: OSError; ValueError naming the file for more than ``most`` bytes and for what is no text.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"Got {path} of {size:,} bytes, expected text of at most {most:,}. Try splitting it.")
    data = path.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Got {path}, which is no text in UTF-8 ({error.reason} at byte {error.start}). Try saving it as UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(f"Got {path}, which holds zero bytes, expected text. Try saving it as UTF-8.")
    return text


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Errors: as :func:`read_text`; ValueError for what is no JSON or nested too deeply."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"Got {path}, which is no valid JSON ({error}). Try an editor that checks JSON.") from error
    except RecursionError as error:
        raise ValueError(f"Got {path}, in which values are nested too deeply, expected a few levels.") from error


def read_prompt_lines(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty, without spaces at their ends. Errors: as :func:`checked_prompts`."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return checked_prompts([line for line in lines if line], path)


def read_prompt_entries(path: str | Path) -> list[str]:
    """Prompts of a JSON list of texts, or of objects with a ``prompt`` or a ``text``, as ImageReward's lists are.

    Errors: as :func:`checked_prompts`, and ValueError for JSON of another form.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"Got {path} with {type(entries).__name__}, expected a JSON list of prompts.")
    texts = [one.get("prompt", one.get("text")) if isinstance(one, dict) else one for one in entries]
    return [text.strip() for text in checked_prompts(texts, path) if text.strip()]


def checked_prompts(prompts: Sequence[Any], where: object) -> list[str]:
    """``prompts`` as they are; ValueError naming ``where`` and the first that is no text that a tokenizer can read."""
    for number, prompt in enumerate(prompts, 1):
        if fault := prompt_fault(prompt):
            raise ValueError(f"Got {fault} as prompt {number} of {where}, expected text.")
    return list(prompts)


def prompt_fault(prompt: Any) -> str:
    """What is wrong with a prompt, in words; empty for nothing."""
    if not isinstance(prompt, str):
        return f"{prompt!r:.60}" if prompt is None or isinstance(prompt, int | float) else type(prompt).__name__
    if re.search("[\ud800-\udfff]", prompt):
        return "bytes that are no UTF-8"
    return f"{len(prompt):,} characters (at most {MAX_PROMPT:,})" if len(prompt) > MAX_PROMPT else ""
