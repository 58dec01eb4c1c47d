"""Makes the templates' thumbnails: what each draws on the tiny world, with the negative that the first one learns:
``python tests/browser/thumbnails.py URL_OF_A_RUNNING_COMFYUI [NAME ...]``.

Seeds count from 0. Of the ControlNet template there is no such picture, because the tiny world has no ControlNet: it
keeps that of its graph, which ``convert.py`` takes.
"""

import io
import json
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

import graphs

Images = list[Image.Image]
SIZE, GAP, GROUND, WORDS_WIDTH = (960, 640), 14, "#1f2328", 150
FIRST = "0_learn_a_negative_in_two_minutes"
LEARNED = "tiny_negative/negative.safetensors"
SCENES = (
    "a red circle on a blue background",
    "a yellow diamond on a cyan background",
    "a green ring on a white background",
    "a purple cross on a yellow background",
)


def sampled(server: Any, prompt: str, count: int, negative: str | None, **options: Any) -> Images:
    """``count`` pictures of one noise batch. negative: a text, or None for the learned one; options: of the sampler."""
    text = {"class_type": "CLIPTextEncode", "inputs": {"text": negative or "", "clip": ["1", 1]}}
    graph = {
        "1": {"class_type": "ReNegLoadTinyWorld", "inputs": {"pictures": count}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": prompt, "clip": ["1", 1]}},
        "3": text,
        "4": {
            "class_type": "ReNegLoadEmbedding",
            "inputs": {"embedding_name": LEARNED, "strength": options.pop("strength", 1.0), "clip": ["1", 1]},
        },
        "5": {
            "class_type": "KSampler",
            "inputs": {
                **{"model": ["1", 0], "positive": ["2", 0], "negative": ["4" if negative is None else "3", 0]},
                **{"latent_image": ["1", 3], "seed": 0, "steps": 10, "cfg": 3.0, "denoise": 1.0},
                **{"sampler_name": "dpmpp_2m", "scheduler": "karras", **options},
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
    }
    return drawn(server, graph)


def learning(server: Any) -> Image.Image:
    drawn(server, json.loads((graphs.API / f"{FIRST}.json").read_text()))
    rows = {"empty prompt": "", "words": graphs.WORDS, "learned": None}
    return table(
        {
            label: [p for scene in SCENES[:2] for p in sampled(server, scene, 3, negative)]
            for label, negative in rows.items()
        }
    )


def any_sampler(server: Any) -> Image.Image:
    rows = {"empty prompt": "", "learned": None}
    return table({label: sampled(server, SCENES[1], 4, negative) for label, negative in rows.items()})


def strengths(server: Any) -> Image.Image:
    return table(
        {f"strength {value:g}": sampled(server, SCENES[0], 6, None, strength=value) for value in (0.0, 0.5, 1.0, 1.5)}
    )


def best_of_a_batch(server: Any) -> Image.Image:
    graph = graphs.tiny("3_score_and_pick_best", batch_size=8, steps=10, embedding_name="words.safetensors")
    labelled = [picture for picture in drawn(server, graph) if picture.width > 64][:8]
    return table({"": labelled[:4], " ": labelled[4:]})


def training(server: Any) -> Image.Image:
    """The first template's training, which is finished by now: what its node hands on."""
    graph = json.loads((graphs.API / f"{FIRST}.json").read_text())
    [trained] = [key for key, node in graph.items() if node["class_type"] == "ReNegTrain"]
    needed, left = {}, [trained]
    while left:
        key = left.pop()
        needed[key] = graph[key]
        left += [value[0] for value in graph[key]["inputs"].values() if isinstance(value, list)]
    previews = {f"9{slot}": {"class_type": "PreviewImage", "inputs": {"images": [trained, slot]}} for slot in (2, 3)}
    curve, *pictures = drawn(server, needed | previews)
    half = len(pictures) // 2
    return below(table({"start": pictures[:half][:7], "now": pictures[half:][:7]}, height=330), curve)


def adapted(server: Any) -> Image.Image:
    inputs = {"pictures": 6, "seed": 0, "last_steps": 10, "through": 0, "points": 1, "learning_rate": 0.02}
    graph = graphs.tiny("5_adapt_per_prompt", embedding_name="words.safetensors", **inputs)
    before = [picture for seed in range(6) for picture in sampled(server, graphs.SCENE, 1, graphs.WORDS, seed=seed)]
    return table({"words": before, "adapted": drawn(server, graph)[:6]})


def guider(server: Any) -> Image.Image:
    graph = graphs.tiny("7_sd21_guider", batch_size=4, steps=10, embedding_name=LEARNED)
    for node in graph.values():
        node["inputs"] |= {"text": SCENES[2]} if "text" in node["inputs"] else {}
        node["inputs"] |= {"noise_seed": 0} if "noise_seed" in node["inputs"] else {}
    return table({"CFGGuider": sampled(server, SCENES[2], 4, ""), "ReNeg Guider": drawn(server, graph)[:4]})


def comparison(server: Any) -> Image.Image:
    graph = graphs.tiny("8_compare_negatives", seeds=8, embedding_name=LEARNED, prompts="\n".join(SCENES))
    grid, chart = sorted((p for p in drawn(server, graph) if p.width > 300), key=lambda picture: -picture.height)
    return below(resized(chart, SIZE[0] / chart.width), grid)


def blends(server: Any) -> Image.Image:
    rows = {}
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        graph = graphs.tiny("9_blend_and_mixed_rewards", batch_size=6, steps=10, embedding_name=LEARNED, weight=weight)
        [decoded] = [key for key, node in graph.items() if node["class_type"] == "VAEDecode"]
        graph["99"] = {"class_type": "PreviewImage", "inputs": {"images": [decoded, 0]}}
        rows[f"{weight:.0%} words"] = [picture for picture in drawn(server, graph) if picture.width <= 64][:6]
    return table(rows)


MADE = {
    FIRST: learning,
    "1_use_embedding_sd15": any_sampler,
    "2_sampler_node_sd15": strengths,
    "3_score_and_pick_best": best_of_a_batch,
    "4_train_embedding": training,
    "5_adapt_per_prompt": adapted,
    "7_sd21_guider": guider,
    "8_compare_negatives": comparison,
    "9_blend_and_mixed_rewards": blends,
}


def drawn(server: Any, graph: dict[str, Any]) -> list[Image.Image]:
    """Every picture that a graph saves or shows, in the order of its nodes."""
    answer = graphs.request(server, "/prompt", {"prompt": graph})
    entry = graphs.wait(server, answer["prompt_id"], 900)
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    shown = [entry["outputs"].get(key, {}).get("images", []) for key in sorted(graph, key=int)]
    return [fetched(server, item) for items in shown for item in items]


def fetched(server: Any, item: dict[str, str]) -> Image.Image:
    query = urllib.parse.urlencode({k: item[k] for k in ("filename", "subfolder", "type")})
    with urllib.request.urlopen(f"{server.url}/view?{query}") as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def table(rows: dict[str, Images], height: int = SIZE[1]) -> Image.Image:
    """A row per label; pictures of the world itself are enlarged without smoothing."""
    columns, words = max(map(len, rows.values())), WORDS_WIDTH if any(map(str.strip, rows)) else 0
    wide, high = next(iter(rows.values()))[0].size
    factor = min((SIZE[0] - words - GAP) / columns - GAP, (height / len(rows) - GAP) * wide / high - GAP) / wide
    cell = (round(wide * factor), round(high * factor))
    canvas = Image.new("RGB", (SIZE[0], height), GROUND)
    left = (SIZE[0] - words - columns * (cell[0] + GAP) + GAP) // 2
    top = (height - len(rows) * (cell[1] + GAP) + GAP) // 2
    for number, (label, pictures) in enumerate(rows.items()):
        y = top + number * (cell[1] + GAP)
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(21)
        draw.text((left, y + cell[1] // 2), label, "#d0d7de", font, anchor="lm")
        for column, picture in enumerate(pictures):
            canvas.paste(resized(picture, factor), (left + words + column * (cell[0] + GAP), y))
    return canvas


def below(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """One over the other, as much of the lower as there is room for."""
    canvas = Image.new("RGB", SIZE, "white")
    canvas.paste(upper)
    room = SIZE[1] - upper.height
    lower = resized(lower, SIZE[0] / lower.width if lower.height > lower.width else room / lower.height)
    canvas.paste(lower.crop((0, 0, lower.width, room)), ((SIZE[0] - lower.width) // 2, upper.height))
    return canvas


def resized(picture: Image.Image, factor: float) -> Image.Image:
    how = Image.Resampling.NEAREST if picture.width <= 64 else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), how)


if __name__ == "__main__":
    host = SimpleNamespace(url=sys.argv[1])
    for name in sys.argv[2:] or MADE:
        MADE[name](host).save(graphs.API.parent / f"{name}.jpg", quality=88)
        print(name, flush=True)
