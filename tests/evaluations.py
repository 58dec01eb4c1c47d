"""A finished evaluation and a training's records, made from closed forms."""

import torch

from reneg_core.evaluate import Evaluation, Pictures

SHIFT = {"none": 0.0, "text": 0.1, "embedding": 0.3}
LABELS = {"none": "empty prompt", "text": '"bad & ugly"', "independent": "pixels", "reward": "network"}


def evaluation(prompts: int = 24, seeds: int = 2, pictures: bool = True) -> Evaluation:
    """Prompt p, seed s scores ``p / 100 + s / 10 + shift`` by the reward; the independent measure halves the shift."""
    names = tuple(f"prompt <{p}>" for p in range(prompts))
    scores = {
        measure: {
            mode: [[p / 100 + s / 10 + factor * shift for s in range(seeds)] for p in range(prompts)]
            for mode, shift in SHIFT.items()
        }
        for measure, factor in {"reward": 1.0, "independent": 0.5}.items()
    }
    images = {mode: torch.full((2, 3, 8, 12), 0.2 + shift) for mode, shift in SHIFT.items()}
    kept = Pictures(((0, 0), (prompts // 2, 0)), images) if pictures else Pictures()
    settings = {"model": "tiny", "steps": 30, "height": 8, "width": 12}
    return Evaluation(names, tuple(range(seeds)), scores, LABELS, settings, {"torch": "2"}, 0.95, kept)


def records(steps: int = 40, watch: bool = True) -> list[dict]:
    """Reward rises by 0.01 a step; validations every 10 steps, each a new best."""
    found = []
    for step in range(1, steps + 1):
        rate = 0.01 * (1 - step / steps)
        found.append({"event": "step", "step": step, "reward": step / 100, "learning_rate": rate, "seconds": 1.0})
        if step % 10 == 0:
            seen = {"watch": step / 1000 if watch else None, "best": step <= 30}
            found.append({"event": "validation", "step": step, "reward": step / 100, **seen})
    return found
