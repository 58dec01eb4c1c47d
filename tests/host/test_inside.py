"""Runs the tests of ``inside/`` in ComfyUI's own Python and reports each failure here."""

import os
import subprocess
from pathlib import Path

import hosting
import pytest

INSIDE = Path(__file__).with_name("inside")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NOTHING = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize("file", sorted(path.name for path in INSIDE.glob("test_*.py")))
def test_inside_the_host(file: str, host: tuple[Path, str], tmp_path: Path) -> None:
    folder, python = host
    base = hosting.base_directory(tmp_path / "base", hosting.models_folder(folder, python))
    if file == "test_published.py":
        hosting.copy_published(SHARED, base)
    environment = {
        **hosting.environment(python, base),
        "COMFYUI_PATH": str(folder),
        "RENEG_TEST_BASE": str(base),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
    }
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-c",
        os.devnull,
        "--rootdir",
        str(INSIDE),
        "--confcutdir",
        str(INSIDE),
        "-p",
        "no:cacheprovider",
        "--import-mode=importlib",
        "--tb=short",
        str(INSIDE / file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode == NOTHING:
        pytest.skip(f"{file}: nothing of it runs on {folder.name}: {done.stdout.strip().splitlines()[-1]}")
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert "passed" in done.stdout
