"""Downloads from a local server: whole, broken off and gone on, redirected, short, and with another digest."""

import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reneg_core import fetching
from reneg_core.fetching import fetch

CONTENT = bytes(range(256)) * 40
DIGEST = sha256(CONTENT).hexdigest()


class Files(BaseHTTPRequestHandler):
    """/file as a server does that knows ranges, /plain as one that does not, /hub redirects as the hub does, /short
    breaks off."""

    def do_GET(self) -> None:
        state, asked = self.server.state, self.headers.get("Range")
        state.asked.append((self.path, asked))
        if self.path == "/hub":
            self.answer(302, b"", Location="/file", **{fetching.DIGEST_HEADER: f'"{state.digest}"'})
        elif self.path == "/absent":
            self.answer(404, b"")
        elif self.path == "/short":
            self.answer(200, CONTENT[:1000], **{"Content-Length": str(len(CONTENT))})
        elif asked and self.path == "/file":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                self.answer(416, b"")
            else:
                self.answer(206, CONTENT[start:])
        else:
            self.answer(200, CONTENT)

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def server() -> Iterator[Any]:
    running = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    running.state = SimpleNamespace(asked=[], digest=DIGEST)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    running.state.url = f"http://127.0.0.1:{running.server_port}"
    yield running.state
    running.shutdown()
    running.server_close()


def test_a_whole_download_is_told_of_and_checked(server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 4096)
    told: list[tuple] = []
    path = tmp_path / "models" / "w.bin"
    assert fetch(f"{server.url}/file", path, sha256=DIGEST, told=lambda *now: told.append(now)) == DIGEST
    assert path.read_bytes() == CONTENT and told == [("w.bin", n, 10240) for n in (4096, 8192, 10240)]
    assert [p.name for p in path.parent.iterdir()] == ["w.bin"]


def test_what_was_broken_off_is_gone_on_from(server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 4096)
    path = tmp_path / "w.bin"

    def stop(name: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/file", path, sha256=DIGEST, told=stop)
    assert not path.exists() and (tmp_path / "w.bin.part").stat().st_size == 4096
    fetch(f"{server.url}/file", path, sha256=DIGEST)
    assert path.read_bytes() == CONTENT and server.asked[-1] == ("/file", "bytes=4096-")


@pytest.mark.parametrize(("place", "left"), [("plain", 4096), ("file", len(CONTENT)), ("file", len(CONTENT) + 5)])
def test_a_part_that_cannot_be_gone_on_from_is_replaced(server, tmp_path: Path, place: str, left: int) -> None:
    (tmp_path / "w.bin.part").write_bytes(b"x" * left)
    fetch(f"{server.url}/{place}", tmp_path / "w.bin", sha256=DIGEST)
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_the_hubs_own_digest_counts(server, tmp_path: Path) -> None:
    assert fetch(f"{server.url}/hub", tmp_path / "w.bin") == DIGEST
    server.digest = "0" * 64
    with pytest.raises(OSError, match=f"SHA-256 is {DIGEST}, expected {'0' * 64}. It was removed"):
        fetch(f"{server.url}/hub", tmp_path / "other.bin")
    assert [p.name for p in tmp_path.iterdir()] == ["w.bin"]


def test_a_part_of_something_else_is_not_taken(server, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(b"x" * 4096)
    with pytest.raises(OSError, match=r"SHA-256 is .* It was removed: try again"):
        fetch(f"{server.url}/file", tmp_path / "w.bin", sha256=DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_come_names_the_address_and_keeps_what_came(server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Could not download .*/absent \(HTTPError.*404.*put the file at .*w\.bin"):
        fetch(f"{server.url}/absent", tmp_path / "w.bin")
    with pytest.raises(OSError, match=r"Could not download http://127\.0\.0\.1:9/x"):
        fetch("http://127.0.0.1:9/x", tmp_path / "w.bin")
    with pytest.raises(OSError, match="What came so far is kept"):
        fetch(f"{server.url}/short", tmp_path / "w.bin")
    assert (tmp_path / "w.bin.part").stat().st_size == 1000 and not (tmp_path / "w.bin").exists()


def test_a_file_for_which_there_is_no_room_is_not_begun(server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"Too little room for w\.bin"):
        fetch(f"{server.url}/file", tmp_path / "w.bin")
