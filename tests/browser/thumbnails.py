"""Makes the templates' thumbnails: what each draws on the tiny world, with the negative that the first one learns:
``python tests/browser/thumbnails.py URL_OF_A_RUNNING_COMFYUI``.

Of the ControlNet template there is no such picture: it keeps that of its graph, which ``convert.py`` takes.
"""

import io
import json
import math
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "host"))

import graphs

SIZE, GAP, GROUND = (960, 640), 20, "#1f2328"
FIRST = "0_learn_a_negative_in_two_minutes"
LEARNED = "tiny_negative/negative.safetensors"
WHOLE_WAY = {"last_steps": 10, "through": 0, "points": 1}
TRAINING = {"run_name": "thumbnail", "steps": 40, "learning_rate": 0.03, "patience": 0, **WHOLE_WAY}
CHANGES: dict[str, dict[str, Any]] = {
    "1_use_embedding_sd15": {"batch_size": 6},
    "2_handcrafted_against_reneg": {"batch_size": 6},
    "3_score_and_pick_best": {"batch_size": 8},
    "4_train_embedding": {},
    "5_adapt_per_prompt": {"pictures": 6, **WHOLE_WAY},
    "7_sd21_guider": {"batch_size": 6},
    "8_compare_negatives": {"seeds": 2},
    "9_blend_and_mixed_rewards": {"batch_size": 8},
}
GRIDS = {FIRST, "8_compare_negatives"}
"""Templates whose first wide picture says it all; of the others, so many small pictures in so many columns:"""
SMALL = {
    "1_use_embedding_sd15": (6, 3),
    "2_handcrafted_against_reneg": (12, 6),
    "3_score_and_pick_best": (8, 4),
    "4_train_embedding": (8, 4),
    "5_adapt_per_prompt": (6, 3),
    "7_sd21_guider": (6, 3),
    "9_blend_and_mixed_rewards": (8, 4),
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


def side_by_side(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Small pictures in rows; those of the world itself are enlarged without smoothing."""
    rows = math.ceil(len(pictures) / columns)
    side = min((SIZE[0] - GAP) // columns, (SIZE[1] - GAP) // rows) - GAP
    cells = [resized(picture, side / max(picture.size)) for picture in pictures]
    width, height = (max(lengths) + GAP for lengths in zip(*(cell.size for cell in cells), strict=True))
    left, top = (SIZE[0] - columns * width + GAP) // 2, (SIZE[1] - rows * height + GAP) // 2
    canvas = Image.new("RGB", SIZE, GROUND)
    for index, cell in enumerate(cells):
        canvas.paste(cell, (left + index % columns * width, top + index // columns * height))
    return canvas


def alone(picture: Image.Image) -> Image.Image:
    """The upper part of a grid."""
    return resized(picture, SIZE[0] / picture.width).crop((0, 0, *SIZE))


def resized(picture: Image.Image, factor: float) -> Image.Image:
    how = Image.Resampling.NEAREST if picture.width <= 64 else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), how)


def thumbnail(server: Any, name: str, graph: dict[str, Any]) -> None:
    pictures = drawn(server, graph)
    if name in GRIDS:
        made = alone(next(picture for picture in pictures if picture.width > 300))
    else:
        count, columns = SMALL[name]
        made = side_by_side([picture for picture in pictures if picture.width <= 300][:count], columns)
    made.save(graphs.API.parent / f"{name}.jpg", quality=88)
    print(name, flush=True)


if __name__ == "__main__":
    server = SimpleNamespace(url=sys.argv[1])
    thumbnail(server, FIRST, json.loads((graphs.API / f"{FIRST}.json").read_text()))
    for name, changes in CHANGES.items():
        thumbnail(server, name, graphs.tiny(name, TRAINING, **{"embedding_name": LEARNED, "steps": 10, **changes}))
