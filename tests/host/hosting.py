"""A ComfyUI for the tests: where it is, which Python runs it, its base folder, and one process of it on the CPU."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACK = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).with_name("stand_ins.py").resolve()
MISSING = (
    "NO COMFYUI FOUND: the host tests are skipped. Set COMFYUI_PATH to one or several checkouts (and COMFYUI_PYTHON to "
    "the Pythons that run them), or put one at ~/comfy/ComfyUI."
)


def listed(variable: str) -> list[str]:
    """What an environment variable names, separated as in PATH."""
    return [part for part in os.environ.get(variable, "").split(os.pathsep) if part]


def is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy_api").is_dir()


def find_hosts() -> list[Path]:
    """Every checkout of COMFYUI_PATH, else the ComfyUI whose custom_nodes this pack lies in, else ~/comfy/ComfyUI.

    Errors: FileNotFoundError for a named folder without a ComfyUI.
    """
    named = [Path(part).expanduser() for part in listed("COMFYUI_PATH")]
    wrong = [str(folder) for folder in named if not is_host(folder)]
    if wrong:
        raise FileNotFoundError(f"COMFYUI_PATH names {', '.join(wrong)}, where there is no ComfyUI 0.3.48 or newer.")
    return named or [*filter(is_host, (PACK.parent.parent, Path.home() / "comfy" / "ComfyUI"))][:1]


def version_of(host: Path) -> str:
    """The checkout's version, for the names of its tests."""
    found = re.search(r'__version__ = "([^"]+)"', (host / "comfyui_version.py").read_text())
    return found[1] if found else host.name


def find_python(host: Path) -> str | None:
    """The Python at the checkout's place in COMFYUI_PYTHON, else a virtual environment in the checkout or beside it
    (named venv with what the checkout is called after "ComfyUI"), else this interpreter if it can."""
    hosts, pythons = find_hosts(), listed("COMFYUI_PYTHON")
    named = pythons[hosts.index(host)] if host in hosts[: len(pythons)] else None
    beside = host.parent / f"venv{host.name.removeprefix('ComfyUI')}"
    folders = [host / ".venv", host / "venv", beside, host.parent / ".venv", host.parent / "venv"]
    found = [folder / name for folder in folders for name in ("bin/python", "Scripts/python.exe")]
    places = [named, *map(str, found), sys.executable]
    wanted = "import torch, torchsde, aiohttp, comfyui_frontend_package"
    return next(
        (
            p
            for p in places
            if p and Path(p).is_file() and subprocess.run([p, "-c", wanted], capture_output=True).returncode == 0
        ),
        None,
    )


_LINES = (PACK / "requirements.txt").read_text().splitlines()
NEEDED = [Requirement(line).name for line in _LINES if line and line[0] != "#"] + [
    "pytest",
    "websocket-client",
    "diffusers",
    "peft",
]
"""What a user installs for the pack, and what the tests use in the host's Python."""


def companions(python: str, folder: Path) -> Path:
    """Links to what the host's Python lacks of ``NEEDED``, with dependencies, from this environment: nothing is
    installed into the host, and nothing that it has is replaced. For its ``PYTHONPATH``; RuntimeError if the two
    Pythons differ."""
    ask = "import sys, importlib.metadata as m; print(sys.version_info[:2], *[d.name for d in m.distributions()])"
    version, _, names = subprocess.check_output([python, "-c", ask], text=True).partition(") ")
    present = {canonicalize_name(name) for name in names.split()}
    lacking = [name for name in _with_dependencies(NEEDED) if name not in present]
    if lacking and f"{version})" != str(sys.version_info[:2]):
        raise RuntimeError(f"{python} lacks {', '.join(lacking)}. Try: {python} -m pip install {' '.join(NEEDED)}")
    folder.mkdir(exist_ok=True)
    for distribution in map(metadata.distribution, lacking):
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    return folder


def _with_dependencies(names: Iterable[str]) -> list[str]:
    found, left = [], [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.append(name)
        wanted = map(Requirement, metadata.distribution(name).requires or ())
        left += [canonicalize_name(r.name) for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def environment(python: str, base: Path) -> dict[str, str]:
    """Environment variables of a process in the host's Python."""
    path = [str(companions(python, base / "companions")), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(path)}


def models_folder(host: Path, python: str) -> Path:
    """The test checkpoints, built once per version of their builder and kept in the temporary folder."""
    builder = Path(__file__).with_name("checkpoints.py")
    key = hashlib.sha256(builder.read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"reneg-host-models-{key}"
    if not (folder / "done").exists():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        subprocess.run([python, str(builder), str(host), str(part)], check=True, capture_output=True)
        (part / "done").touch()
        with contextlib.suppress(OSError):
            part.rename(folder)
    return folder


def base_directory(folder: Path, models: Path) -> Path:
    """A ``--base-directory`` with the test checkpoints and the pack in custom_nodes, installed as users do, beside it
    what stands in for models without a small file."""
    for kind in ("checkpoints", "controlnet", "loras"):
        target = folder / "models" / kind
        target.mkdir(parents=True)
        for file in (models / kind).iterdir():
            (target / file.name).symlink_to(file)
    for name in ("custom_nodes", "input", "output", "user"):
        (folder / name).mkdir()
    (folder / "custom_nodes" / "reneg").symlink_to(PACK, target_is_directory=True)
    (folder / "custom_nodes" / STAND_INS.name).symlink_to(STAND_INS)
    return folder


@dataclass
class Server:
    """A running ComfyUI."""

    url: str
    base: Path
    process: subprocess.Popen
    log: Path

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_server(host: Path, python: str, base: Path, *options: str, lend: bool = True) -> Server:
    """Start ComfyUI on a free port and wait until it answers; RuntimeError with its log otherwise.

    lend: what its Python lacks of ``NEEDED``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = base / f"server-{port}.log"
    command = [
        python,
        "main.py",
        "--cpu",
        "--listen",
        "127.0.0.1",
        "--port",
        str(port),
        "--base-directory",
        str(base),
        "--disable-auto-launch",
        "--database-url",
        f"sqlite:///{base / 'comfyui.db'}",
        *options,
    ]
    variables = {"OMP_NUM_THREADS": "2", **(environment(python, base) if lend else os.environ)}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=host, stdout=file, stderr=subprocess.STDOUT, env=variables)
    server = Server(f"http://127.0.0.1:{port}", base, process, log)
    for _ in range(600):
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{server.url}/system_stats", timeout=2)
            return server
        time.sleep(0.5)
    server.stop()
    raise RuntimeError(f"ComfyUI did not start:\n{log.read_text()[-4000:]}")


def copy_published(data: Path, base: Path) -> None:
    """The published embeddings, where they are at hand, as a user puts them into models/reneg."""
    folder = base / "models" / "reneg"
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted((data / "reneg").glob("*.bin")) if data.is_dir() else []:
        shutil.copy(file, folder / file.name)
