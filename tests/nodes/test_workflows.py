"""Without a host: every example workflow, in both formats, fits the contract of the nodes; help and words are there."""

import ast
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = json.loads((Path(__file__).parent / "contract.json").read_text())
OLDER = Path(__file__).parent / "older"
API = sorted([*(ROOT / "workflows" / "api").glob("*.json"), *(OLDER / "api").glob("*.json")])
"""The templates, and those of earlier versions that used nodes which have changed since."""
FIXED = {"ReNegTrain", "ReNegTrainTextEncoder"}
"""Nodes whose seed stays as it is, without the page's control of it."""
PICTURES = {"SaveImage", "PreviewImage", "SaveAnimatedWEBP"}


def inputs_of(name: str) -> dict[str, str]:
    groups = CONTRACT[name]["inputs"]
    return {**groups.get("required", {}), **groups.get("optional", {})}


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_api_workflow_names_existing_inputs_and_outputs(path: Path) -> None:
    graph = json.loads(path.read_text())
    ours = {key: node for key, node in graph.items() if node["class_type"].startswith("ReNeg")}
    assert ours
    for node in ours.values():
        known = CONTRACT[node["class_type"]]["inputs"]
        assert set(node["inputs"]) <= set(inputs_of(node["class_type"])), node["class_type"]
        assert set(known["required"]) <= set(node["inputs"]), node["class_type"]
    for node in graph.values():
        for field, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in ours:
                check_link(ours[value[0]]["class_type"], value[1], node["class_type"], field)


def check_link(source: str, slot: int, target: str, field: str) -> None:
    outputs = CONTRACT[source]["outputs"]
    assert slot < len(outputs), f"{source} has no output {slot}"
    if target in CONTRACT:
        assert outputs[slot] == inputs_of(target)[field], f"{source}.{slot} -> {target}.{field}"


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_page_workflow_holds_the_same_graph(path: Path) -> None:
    graph = json.loads(path.read_text())
    page = json.loads((path.parents[1] / path.name).read_text())
    nodes = {str(node["id"]): node for node in page["nodes"] if node["type"] != "MarkdownNote"}
    assert {k: n["type"] for k, n in nodes.items()} == {k: n["class_type"] for k, n in graph.items()}
    links = {link[0]: (str(link[1]), link[2]) for link in page["links"]}
    for key, node in graph.items():
        assert linked(nodes[key], links) == {f: tuple(v) for f, v in node["inputs"].items() if isinstance(v, list)}
        if node["class_type"] in CONTRACT:
            plain = {f: v for f, v in node["inputs"].items() if not isinstance(v, list)}
            found = widgets(nodes[key], whole=OLDER not in path.parents)
            assert {f: v for f, v in found.items() if f in plain} == plain
    assert OLDER in path.parents or path.with_suffix(".jpg").name in {p.name for p in path.parents[1].glob("*.jpg")}
    assert any(node["type"] == "MarkdownNote" for node in page["nodes"])


