"""Where a template's nodes and wires lie: in columns, with lanes in which wires pass the columns between.

A wire that skips a column would run behind its nodes. It gets a lane there, a free strip between two nodes, and two
reroutes that keep it inside; wires of one output share lanes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Graph = dict[str, dict[str, Any]]
TITLE, SLOT = 30, 20
GAP_X, GAP_Y, LANE, MARGIN = 150, 50, 26, 18
"""Between columns, between nodes, height of a lane, and how far outside its column a reroute lies (pixels)."""
SCREEN, ROOM, LEAST_ZOOM, MOST_ZOOM = (1600, 900), (130, 110), 0.7, 1.0
"""The page that the first view is made for, what its bars cover at the left and top, and how small nodes may get."""
NOTE_WIDTH = 760
SIZES = {"Side by side": (560, 900), "Scores": (560, 300)}
EXTRA = {
    "ReNegTrain": (460, 560),
    "ReNegTrainTextEncoder": (460, 760),
    "ReNegRewardScore": (340, 110),
    "ReNegCompareNegatives": (340, 110),
}


@dataclass(eq=False)
class Item:
    """A node, or a lane for the wires of one output past one column."""

    column: int
    height: float
    node: str = ""
    source: tuple[str, int] = ("", 0)
    top: float = 0
    before: list[tuple["Item", float, float]] = field(default_factory=list)
    after: list[tuple["Item", float, float]] = field(default_factory=list)
    """Neighbours in the columns beside: the item, and how far below the two tops the wire ends here and there."""

    def wanted(self) -> float:
        """The top at which its wires would run straight, on average."""
        ends = [*self.before, *self.after]
        return sum(other.top + there - here for other, here, there in ends) / len(ends) if ends else self.top


def links_of(graph: Graph) -> Iterator[tuple[str, int, str, str]]:
    """Origin, output, target and input of every link."""
    for target, node in graph.items():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                yield str(value[0]), value[1], target, name


def columns_of(graph: Graph) -> dict[str, int]:
    """How many links each node is away from the beginning; what needs nothing stands just before what needs it."""

    def depth(node: str) -> int:
        return 1 + max((depth(origin) for origin, _, target, _ in links_of(graph) if target == node), default=-1)

    found = {node: depth(node) for node in graph}
    for node in graph:
        followers = [found[target] for origin, _, target, _ in links_of(graph) if origin == node]
        if found[node] == 0 and followers:
            found[node] = min(followers) - 1
    return found


def roomy(node: dict[str, Any]) -> list[float]:
    """The size of a node with room for what it shows while and after it works."""
    width, height = node["size"]
    if node.get("title") in SIZES:
        return list(SIZES[node["title"]])
    if node["type"] in ("SaveImage", "PreviewImage"):
        return [340, 380]
    if node["type"] in EXTRA:
        return [EXTRA[node["type"]][0], height + EXTRA[node["type"]][1]]
    return [max(width, 300), height + (60 if node["type"].startswith("ReNeg") else 0)]


def slot_below(index: int) -> float:
    """How far a slot lies below its node's position."""
    return (index + 0.7) * SLOT


def sockets(node: dict[str, Any]) -> list[str]:
    """Inputs that are drawn as slots, from above; those of widgets are not."""
    return [part["name"] for part in node.get("inputs", []) if not part.get("widget")]


def items_of(graph: Graph, nodes: dict[str, dict[str, Any]]) -> list[Item]:
    """Nodes and lanes with their neighbours."""
    columns = columns_of(graph)
    items = {key: Item(columns[key], nodes[key]["size"][1] + TITLE, key) for key in graph}
    lanes: dict[tuple[str, int, int], Item] = {}
    joined = set()
    for origin, slot, target, name in links_of(graph):
        path = [(items[origin], TITLE + slot_below(slot))]
        for column in range(columns[origin] + 1, columns[target]):
            lane = lanes.setdefault((origin, slot, column), Item(column, LANE, source=(origin, slot)))
            path.append((lane, LANE / 2))
        path.append((items[target], TITLE + slot_below(sockets(nodes[target]).index(name))))
        for (left, here), (right, there) in pairwise(path):
            if (left, right, here, there) not in joined:
                joined.add((left, right, here, there))
                left.after.append((right, here, there))
                right.before.append((left, there, here))
    return [*items.values(), *lanes.values()]


def settle(items: list[Item]) -> None:
    """Give every item a top: near its neighbours, in an order with few crossings, without overlaps."""
    columns: dict[int, list[Item]] = {}
    for item in items:
        columns.setdefault(item.column, []).append(item)
    for column in columns.values():
        stack(column)
    order = sorted(columns)
    for turn in range(24):
        for number in order if turn % 2 == 0 else reversed(order):
            stack(columns[number], turn >= 8)
    highest = min(item.top for item in items)
    for item in items:
        item.top -= highest


