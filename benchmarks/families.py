"""Every model family on a small random pipeline of its real architecture: how far its pictures are from those of
diffusers' own pipeline, its gradients from finite differences, and what a short training does.

    python benchmarks/families.py [--steps 10] [--only ltx zeroscope]

Random weights say nothing about how pictures look; they show that a family's mathematics is right. fp32 on the CPU.
"""

import argparse
import inspect
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, publish, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from agreement import CLIPS, SIZE, gradient_error, picture_difference, sampling_of
from pipelines import BUILDERS, build

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.rewards import load_reward
from reneg_core.training import Prompts, TrainConfig, Trainer

LABELS = {
    "sd15": "Stable Diffusion 1.x",
    "sd21": "Stable Diffusion 2.x (v-prediction)",
    "sdxl": "Stable Diffusion XL",
    "koala": "the same without a middle block (KOALA)",
    "pixart": "PixArt-alpha",
    "pixart_told": "PixArt-alpha that is told the size",
    "pixart_sigma": "PixArt-Sigma",
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "flux_guided": "Flux, guidance-distilled",
    "chroma": "Chroma",
    "ltx": "LTX-Video",
    "zeroscope": "ZeroScope",
}
PROMPTS = Prompts(["a red fox", "blue sea", "the sun", "rain on stone"], ["a green hill", "snow"])


def trained(model: DiffusersModel, steps: int) -> dict[str, float]:
    """The validation reward (sharpness) before and after ``steps`` steps through the whole schedule."""
    config = TrainConfig.from_mapping({
        "steps": steps, "batch_size": 4, "micro_batch": 4, "window": [0, 1], "points": 1, "through": 0,
        "learning_rate": 0.05, "weight_decay": 0, "validation_pairs": 8, "validate_every": steps, "patience": 0,
        "sampling": sampling_of(model).to_mapping(),
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = Trainer(model, load_reward("sharpness"), PROMPTS, config, folder).run()
    return {"before": result.start_reward, "after": result.best_reward}


def measured(name: str, steps: int) -> dict[str, Any]:
    model = wrap(build(name), name)
    parts = [part for part in ("tokens", "pooled") if part in model.widths]
    return {
        "label": LABELS[name],
        "pipeline": type(model.pipeline).__name__,
        "scheduler": type(model.pipeline.scheduler).__name__,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        **({"clip": [CLIPS[name].frames, CLIPS[name].height, CLIPS[name].width]} if name in CLIPS else {}),
        "lines": len(Path(inspect.getfile(type(model))).read_text(encoding="utf-8").splitlines()),
        "picture_difference": {kind: picture_difference(model, kind) for kind in ("text", "embedding")},
        "gradient_error": {part: [gradient_error(model, part, through) for through in (1, 2)] for part in parts},
        "training": trained(model, steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of the training (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=BUILDERS, help="measure these, keep the others' figures")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    known = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))["families"] if args.only else {}
    chosen = args.only or BUILDERS
    families = {name: measured(name, args.steps) if name in chosen else known[name] for name in BUILDERS}
    rows = [
        (
            name,
            f"{max(one['picture_difference'].values()):.1e}",
            ", ".join(f"{part} {max(errors):.1e}" for part, errors in one["gradient_error"].items()),
            f"{one['training']['before']:.4f} to {one['training']['after']:.4f}",
        )
        for name, one in families.items()
    ]
    print(table(rows, ("family", "largest pixel difference", "gradient error", "reward")))
    publish("families", {"size": [SIZE.height, SIZE.width], "steps": args.steps, "families": families})


if __name__ == "__main__":
    main()
