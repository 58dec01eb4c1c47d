"""Makes subgraphs/*.json, the blueprints of the page's node library, with ComfyUI's own page:
``python tests/browser/blueprints.py URL_OF_A_RUNNING_COMFYUI``.

The page turns each graph of ``PLANS`` into nodes; the nodes of ``OUTSIDE`` are then cut off, and what they were
connected to becomes the blueprint's inputs. Widgets are named by node and input.
"""

import json
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import arranged, tidy
from layout import Graph, place
from page import ComfyPage, open_page

SUBGRAPHS = Path(__file__).resolve().parents[2] / "subgraphs"
OUTSIDE: Graph = {
    "101": {"class_type": "ReNegLoadTinyWorld", "inputs": {"pictures": 1}},
    "102": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 0}},
}
MODEL, CLIP, VAE, LATENT, IMAGES = ["101", 0], ["101", 1], ["101", 2], ["101", 3], ["102", 0]
REWARD = {"reward_name": "image_reward", "weights": "automatic", "precision": "fp32", "download": False}


@dataclass(frozen=True)
class Plan:
    """A blueprint: its graph, the widgets that it shows (node, input, name), its outputs, and what finds it."""

    description: str
    aliases: tuple[str, ...]
    graph: Graph
    widgets: tuple[tuple[str, str, str], ...]
    outputs: dict[str, tuple[str, int]]


def training_inputs() -> dict[str, Any]:
    """What the template of training sets: the quick preset."""
    graph = json.loads((SUBGRAPHS.parent / "workflows" / "api" / "4_train_embedding.json").read_text(encoding="utf-8"))
    inputs = next(node["inputs"] for node in graph.values() if node["class_type"] == "ReNegTrain")
    return {k: v for k, v in inputs.items() if not isinstance(v, list)} | {"run_name": "quick_negative"}


PLANS = {
    "ReNeg Learned Negative": Plan(
        "Samples with a learned negative embedding in the place of the negative prompt: stock KSampler.",
        ("negative embedding", "negative prompt", "ReNeg"),
        {
            "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": CLIP}},
            "2": {
                "class_type": "ReNegLoadEmbedding",
                "inputs": {"embedding_name": "sd1.5_reneg_emb.bin", "strength": 1.0, "clip": CLIP, "download": False},
            },
            "3": {
                "class_type": "KSampler",
                "inputs": {
                    **{"model": MODEL, "positive": ["1", 0], "negative": ["2", 0], "latent_image": LATENT},
                    **{
                        "seed": 0,
                        "steps": 30,
                        "cfg": 7.5,
                        "sampler_name": "euler",
                        "scheduler": "normal",
                        "denoise": 1.0,
                    },
                },
            },
            "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": VAE}},
        },
        (
            ("1", "text", "prompt"),
            ("2", "embedding_name", "embedding_name"),
            ("3", "seed", "seed"),
            ("3", "steps", "steps"),
            ("3", "cfg", "cfg"),
        ),
        {"IMAGE": ("4", 0)},
    ),
    "ReNeg Keep the Best": Plan(
        "Scores a batch of pictures with a reward model and hands on the best of them.",
        ("aesthetic score", "reward", "pick best", "rank images"),
        {
            "1": {"class_type": "ReNegLoadReward", "inputs": REWARD},
            "2": {
                "class_type": "ReNegRewardScore",
                "inputs": {
                    **{"images": IMAGES, "reward": ["1", 0], "prompt": "", "one_prompt_per_line": False},
                    **{"top_k": 1, "use_threshold": False, "threshold": 0.0},
                },
            },
        },
        (("2", "prompt", "prompt"), ("1", "reward_name", "reward_name"), ("2", "top_k", "top_k")),
        {"selected": ("2", 0), "labelled": ("2", 4), "best_score": ("2", 6)},
    ),
    "ReNeg Train Quickly": Plan(
        "Learns a negative embedding for this model with the preset quick; Stop keeps the best so far.",
        ("learn negative", "train textual inversion", "reward training"),
        {
            "1": {"class_type": "ReNegLoadReward", "inputs": REWARD},
            "2": {
                "class_type": "ReNegTrain",
                "inputs": {"model": MODEL, "clip": CLIP, "vae": VAE, "reward": ["1", 0], **training_inputs()},
            },
        },
        (
            ("2", "prompts", "prompts"),
            ("2", "run_name", "run_name"),
            ("1", "reward_name", "reward_name"),
            ("2", "size", "size"),
        ),
        {"negative": ("2", 0), "embedding": ("2", 1), "curve": ("2", 2), "before_after": ("2", 3)},
    ),
}


