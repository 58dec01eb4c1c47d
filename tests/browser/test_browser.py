"""ComfyUI's own page: every workflow loads whole, runs by the button, and shows what it should."""

import json
import os
from pathlib import Path
from typing import Any

import graphs
import pytest
from blueprints import PLANS
from convert import APPS, arranged
from hosting import PACK
from page import plain

WORKFLOWS = PACK / "workflows"
OLDER = PACK / "tests" / "nodes" / "older"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
ADDED = {
    "ReNegTrainEmbedding": {"last_steps": 0, "through": 1, "vary": "off"},
    "ReNegLoadReward": {"download": False},
    "ReNegCompareNegatives": {"attention_guidance": 0},
    "ReNegCFGSampler": {"attention_guidance": 0},
}
"""What nodes were given since version 0.1, with the defaults."""
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
    if opened.missing() == ["NAGuidance"]:
        pytest.skip("THIS COMFYUI HAS NO NAGuidance: its template is not shown")
    assert opened.missing() == []
    assert opened.alerts() == []
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    assert plain(opened.prompt()) == plain(api)
    assert opened.errors == []


def test_the_comparison_can_fail(opened) -> None:
    workflow = ui("2_sampler_node_sd15")
    sampler = next(node for node in workflow["nodes"] if node["type"] == "ReNegCFGSampler")
    sampler["widgets_values"][2] = 31
    opened.load(workflow, "changed")
    api = json.loads((WORKFLOWS / "api" / "2_sampler_node_sd15.json").read_text())
    assert plain(opened.prompt()) != plain(api)