def stack(column: list[Item], loose: bool = False) -> None:
    """One below the other, in the order in which their wires want them; ``loose``: as near to that as there is room."""
    wanted = {item: item.wanted() for item in column}
    column.sort(key=lambda item: wanted[item] + item.height / 2)
    tops, bottom = [], 0.0
    for item in column:
        tops.append(max(bottom, wanted[item]) if loose and tops else wanted[item] if loose else bottom)
        bottom = tops[-1] + item.height + (GAP_Y if item.node else GAP_Y / 2)
    shift = sum(wanted[item] - top for item, top in zip(column, tops, strict=True)) / len(column) if loose else 0
    for item, top in zip(column, tops, strict=True):
        item.top = top + shift


def lay_out(workflow: dict[str, Any], graph: Graph) -> None:
    """Give nodes room and places, and wires their reroutes."""
    for node in workflow["nodes"]:
        node["size"] = roomy(node)
    place(workflow, graph)


def place(workflow: dict[str, Any], graph: Graph) -> None:
    """Give nodes places, and wires their reroutes."""
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    items = items_of(graph, nodes)
    settle(items)
    left, edges = 0, {}
    for column in range(max(item.column for item in items) + 1):
        inside = [nodes[item.node] for item in items if item.column == column and item.node]
        width = round(max(node["size"][0] for node in inside))
        for node in inside:
            node["size"][0] = width
        edges[column] = (left, left + width)
        left += width + GAP_X
    for item in items:
        if item.node:
            nodes[item.node]["pos"] = [round(edges[item.column][0]), round(item.top + TITLE)]
    route(workflow, [item for item in items if not item.node], edges)


def route(workflow: dict[str, Any], lanes: list[Item], edges: dict[int, tuple[float, float]]) -> None:
    """Two reroutes in every lane, and the chain of them that each wire follows."""
    columns = {
        str(n["id"]): next(c for c, (left, _) in edges.items() if left == n["pos"][0]) for n in workflow["nodes"]
    }
    reroutes: list[dict[str, Any]] = []
    last: dict[tuple[str, int, int], int] = {}
    for lane in sorted(lanes, key=lambda lane: (lane.source, lane.column)):
        crossing = [
            link[0]
            for link in workflow["links"]
            if (str(link[1]), link[2]) == lane.source and columns[str(link[3])] > lane.column
        ]
        for x in (edges[lane.column][0] - MARGIN, edges[lane.column][1] + MARGIN):
            parent = last.get((*lane.source, lane.column), last.get((*lane.source, lane.column - 1)))
            made = {"id": len(reroutes) + 1, "pos": [round(x), round(lane.top + LANE / 2)], "linkIds": crossing}
            reroutes.append(made if parent is None else made | {"parentId": parent})
            last[(*lane.source, lane.column)] = made["id"]
    ends = {link[0]: last.get((str(link[1]), link[2], columns[str(link[3])] - 1)) for link in workflow["links"]}
    if reroutes:
        workflow["extra"]["reroutes"] = reroutes
        workflow["extra"]["linkExtensions"] = [{"id": i, "parentId": parent} for i, parent in ends.items() if parent]


def annotate(workflow: dict[str, Any], text: str) -> None:
    """A note above the graph's beginning, and a first view in which both can be read."""
    height = 40 + sum(
        46 if line.startswith("# ") else 18 + 28 * (1 + len(line) // 62) for line in text.splitlines() if line
    )
    number = workflow["last_node_id"] = workflow["last_node_id"] + 1
    places = [(*node["pos"], node["pos"][1] - TITLE) for node in workflow["nodes"]]
    places += [(*part["pos"], part["pos"][1] - LANE) for part in workflow["extra"].get("reroutes", [])]
    top = min(above for left, _, above in places if left <= NOTE_WIDTH + GAP_Y)
    workflow["nodes"].append(
        {
            "id": number,
            "type": "MarkdownNote",
            "pos": [0, round(top - height - GAP_Y)],
            "size": [NOTE_WIDTH, height],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "title": "About this workflow",
            "properties": {},
            "widgets_values": [text],
            "color": "#432",
            "bgcolor": "#653",
        }
    )
    workflow["extra"]["ds"] = first_view(workflow["nodes"])


def first_view(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """The page's scale and offset: the whole graph where it stays legible, else from the note, the last node, on."""
    left, top = nodes[-1]["pos"][0], nodes[-1]["pos"][1] - TITLE
    right, bottom = max(n["pos"][0] + n["size"][0] for n in nodes), max(n["pos"][1] + n["size"][1] for n in nodes)
    fit = min((SCREEN[0] - ROOM[0] - 40) / (right - left), (SCREEN[1] - ROOM[1] - 40) / (bottom - top))
    scale = round(min(MOST_ZOOM, max(LEAST_ZOOM, fit)), 2)
    return {"scale": scale, "offset": [round(ROOM[0] / scale - left), round(ROOM[1] / scale - top)]}
