"""ComfyUI's own page: every workflow loads whole, runs by the button, and shows what it should."""

import json
import os
from pathlib import Path
from typing import Any

import graphs
import pytest
from hosting import PACK
from page import plain

WORKFLOWS = PACK / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
LISTEN = """
window.__seen = {}; window.__previews = 0; window.__texts = [];
for (const name of ["execution_success", "execution_error", "execution_interrupted"])
  app.api.addEventListener(name, event => window.__seen[name] = event.detail);
for (const name of ["b_preview_with_metadata", "b_preview"])
  app.api.addEventListener(name, () => window.__previews++);
app.api.addEventListener("progress_text", event => window.__texts.push(event.detail.text));
"""


def ui(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def fill(opened: Any, graph: dict[str, Any]) -> None:
    """Give the page's widgets the values of a graph in API format."""
    values = {key: {k: v for k, v in node["inputs"].items() if not isinstance(v, list)} for key, node in graph.items()}
    opened.page.evaluate(
        "values => { for (const node of app.graph._nodes) for (const w of node.widgets ?? [])"
        " if (values[node.id]?.[w.name] !== undefined) w.value = values[node.id][w.name]; }",
        values,
    )


def keep(opened: Any, tmp_path: Path, name: str) -> None:
    """A screenshot; in RENEG_SCREENSHOTS if that names a folder."""
    folder = Path(os.environ.get("RENEG_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    opened.page.screenshot(path=folder / f"{name}.png")


@pytest.mark.parametrize("name", NAMES)
def test_workflow_loads_whole_and_equals_its_api_form(name: str, opened) -> None:
    opened.alerts()
    opened.load(ui(name), name)
    assert opened.missing() == []
    assert opened.alerts() == []
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    assert plain(opened.prompt()) == plain(api)
    assert opened.errors == []


def test_the_comparison_can_fail(opened) -> None:
    workflow = ui("1_use_embedding_sd15")
    sampler = next(node for node in workflow["nodes"] if node["type"] == "ReNegCFGSampler")
    sampler["widgets_values"][2] = 31
    opened.load(workflow, "changed")
    api = json.loads((WORKFLOWS / "api" / "1_use_embedding_sd15.json").read_text())
    assert plain(opened.prompt()) != plain(api)


@pytest.mark.parametrize(
    ("name", "kind", "added", "default"),
    [
        ("4_train_embedding", "ReNegTrainEmbedding", "vary", "off"),
        ("8_compare_negatives", "ReNegCompareNegatives", "solver", "euler"),
    ],
)
def test_a_workflow_saved_before_an_input_was_added_takes_its_default(name, kind, added, default, opened) -> None:
    workflow = ui(name)
    node = next(node for node in workflow["nodes"] if node["type"] == kind)
    node["widgets_values"].pop()
    node["inputs"] = [entry for entry in node["inputs"] if entry["name"] != added]
    opened.load(workflow, "older")
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    assert api[str(node["id"])]["inputs"][added] == default
    assert plain(opened.prompt()) == plain(api)


def test_a_training_runs_by_the_button_with_live_previews(opened, server, tmp_path) -> None:
    name = "4_train_embedding"
    opened.load(ui(name), name)
    fill(opened, graphs.small(name, {"run_name": "browser", "steps": 12, "validate_every": 3}))
    opened.page.evaluate(LISTEN)
    opened.fit()
    opened.page.locator('[data-testid="queue-button"]').first.click()
    opened.page.wait_for_function("window.__previews >= 2 || window.__seen.execution_error", timeout=240_000)
    opened.page.wait_for_function(
        "app.graph._nodes.some(n => n.type == 'ReNegTrainEmbedding' && n.imgs?.length"
        " && n.widgets.some(w => w.name == '$$canvas-image-preview'))"
    )
    keep(opened, tmp_path, "training-live")
    opened.page.wait_for_function("window.__seen.execution_success || window.__seen.execution_error", timeout=240_000)
    assert "execution_error" not in opened.page.evaluate("window.__seen")
    assert opened.page.evaluate("window.__previews") >= 3
    texts = opened.page.evaluate("window.__texts")
    assert any("of 12: reward" in text for text in texts) and any("saved as browser/" in text for text in texts)
    assert (server.base / "output" / "reneg" / "browser" / "negative.safetensors").exists()
    opened.page.wait_for_timeout(1500)
    keep(opened, tmp_path, "training-done")
    assert opened.errors == []


def test_scoring_shows_the_pictures_and_the_text(opened, tmp_path) -> None:
    name = "3_score_and_pick_best"
    opened.load(ui(name), name)
    fill(opened, graphs.small(name, batch_size=4))
    opened.page.evaluate(LISTEN)
    opened.fit()
    opened.page.locator('[data-testid="queue-button"]').first.click()
    opened.page.wait_for_function("window.__seen.execution_success || window.__seen.execution_error", timeout=240_000)
    assert any("selected 1 of 4" in text for text in opened.page.evaluate("window.__texts"))
    opened.page.wait_for_function("app.graph._nodes.filter(n => n.imgs?.length).length == 2")
    shown = opened.page.evaluate("app.graph._nodes.filter(n => n.imgs?.length).map(n => n.imgs.length)")
    opened.page.wait_for_timeout(800)
    keep(opened, tmp_path, "score")
    assert sorted(shown) == [1, 4]
    assert opened.errors == []


def test_a_bad_value_is_told_on_the_page(opened) -> None:
    name = "1_use_embedding_sd15"
    opened.load(ui(name), name)
    fill(opened, graphs.small(name, embedding_name="absent.safetensors"))
    opened.page.evaluate("app.queuePrompt(0, 1)")
    opened.page.wait_for_function("app.lastNodeErrors && Object.keys(app.lastNodeErrors).length", timeout=60_000)
    assert "No file 'absent.safetensors'" in json.dumps(opened.page.evaluate("app.lastNodeErrors"))
    opened.page.keyboard.press("Escape")


def test_templates_are_listed_with_their_thumbnails(opened, tmp_path) -> None:
    opened.page.keyboard.press("Escape")
    listed = opened.page.evaluate("fetch('/api/workflow_templates').then(r => r.json())")["reneg"]
    assert sorted(listed) == NAMES
    for name in NAMES:
        kind = opened.page.evaluate(
            "url => fetch(url).then(r => r.status + ' ' + r.headers.get('content-type'))",
            f"/api/workflow_templates/reneg/{name}.jpg",
        )
        assert kind == "200 image/jpeg"
    opened.page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    opened.page.get_by_text("reneg", exact=True).first.click(timeout=20_000)
    opened.page.wait_for_timeout(2500)
    keep(opened, tmp_path, "templates")
