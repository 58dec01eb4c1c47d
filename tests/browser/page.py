"""ComfyUI's own page in headless Chromium."""

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

READY = "window.app?.graph && window.LiteGraph && Object.keys(LiteGraph.registered_node_types).length > 100"
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.1,
}
NODES_2 = "Comfy.VueNodes.Enabled"
FIRST_WITH_NODES_2 = (1, 33)


def chromium() -> str | None:
    """A Chromium or Chrome on this machine."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


class ComfyPage:
    """A page with the errors it reported."""

    def __init__(self, page: Any, url: str, drawing: str = "classic") -> None:
        self.page, self.url, self.drawing, self.errors = page, url, drawing, []
        page.on("pageerror", lambda error: self.errors.append(f"{error.message}\n{error.stack}"))
        page.on("console", self._console)
        page.on("response", self._response)

    def open(self) -> None:
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=180_000)
        self._ready()

    def reload(self) -> None:
        """As a person does it, also while something runs."""
        self.page.reload(wait_until="domcontentloaded", timeout=180_000)
        self._ready()

    def _ready(self) -> None:
        """Wait until the page can be used; errors of its own start are not ours."""
        self.page.wait_for_function(READY, timeout=180_000)
        self.errors = [error for error in self.errors if "/extensions/reneg" in error]

    def load(self, workflow: dict[str, Any], name: str) -> None:
        self.page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [workflow, name])
        self.page.wait_for_timeout(800)
        self.dismiss()

    def dismiss(self) -> None:
        """Close the dialogs, of which a page may show several: models or nodes that are not there, templates."""
        for _ in range(10):
            if not self.page.locator(".p-dialog-mask:visible").count():
                return
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(400)
        raise TimeoutError(self.page.locator(".p-dialog-mask:visible").first.inner_text())

    def version(self) -> tuple[int, ...]:
        """The page's version: major and minor."""
        return tuple(map(int, self.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__").split(".")[:2]))

    def missing(self) -> list[str]:
        """Types of nodes the page does not know. (``has_errors`` says too little: newer pages also set it where a model
        file is missing.)"""
        return self.page.evaluate(
            "app.graph._nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
        )

    def shown(self, kind: str) -> int:
        """How many pictures the nodes of a kind show, on the canvas or in Nodes 2.0's elements."""
        return self.page.evaluate(
            "kind => app.graph._nodes.filter(n => n.type == kind).map(n => Math.max(n.imgs?.length ?? 0,"
            ' document.querySelectorAll(`[data-node-id="${n.id}"] img`).length)).reduce((a, b) => a + b, 0)',
            kind,
        )

    def wait_shown(self, kind: str, least: int = 1) -> None:
        """Wait until the nodes of a kind show so many pictures."""
        for _ in range(300):
            if self.shown(kind) >= least:
                return
            self.page.wait_for_timeout(100)
        raise TimeoutError(f"{kind} shows {self.shown(kind)} pictures, expected at least {least}")

    def alerts(self) -> list[str]:
        """Warnings that the page shows about the workflow; they are closed."""
        texts = self.page.locator(".p-toast-message").all_inner_texts()
        self.page.evaluate("document.querySelectorAll('.p-toast-close-button').forEach(b => b.click())")
        return texts

    def unmark(self) -> None:
        """Take away what marks nodes whose files are not there."""
        self.alerts()
        self.page.add_style_tag(content='[data-testid="error-overlay"] { display: none }')
        self.page.evaluate("app.graph._nodes.forEach(n => { n.has_errors = false }); app.canvas.draw(true, true)")

    def prompt(self) -> dict[str, Any]:
        """What the page would queue: the graph in API format."""
        return self.page.evaluate("app.graphToPrompt().then(p => p.output)")

    def fit(self) -> None:
        """Bring the whole graph into view and close what covers it."""
        self.dismiss()
        self.page.keyboard.press("Escape")
        self.page.evaluate("app.canvas.deselectAll?.(); app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.page.wait_for_timeout(900)

    def _console(self, message: Any) -> None:
        elsewhere = not message.location.get("url", self.url).startswith(self.url)  # where missing models would be
        if message.type == "error" and not elsewhere and "reneg" in f"{message.text} {message.location}".lower():
            self.errors.append(message.text)

    def _response(self, response: Any) -> None:
        if response.status >= 400 and "/extensions/reneg" in response.url and "/en.md" not in response.url:
            self.errors.append(f"{response.status} {response.url}")


@contextmanager
def open_page(url: str, width: int = 1600, height: int = 1000, *, nodes_2: bool = False) -> Iterator[ComfyPage]:
    """ComfyUI's page at ``url``, without the first-start dialog; its nodes drawn on the canvas or as Nodes 2.0."""
    from playwright.sync_api import sync_playwright

    body = json.dumps({**SETTINGS, NODES_2: nodes_2}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/api/settings", body)).read()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        sharpness = 2 if os.environ.get("RENEG_SCREENSHOTS") else 1  # pixels per pixel: kept pictures stay legible
        viewport = {"width": width, "height": height}
        fresh = browser.new_page(viewport=viewport, device_scale_factor=sharpness)
        page = ComfyPage(fresh, url, "nodes2" if nodes_2 else "classic")
        try:
            page.open()
            yield page
        finally:
            browser.close()


def plain(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph in API format reduced to classes, inputs and links, for comparing."""
    return {node_id: (node["class_type"], dict(sorted(node["inputs"].items()))) for node_id, node in graph.items()}
