"""Without a host: in every template nodes lie apart, no wire runs behind a node, and the first view can be read."""

import json
import math
import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.json"))
Point = tuple[float, float]
TITLE, SLOT, MOST = 30, 20, 80.0
SCREEN = (1600, 900)
LEGIBLE = 0.7


def rectangle(node: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top with the title, right, bottom."""
    (left, top), (width, height) = node["pos"], node["size"]
    return left, top - TITLE, left + width, top + height


def socket(node: dict[str, Any], index: int) -> int:
    """The row of an input; those of widgets have none."""
    rows = [i for i, part in enumerate(node["inputs"]) if not part.get("widget")]
    return rows.index(index)


def wire(workflow: dict[str, Any], link: list[Any]) -> list[Point]:
    """Where a wire begins, its reroutes, where it ends."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    reroutes = {part["id"]: part for part in workflow["extra"].get("reroutes", [])}
    chain, parent = [], {e["id"]: e["parentId"] for e in workflow["extra"].get("linkExtensions", [])}.get(link[0])
    while parent is not None:
        assert link[0] in reroutes[parent]["linkIds"]
        chain.append(tuple(reroutes[parent]["pos"]))
        parent = reroutes[parent].get("parentId")
    (left, top), (width, _) = nodes[link[1]]["pos"], nodes[link[1]]["size"]
    start = (left + width, top + (link[2] + 0.7) * SLOT)
    left, top = nodes[link[3]]["pos"]
    return [start, *reversed(chain), (left, top + (socket(nodes[link[3]], link[4]) + 0.7) * SLOT)]


def direction(here: Point, there: Point) -> float:
    return math.atan2(there[1] - here[1], there[0] - here[0])


def drawn(points: list[Point]) -> Iterator[Point]:
    """A wire as the page draws it: Bezier curves that leave a slot level and pass a reroute at the mean angle."""
    angles = [(direction(a, b) + direction(b, c)) / 2 for a, b, c in zip(points, points[1:], points[2:], strict=False)]
    angles = [0.0, *angles, 0.0]
    for number, (here, there) in enumerate(pairwise(points)):
        quarter = math.dist(here, there) / 4
        first = quarter if number == 0 else min(MOST, quarter)
        second = quarter if number == len(points) - 2 else min(MOST, quarter)
        one = (here[0] + first * math.cos(angles[number]), here[1] + first * math.sin(angles[number]))
        two = (there[0] - second * math.cos(angles[number + 1]), there[1] - second * math.sin(angles[number + 1]))
        for part in range(61):
            t = part / 60
            weights = ((1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3)
            ends = (here, one, two, there)
            yield tuple(sum(w * p[axis] for w, p in zip(weights, ends, strict=True)) for axis in (0, 1))


def hidden(workflow: dict[str, Any]) -> list[str]:
    """Wires that run behind a node, with its name."""
    found = []
    for link in workflow["links"]:
        points = list(drawn(wire(workflow, link)))
        for node in workflow["nodes"]:
            left, top, right, bottom = rectangle(node)
            if any(left + 2 < x < right - 2 and top < y < bottom for x, y in points):
                found.append(f"{link[5]} of {link[1]} to {link[3]} behind {node.get('title', node['type'])}")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_wire_runs_behind_a_node_and_no_node_behind_another(path: Path) -> None:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    assert hidden(workflow) == []
    for one, other in combinations(workflow["nodes"], 2):
        a, b = rectangle(one), rectangle(other)
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], f"{one['type']} over {other['type']}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_note_can_be_read_at_the_first_view(path: Path) -> None:
    """It lies whole on a page of usual size, its addresses are links."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    [note] = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    view = workflow["extra"]["ds"]
    left, top, right, bottom = ((v + view["offset"][i % 2]) * view["scale"] for i, v in enumerate(rectangle(note)))
    assert view["scale"] >= LEGIBLE and left >= 0 and top >= 0 and right <= SCREEN[0] and bottom <= SCREEN[1]
    [text] = note["widgets_values"]
    title, *sentences = text.split("\n\n")
    assert title.startswith("# ") and all(line.startswith("## ") for line in sentences), "small text is not legible"
    assert note["size"][1] >= 60 + sum(30 * (1 + len(line) // 64) for line in sentences) and len(text) < 500
    assert not re.search(r"://|huggingface", re.sub(r"\[[^\]]+\]\(https://[^)]+\)", "", text)), "an address is no link"


def test_the_geometry_sees_a_wire_behind_a_node() -> None:
    nodes = [
        {"id": n, "type": "T", "pos": [x, 0], "size": [100, 100], "inputs": [{"name": "in"}]}
        for n, x in ((1, 0), (2, 200), (3, 400))
    ]
    workflow = {"nodes": nodes, "links": [[7, 1, 0, 3, 0, "MODEL"]], "extra": {}}
    assert hidden(workflow) == ["MODEL of 1 to 3 behind T"]
    lane = [{"id": 1, "pos": [180, 130], "linkIds": [7]}, {"id": 2, "pos": [320, 130], "linkIds": [7], "parentId": 1}]
    workflow["extra"] = {"reroutes": lane, "linkExtensions": [{"id": 7, "parentId": 2}]}
    assert hidden(workflow) == []
