"""Downloads that go on where they were broken off, and are checked before they take a file's name."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from hashlib import file_digest
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

CHUNK = 1 << 20
TIMEOUT = 60
DIGEST_HEADER = "X-Linked-ETag"
"""How the Hugging Face hub publishes the SHA-256 of a large file, beside its redirection."""
Told = Callable[[str, int, int], Any]


class _Noting(HTTPRedirectHandler):
    """Follows redirections and keeps the digest that one of them publishes."""

    digest = ""

    def redirect_request(
        self, request: Request, answer: Any, code: int, message: str, headers: HTTPMessage, url: str
    ) -> Request | None:
        self.digest = _digest_in(headers) or self.digest
        return super().redirect_request(request, answer, code, message, headers, url)


def fetch(url: str, path: Path, *, sha256: str = "", told: Told | None = None) -> str:
    """Download ``url`` to ``path``; what a broken download left in ``path``.part is kept and gone on from.

    sha256: the published digest, if it is known; told: called with (name, bytes so far, bytes in all or 0), and may
    raise to break off. Returns the digest that the file was checked against, "" where none is published.
    Errors: OSError naming the address where it does not answer, the file is short or there is no room; OSError for
    another digest, after which the part is removed.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    noting = _Noting()
    done = part.stat().st_size if part.is_file() else 0
    try:
        with _opened(build_opener(noting), url, done) as answer:
            total = _received(answer, part, path.name, told)
            published = sha256 or noting.digest or _digest_in(answer.headers)
    except (HTTPError, URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise OSError(
            f"Could not download {url} ({type(error).__name__}: {str(error)[:120]}). What came so far is kept: try "
            f"again, or put the file at {path} yourself."
        ) from error
    if total and part.stat().st_size != total:
        raise OSError(
            f"{path.name} came to {part.stat().st_size} of {total} bytes from {url}. What came so far is kept: try "
            "again."
        )
    if published:
        _check(part, published, url)
    os.replace(part, path)
    return published


def _opened(opener: Any, url: str, done: int) -> HTTPResponse:
    """The answer from byte ``done`` on, or from the start where the server does not do that."""
    headers = {"User-Agent": "reneg"}
    try:
        return opener.open(
            Request(url, headers=headers | ({"Range": f"bytes={done}-"} if done else {})), timeout=TIMEOUT
        )
    except HTTPError as error:
        if not done or error.code != 416:  # nothing after what is there: from the start
            raise
    return opener.open(Request(url, headers=headers), timeout=TIMEOUT)


def _received(answer: HTTPResponse, part: Path, name: str, told: Told | None) -> int:
    """Write the body behind what is there, or over it; the whole file's bytes, 0 where the server does not say."""
    goes_on = answer.status == 206
    done = part.stat().st_size if goes_on else 0
    length = answer.headers.get("Content-Length")
    total = done + int(length) if length else 0
    free = shutil.disk_usage(part.parent).free
    if total - done > free:
        reason = f"{(total - done) / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} are free"
        raise OSError(errno.ENOSPC, f"Too little room for {name} ({reason})", str(part.parent))
    with part.open("ab" if goes_on else "wb") as file:
        while chunk := answer.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            if told:
                told(name, done, total)
    return total


def _check(part: Path, published: str, url: str) -> None:
    with part.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    if found != published:
        part.unlink()
        raise OSError(f"{url} gave a file whose SHA-256 is {found}, expected {published}. It was removed: try again.")


def _digest_in(headers: HTTPMessage) -> str:
    text = headers.get(DIGEST_HEADER, "").strip('"')
    return text if re.fullmatch("[0-9a-f]{64}", text) else ""