def linked(node: dict[str, Any], links: dict[int, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    return {i["name"]: links[i["link"]] for i in node.get("inputs", []) if i.get("link") is not None}


def widgets(node: dict[str, Any], whole: bool = True) -> dict[str, Any]:
    """Widget values by name; after a seed the page keeps one more value, what to do with it, but not in the training
    node, whose seed stays. whole: none is missing at the end, as inputs are that came later."""
    names = []
    for name, kind in inputs_of(node["type"]).items():
        if kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            names += [name, "control"] if name == "seed" and node["type"] not in FIXED else [name]
    values = node.get("widgets_values", [])
    assert len(names) == len(values) or (not whole and len(names) > len(values)), node["type"]
    return dict(zip(names, values, strict=whole))


def test_every_node_has_a_help_page_and_words() -> None:
    words = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
    assert set(words) == set(CONTRACT)
    for name, node in CONTRACT.items():
        page = (ROOT / "web" / "docs" / f"{name}.md").read_text()
        assert page.startswith(f"# {node['display_name']}\n")
        assert set(words[name]["inputs"]) - {"control_after_generate"} == set(inputs_of(name))
        assert len(words[name]["outputs"]) == len(node["outputs"])


def test_node_ids_in_the_code_are_those_of_the_contract() -> None:
    found = set()
    for path in (ROOT / "nodes").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.keyword) and call.arg == "node_id" and isinstance(call.value, ast.Constant):
                found.add(call.value.value)
    assert found == set(CONTRACT)


def test_a_nodes_check_names_one_input() -> None:
    """The host repeats a check's message for every input that it names."""
    named = {}
    for path in (ROOT / "nodes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "validate_inputs":
                named[f"{path.stem}:{node.lineno}"] = [arg.arg for arg in node.args.args if arg.arg != "cls"]
    assert len(named) >= 7 and all(len(names) == 1 for names in named.values()), named


def test_the_pack_keeps_the_registry_standards() -> None:
    """No eval or exec, no shell, no downloads, no pickles in the pack's own nodes."""
    functions, methods = {"eval", "exec"}, {"system", "popen", "urlopen", "urlretrieve", "download_url_to_file"}
    for path in [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        called = [c.func for c in ast.walk(tree) if isinstance(c, ast.Call)]
        assert not {getattr(f, "id", "") for f in called} & (functions | methods), path
        assert not {getattr(f, "attr", "") for f in called} & methods, path
        imported = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert not imported & {"subprocess", "pickle", "requests", "socket"}, path
    assert not list((ROOT / "web").rglob("*.js"))


def test_without_comfyui_the_front_door_does_nothing() -> None:
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("front_door", ROOT / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    spec.loader.exec_module(module)
    assert module.__all__ == ["WEB_DIRECTORY"] and not {m for m in set(sys.modules) - before if "comfy" in m}
    assert (ROOT / module.WEB_DIRECTORY).is_dir()


@pytest.mark.parametrize("path", sorted((ROOT / "subgraphs").glob("*.json")), ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_whose_inner_links_hold(path: Path) -> None:
    page = json.loads(path.read_text(encoding="utf-8"))
    [outer], [inner] = page["nodes"], page["definitions"]["subgraphs"]
    assert outer["type"] == inner["id"] and outer["title"] == inner["name"] == path.stem
    assert page["extra"]["BlueprintDescription"] and page["extra"]["BlueprintSearchAliases"]
    assert [part["name"] for part in outer["inputs"]] == [part["name"] for part in inner["inputs"]]
    nodes = {node["id"]: node for node in inner["nodes"]}
    for node in nodes.values():
        if node["type"] in CONTRACT:
            assert {part["name"] for part in node["inputs"]} == set(inputs_of(node["type"]))
            assert widgets(node)
    for link in inner["links"]:
        left = inner["inputs"] if link["origin_id"] == -10 else nodes[link["origin_id"]]["outputs"]
        right = inner["outputs"] if link["target_id"] == -20 else nodes[link["target_id"]]["inputs"]
        assert left[link["origin_slot"]]["type"] == link["type"] == right[link["target_slot"]]["type"]
        assert link["id"] in (left[link["origin_slot"]].get("linkIds") or left[link["origin_slot"]]["links"])
        assert link["id"] in (right[link["target_slot"]].get("linkIds") or [right[link["target_slot"]]["link"]])


@pytest.mark.parametrize("path", API, ids=lambda path: path.stem)
def test_what_app_mode_shows_is_there(path: Path) -> None:
    """Every widget that a template's form names, and all of its pictures."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    form = json.loads((path.parents[1] / path.name).read_text(encoding="utf-8"))["extra"].get("linearData")
    if form is None:
        return
    assert form["inputs"] and form["outputs"]
    for node, widget in form["inputs"]:
        assert not isinstance(graph[str(node)]["inputs"][widget], list)
    shown = {str(node) for node in form["outputs"]}
    assert shown == {key for key, node in graph.items() if node["class_type"] in PICTURES}


def test_every_thumbnail_shows_something_of_its_own() -> None:
    """Two templates with one picture say nothing about either."""
    small = {}
    for path in sorted((ROOT / "workflows").glob("*.jpg")):
        with Image.open(path) as picture:
            assert picture.width >= 900 and picture.height >= 400, path.name
            small[path.stem] = list(picture.convert("L").resize((48, 32)).tobytes())
    assert set(small) == {path.stem for path in API if OLDER not in path.parents}
    for (one, a), (other, b) in combinations(small.items(), 2):
        different = sum(abs(x - y) > 24 for x, y in zip(a, b, strict=True)) / len(a)
        assert different > 0.05, f"{one} and {other} look alike"
