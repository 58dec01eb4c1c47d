"""Reward reached against seconds spent on the tiny world: the paper's recipe, ours, and the sweep that chose ours.

    python benchmarks/recipes.py            the paper's recipe against the fast one
    python benchmarks/recipes.py --sweep    every setting of the sweep (about half an hour on two slow cores)

Each recipe runs with the same seed, batch of 16 and validation pairs (held-out prompts, full 30-step DDIM whatever the
training solver); seconds are those of training steps. Writes docs/images/reward-against-seconds.png.
"""

import argparse
import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from measure import publish, table

from reneg_core.backends import load_model
from reneg_core.model import Conditioning
from reneg_core.rewards import load_reward
from reneg_core.sampling import Sampling, sample
from reneg_core.tiny import measure, train_prompts, validation_prompts
from reneg_core.training import Session, TrainConfig, Trainer, split_prompts
from reneg_core.training.run_config import load_run_config

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "reward-against-seconds.png"
FAST = replace(
    load_run_config("fast").train_config(), validate_every=1000, checkpoint_every=1000, validation_pairs=1, seed=0
)
DDIM = Sampling(steps=30).at_scale(FAST.sampling.guidance.scale)
TEN, TEN_DPM = DDIM.changed(steps=10), DDIM.changed(steps=10, solver="dpmpp_2m")
PAPER = replace(FAST, learning_rate=5e-3, sampling=DDIM, window=None, points=1, through=1, steps=120)
SWEEP = {
    "window 15..30": replace(PAPER, window=(15, 30)),
    "window 6..30": replace(PAPER, window=(6, 30)),
    "window 6..30, lr 1e-2": replace(PAPER, window=(6, 30), learning_rate=1e-2),
    "window 6..30, lr 1e-2, 3 points": replace(PAPER, window=(6, 30), learning_rate=1e-2, points=3, steps=80),
    "10 steps, window 2..10, lr 1e-2": replace(PAPER, sampling=TEN, window=(2, 10), learning_rate=1e-2),
    "10 steps DPM++, window 2..10, lr 1e-2": replace(PAPER, sampling=TEN_DPM, window=(2, 10), learning_rate=1e-2),
    "10 steps DPM++, window 2..10, lr 2e-2": replace(PAPER, sampling=TEN_DPM, window=(2, 10), learning_rate=2e-2),
    "10 steps DPM++, through all, lr 1e-2": replace(
        PAPER, sampling=TEN_DPM, window=(0, 1), through=10, learning_rate=1e-2, steps=60
    ),
    "10 steps DPM++, through the last 5, lr 1e-2": replace(
        PAPER, sampling=TEN_DPM, window=(5, 6), through=5, learning_rate=1e-2, steps=80
    ),
}
VALIDATION_PAIRS = 48
CHECKS = 6


class Judge:
    """Scores embeddings on the validation pairs with the full sampler, the same for every recipe."""

    def __init__(self, model: object, reward: object) -> None:
        self.model, self.reward = model, reward
        prompts = validation_prompts()
        self.prompts = [prompts[i % len(prompts)] for i in range(VALIDATION_PAIRS)]
        self.noise, self.positive = model.noise(range(VALIDATION_PAIRS)), model.encode(self.prompts)

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor) -> tuple[float, float]:
        model = self.model
        latents = sample(model, self.positive, Conditioning(tokens), self.noise, DDIM)
        images = model.decode(latents)
        scores = self.reward.score(images, self.prompts), measure(images, self.prompts)
        return tuple(score.mean().item() for score in scores)


def run(config: TrainConfig, model: object, reward: object, judge: Judge) -> list[tuple[float, float, float]]:
    """(training seconds, reward, independent measure) at a few evenly spaced steps."""
    points, spent = [(0.0, *judge(model.encode([""]).tokens))], 0.0

    class Watch:
        on_validation = staticmethod(lambda *_: None)

        @staticmethod
        def on_step(record: dict) -> None:
            nonlocal spent
            spent += record["seconds"]
            if record["step"] % (config.steps // CHECKS) == 0:
                points.append((spent, *judge(trainer.learner.parameters["tokens"].detach())))

    with tempfile.TemporaryDirectory() as folder:
        prompts = split_prompts(train_prompts(), validation_prompts())
        trainer = Trainer(model, reward, prompts, config, folder, session=Session(Watch))
        trainer.run()
    return points


def seconds_to(points: list[tuple[float, float, float]], level: float) -> float | None:
    """Training seconds until the reward first reaches ``level``, linear between checks."""
    for (before, low, _), (after, high, _) in itertools.pairwise(points):
        if high >= level:
            return before + (after - before) * max(0.0, (level - low) / (high - low))
    return None


def plot(curves: dict[str, list[tuple[float, float, float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        bold = name in ("paper", "fast")
        seconds, rewards, _ = zip(*points, strict=True)
        axes.plot(seconds, rewards, marker="o", ms=3, lw=2.4 if bold else 1, alpha=1 if bold else 0.75, label=name)
    axes.set(xlabel="seconds of training (two slow cores)", ylabel="reward on held-out prompts")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(IMAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true")
    recipes = {"paper": PAPER, "fast": FAST, **(SWEEP if parser.parse_args().sweep else {})}
    model = load_model("tiny", device="cpu")
    reward = load_reward("tiny")
    judge = Judge(model, reward)
    curves, rows = {}, []
    for name, config in recipes.items():
        curves[name] = run(config, model, reward, judge)
        target = curves["paper"][-1][1]
        reached = seconds_to(curves[name], target)
        spent, final, independent = curves[name][-1]
        rows.append((name, f"{spent:.0f}", f"{final:.3f}", f"{independent:.3f}", f"{reached:.0f}" if reached else "-"))
        print(json.dumps({name: curves[name]}), flush=True)
    print(table(rows, ("recipe", "seconds", "reward", "independent", "s to the paper's final reward")))
    plot(curves)
    publish(
        "recipes_sweep" if len(recipes) > 2 else "recipes", {"curves": curves, "paper_final": curves["paper"][-1][1]}
    )


if __name__ == "__main__":
    main()
