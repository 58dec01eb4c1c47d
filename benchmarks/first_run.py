"""A newcomer's first minutes: a host without any model, the pack installed as the README says, the first template
opened from the page's list, Run; seconds until the node says its first word, shows its first picture, and all is done.

    python benchmarks/first_run.py [--screenshots FOLDER]

On every ComfyUI that the host tests find (COMFYUI_PATH), with classic nodes and, where its page has them, Nodes 2.0.
The host's environment is left as it is: the requirements go into one of their own on top of it. Needs chromium and
playwright. Writes benchmarks/results/first_run.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "host"), str(ROOT / "tests" / "browser"), str(ROOT)]

import hosting  # noqa: E402
from measure import publish, table  # noqa: E402
from page import FIRST_WITH_NODES_2, ComfyPage, open_page  # noqa: E402

TEMPLATE = "0_learn_a_negative_in_two_minutes"
MOMENTS = {"word": "first word", "picture": "first picture", "end": "the end"}
LISTEN = """
window.__first = {};
const now = name => { window.__first[name] ??= performance.now(); };
app.api.addEventListener("progress_text", () => now("word"));
for (const name of ["b_preview_with_metadata", "b_preview"]) app.api.addEventListener(name, () => now("picture"));
app.api.addEventListener("execution_success", () => now("end"));
app.api.addEventListener("execution_error", event => { window.__failed = event.detail.exception_message; });
document.querySelector('[data-testid="queue-button"]').addEventListener("click", () => now("run"), true);
"""


def installed(python: str, folder: Path) -> tuple[str, float]:
    """A Python with all that the host's has and the pack's requirements, as ``pip install -r`` puts them there, and the
    seconds that this took."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.check_output([python, "-c", ask], text=True).strip()
    subprocess.run([python, "-m", "venv", folder], check=True)
    made = str(folder / "bin" / "python")
    here = subprocess.check_output([made, "-c", ask], text=True).strip()
    (Path(here) / "host.pth").write_text(own + "\n")
    began = time.perf_counter()
    command = [made, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", ROOT / "requirements.txt"]
    subprocess.run(command, check=True)
    return made, time.perf_counter() - began


def open_template(opened: ComfyPage) -> None:
    """As a person does: Browse Templates, the pack's name, the first card."""
    opened.page.keyboard.press("Escape")
    opened.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = opened.page.get_by_role("dialog")
    dialog.get_by_text("reneg", exact=True).first.click(timeout=60_000)
    dialog.get_by_text(TEMPLATE).first.click(timeout=60_000)
    opened.page.wait_for_function("app.graph._nodes.some(n => n.type == 'ReNegTrain')", timeout=60_000)
    opened.page.wait_for_timeout(1500)


def followed(opened: ComfyPage, pictures: Path | None, name: str) -> dict[str, float]:
    """Seconds from the press of Run to each of ``MOMENTS``."""
    opened.page.evaluate(LISTEN)
    opened.page.locator('[data-testid="queue-button"]').first.click()
    for moment in MOMENTS:
        opened.page.wait_for_function(f"window.__first.{moment} || window.__failed", timeout=1_200_000)
        failed = opened.page.evaluate("window.__failed")
        if failed:
            raise RuntimeError(f"The first template failed on {name}: {failed}")
        if moment == "end":
            opened.wait_shown("PreviewImage", 3)
            opened.page.wait_for_timeout(1500)
        if pictures:
            opened.page.screenshot(path=pictures / f"first-run-{name}-{moment}.png")
    first = opened.page.evaluate("window.__first")
    return {moment: round((first[moment] - first["run"]) / 1000, 1) for moment in MOMENTS}


def run(host: Path, python: str, pictures: Path | None, *, nodes_2: bool) -> dict[str, Any] | None:
    """Everything once, in folders of its own; None where the page has no Nodes 2.0."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        made, seconds = installed(python, Path(folder) / "venv")
        base = Path(folder) / "base"
        (base / "custom_nodes").mkdir(parents=True)
        (base / "custom_nodes" / "reneg").symlink_to(ROOT, target_is_directory=True)
        began = time.perf_counter()
        server = hosting.start_server(host, made, base, lend=False)
        started = time.perf_counter() - began
        try:
            with open_page(server.url, nodes_2=nodes_2) as opened:
                if nodes_2 and opened.version() < FIRST_WITH_NODES_2:
                    return None
                page = ".".join(map(str, opened.version()))
                open_template(opened)
                name = f"{hosting.version_of(host)}-{opened.drawing}"
                found = followed(opened, pictures, name)
        finally:
            server.stop()
    told = {"comfyui": hosting.version_of(host), "page": page, "nodes": opened.drawing}
    return told | {"install": round(seconds, 1), "start": round(started, 1)} | found


def main() -> None:
    """Every host and way of drawing in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="keep a picture of each moment there")
    pictures = parser.parse_args().screenshots
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    hosts = [(host, hosting.find_python(host)) for host in hosting.find_hosts()]
    if not hosts or not all(python for _, python in hosts):
        sys.exit(hosting.MISSING.replace("the host tests are skipped", "nothing is measured"))
    runs = [run(host, python, pictures, nodes_2=kind) for host, python in hosts for kind in (False, True)]
    found = [one for one in runs if one]
    rows = [[f"{one['comfyui']}, {one['nodes']}", *(one[m] for m in ("install", "start", *MOMENTS))] for one in found]
    print(table(rows, ("host", "install s", "start s", *(f"{text} s" for text in MOMENTS.values()))))
    publish("first_run", {"template": TEMPLATE, "runs": found})


if __name__ == "__main__":
    main()