@pytest.mark.parametrize("path", sorted(OLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_workflow_of_an_earlier_version_loads_whole(path: Path, opened) -> None:
    """What was saved before an input was there takes the input's default."""
    opened.load(json.loads(path.read_text()), path.stem)
    assert opened.missing() == []
    saved = plain(json.loads((OLDER / "api" / path.name).read_text()))
    assert len(ADDED.keys() & {kind for kind, _ in saved.values()}) == 3
    expected = {key: (kind, ADDED.get(kind, {}) | inputs) for key, (kind, inputs) in saved.items()}
    assert {key: (kind, dict(inputs)) for key, (kind, inputs) in plain(opened.prompt()).items()} == expected


def test_a_comparison_saved_before_an_input_was_added_takes_its_default(opened) -> None:
    name = "8_compare_negatives"
    workflow = ui(name)
    node = next(node for node in workflow["nodes"] if node["type"] == "ReNegCompareNegatives")
    later = {"solver": "euler", "attention_guidance": 0}
    del node["widgets_values"][-len(later) :]
    node["inputs"] = [entry for entry in node["inputs"] if entry["name"] not in later]
    opened.load(workflow, "older")
    api = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    assert api[str(node["id"])]["inputs"].items() >= later.items()
    assert plain(opened.prompt()) == plain(api)


def run_by_the_button(opened: Any) -> None:
    opened.page.evaluate(LISTEN)
    opened.fit()
    opened.page.locator('[data-testid="queue-button"]').first.click()


def finish(opened: Any) -> None:
    opened.page.wait_for_function("window.__seen.execution_success || window.__seen.execution_error", timeout=400_000)
    assert "execution_error" not in opened.page.evaluate("window.__seen")


def test_the_first_template_learns_by_the_button_with_live_previews(opened, server, tmp_path) -> None:
    """Whole where pictures of it are kept, else its first steps."""
    name, whole = "0_learn_a_negative_in_two_minutes", "RENEG_SCREENSHOTS" in os.environ
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())
    training, settings, comparison = (
        next(node["inputs"] for node in graph.values() if node["class_type"] == kind)
        for kind in ("ReNegTrain", "ReNegTrainingSettings", "ReNegCompareNegatives")
    )
    run = f"browser_{opened.drawing}"
    training["run_name"] = run
    if not whole:
        training["steps"], comparison["seeds"] = 12, 1
        settings |= {"validate_every": 3, "validation_pairs": 4}
    opened.load(ui(name), name)
    fill(opened, graph)
    run_by_the_button(opened)
    opened.page.wait_for_function("window.__previews >= 3 || window.__seen.execution_error", timeout=400_000)
    opened.wait_shown("ReNegTrain")
    keep(opened, tmp_path, f"training-live-{opened.drawing}")
    finish(opened)
    texts = opened.page.evaluate("window.__texts")
    assert any(f"of {training['steps']}: reward" in text for text in texts)
    assert any(f"saved as {run}/" in text for text in texts)
    assert (server.base / "output" / "reneg" / run / "negative.safetensors").exists()
    opened.wait_shown("PreviewImage", 3)
    opened.page.wait_for_timeout(1500)
    keep(opened, tmp_path, f"training-done-{opened.drawing}")
    assert opened.errors == []


def test_scoring_shows_the_pictures_and_the_text(opened, tmp_path) -> None:
    name = "3_score_and_pick_best"
    graph = graphs.tiny(name, batch_size=8, steps=10, embedding_name="words.safetensors")
    opened.load(arranged(opened, graph, name), name)
    run_by_the_button(opened)
    finish(opened)
    assert any("selected 1 of 8" in text for text in opened.page.evaluate("window.__texts"))
    kinds = {node["class_type"] for node in graph.values()} & {"PreviewImage", "SaveImage"}
    for kind in kinds:
        opened.wait_shown(kind)
    opened.page.wait_for_timeout(800)
    keep(opened, tmp_path, f"score-{opened.drawing}")
    assert opened.errors == []


FIRST_WITH_APPS = (1, 42)


@pytest.mark.parametrize("name", sorted(APPS))
def test_a_template_opens_as_a_form(name: str, opened, tmp_path) -> None:
    """The page's app mode shows the inputs that the template names, and runs the graph behind them."""
    if opened.version() < FIRST_WITH_APPS:
        pytest.skip("this page has no app mode")
    opened.load(ui(name), name)
    opened.alerts()
    toggle = "app.extensionManager.command.execute('Comfy.ToggleLinear')"
    opened.page.evaluate(toggle)
    try:
        form = opened.page.locator("[data-testid='linear-widgets'], body").last
        titles = {node["id"]: node.get("title") for node in ui(name)["nodes"]}
        for node, widget in APPS[name][0]:
            shown = (
                titles[node]
                if widget == "text"
                else opened.page.evaluate(
                    "([id, name]) => { const w = app.rootGraph.getNodeById(id).widgets.find(w => w.name == name);"
                    " return w.label ?? w.name; }",
                    [node, widget],
                )
            )
            form.get_by_text(shown, exact=True).first.wait_for(timeout=20_000)
        keep(opened, tmp_path, f"app-{name}-{opened.drawing}")
    finally:
        opened.page.evaluate(toggle)
        opened.page.wait_for_timeout(500)
    assert opened.errors == []


def blueprints(opened: Any) -> list[str]:
    """What the page's library offers from this pack; skips where it has none."""
    found = opened.page.evaluate("fetch('/api/global_subgraphs').then(r => r.ok ? r.json() : null)")
    if found is None:
        pytest.skip("this host has no blueprints")
    return [entry["name"] for entry in found.values() if entry["info"]["node_pack"] == "custom_nodes.reneg"]


def test_the_blueprints_are_in_the_library_and_load(opened) -> None:
    assert sorted(blueprints(opened)) == sorted(PLANS)
    for name, plan in PLANS.items():
        opened.load(json.loads((PACK / "subgraphs" / f"{name}.json").read_text()), name)
        assert opened.missing() == []
        names = opened.page.evaluate("app.graph._nodes[0].widgets.map(w => w.name)")
        assert names == [label for _, _, label in plan.widgets]
    assert opened.errors == []


def test_a_blueprint_runs(opened, tmp_path) -> None:
    """Sampling with a learned negative, in one node behind Load Tiny World."""
    blueprints(opened)
    name = "ReNeg Learned Negative"
    opened.load(json.loads((PACK / "subgraphs" / f"{name}.json").read_text()), name)
    values = {"prompt": graphs.SCENE, "embedding_name": "words.safetensors", "steps": 6, "cfg": 3}
    opened.page.evaluate(
        "values => { const [all] = app.graph._nodes, add = kind => { const n = LiteGraph.createNode(kind);"
        " app.graph.add(n); return n; }, world = add('ReNegLoadTinyWorld'), preview = add('PreviewImage');"
        " ['model', 'clip', 'vae', 'latent_image'].forEach((input, i) =>"
        " world.connect(i, all, all.inputs.findIndex(part => part.name == input)));"
        " all.connect(0, preview, 0);"
        " for (const w of all.widgets) if (values[w.name] !== undefined) w.value = values[w.name]; }",
        values,
    )
    prompt = opened.prompt()
    sampler = next(node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler")
    assert (sampler["steps"], sampler["cfg"]) == (6, 3)
    assert any(node["inputs"].get("text") == graphs.SCENE for node in prompt.values())
    run_by_the_button(opened)
    finish(opened)
    opened.wait_shown("PreviewImage")
    keep(opened, tmp_path, f"blueprint-{opened.drawing}")
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
    opened.page.get_by_role("dialog").get_by_text("reneg", exact=True).first.click(timeout=20_000)
    opened.page.wait_for_timeout(2500)
    keep(opened, tmp_path, f"templates-{opened.drawing}")