def blueprint(page: ComfyPage, name: str, plan: Plan) -> dict[str, Any]:
    """A workflow of one node, the subgraph."""
    used = {value[0] for node in plan.graph.values() for value in node["inputs"].values() if isinstance(value, list)}
    whole = plan.graph | {key: node for key, node in OUTSIDE.items() if key in used}
    made = tidy(arranged(page, whole, name))
    nodes = {str(node["id"]): node for node in made["nodes"] if str(node["id"]) in plan.graph}
    inner = {"nodes": list(nodes.values()), "links": inside_links(made["links"], plan.graph), "extra": {}}
    place(inner, {key: {**node, "inputs": kept(node["inputs"], plan.graph)} for key, node in plan.graph.items()})
    ports = Ports(name, nodes, made["links"], plan)
    node_id, uid = 1, str(uuid.uuid5(uuid.NAMESPACE_URL, f"reneg/subgraphs/{name}"))
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    definition = {
        "id": uid,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": 9, "lastLinkId": ports.last_link, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": -10, "bounding": [-320, 0, 140, 60 + 20 * len(ports.inputs)]},
        "outputNode": {"id": -20, "bounding": [right + 180, 0, 140, 60 + 20 * len(ports.outputs)]},
        "inputs": ports.inputs,
        "outputs": ports.outputs,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": [],
        "links": ports.links,
        "extra": {},
        "category": "ReNeg",
        "description": plan.description,
    }
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "revision": 0,
        "last_node_id": node_id,
        "last_link_id": 0,
        "nodes": [ports.instance(node_id, uid)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [definition]},
        "config": {},
        "extra": {"BlueprintDescription": plan.description, "BlueprintSearchAliases": list(plan.aliases)},
        "version": 0.4,
    }


def kept(inputs: dict[str, Any], graph: Graph) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if not isinstance(value, list) or value[0] in graph}


def inside_links(links: list[list[Any]], graph: Graph) -> list[list[Any]]:
    return [link for link in links if str(link[1]) in graph and str(link[3]) in graph]


class Ports:
    """The subgraph's inputs, outputs and links, made from the links that were cut, the widgets and the outputs."""

    def __init__(self, name: str, nodes: dict[str, dict[str, Any]], links: list[list[Any]], plan: Plan) -> None:
        self.name, self.nodes, self.plan = name, nodes, plan
        self.inputs: list[dict[str, Any]] = []
        self.outputs: list[dict[str, Any]] = []
        self.links: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self.last_link = max([link[0] for link in links], default=0)
        for link in inside_links(links, plan.graph):
            self.links.append(as_object(*link))
        for origin in sorted({(str(link[1]), link[2]) for link in links if str(link[1]) not in nodes}):
            self.take([link for link in links if (str(link[1]), link[2]) == origin])
        for node, widget, label in plan.widgets:
            self.show(node, widget, label)
        for label, (node, slot) in plan.outputs.items():
            self.give(label, node, slot)

    def take(self, cut: list[list[Any]]) -> None:
        """An input for what came from one output outside."""
        place = len(self.inputs)
        target = self.nodes[str(cut[0][3])]["inputs"][cut[0][4]]
        for number, _, _, node, slot, kind in cut:
            self.links.append(as_object(number, -10, place, node, slot, kind))
        self.inputs.append(self.port("in", target["name"], cut[0][5], [link[0] for link in cut]))
        self.shown.append({"name": target["name"], "type": cut[0][5], "link": None})

    def show(self, node: str, widget: str, label: str) -> None:
        """An input with the widget of an inner node."""
        slot, part = next((i, p) for i, p in enumerate(self.nodes[node]["inputs"]) if p["name"] == widget)
        self.last_link += 1
        part["link"] = self.last_link
        self.links.append(as_object(self.last_link, -10, len(self.inputs), int(node), slot, part["type"]))
        self.inputs.append(self.port("in", label, part["type"], [self.last_link]))
        self.shown.append({"name": label, "type": part["type"], "widget": {"name": label}, "link": None})

    def give(self, label: str, node: str, slot: int) -> None:
        """An output."""
        part = self.nodes[node]["outputs"][slot]
        self.last_link += 1
        part["links"] = [*(part.get("links") or []), self.last_link]
        self.links.append(as_object(self.last_link, int(node), slot, -20, len(self.outputs), part["type"]))
        self.outputs.append(self.port("out", label, part["type"], [self.last_link]))

    def port(self, side: str, label: str, kind: str, links: list[int]) -> dict[str, Any]:
        uid = uuid.uuid5(uuid.NAMESPACE_URL, f"reneg/subgraphs/{self.name}/{side}/{label}")
        place = len(self.inputs if side == "in" else self.outputs)
        return {"id": str(uid), "name": label, "type": kind, "linkIds": links, "pos": [0, 20 * place]}

    def instance(self, number: int, uid: str) -> dict[str, Any]:
        """The node that stands for the subgraph."""
        values = [self.plan.graph[node]["inputs"][widget] for node, widget, _ in self.plan.widgets]
        return {
            "id": number,
            "type": uid,
            "pos": [0, 0],
            "size": [400, 130 + 40 * len(values)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": self.shown,
            "outputs": [{"name": part["name"], "type": part["type"], "links": None} for part in self.outputs],
            "title": self.name,
            "properties": {"proxyWidgets": [["-1", label] for _, _, label in self.plan.widgets]},
            "widgets_values": values,
        }


def as_object(number: int, origin: int, slot: int, target: int, into: int, kind: str) -> dict[str, Any]:
    return {
        **{"id": number, "origin_id": origin, "origin_slot": slot},
        **{"target_id": target, "target_slot": into, "type": kind},
    }


if __name__ == "__main__":
    SUBGRAPHS.mkdir(exist_ok=True)
    with open_page(sys.argv[1]) as opened:
        for title, planned in PLANS.items():
            text = json.dumps(blueprint(opened, title, planned), indent=1, ensure_ascii=False)
            (SUBGRAPHS / f"{title}.json").write_text(text + "\n", encoding="utf-8")
            print(title, flush=True)
