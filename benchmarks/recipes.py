"""The method's own questions, answered on the tiny world with three training seeds each.

    python benchmarks/recipes.py                 every recipe (about an hour and a half on two slow cores)
    python benchmarks/recipes.py --only NAME     some of them anew; results of others are kept
    python benchmarks/recipes.py --seeds 1       some training seeds
    python benchmarks/recipes.py --plot          the pictures from the results, nothing trained

Every recipe is the demo's with other settings, for about the same seconds of training (60 of the demo's steps) where
its name does not say otherwise. It is judged on the same 144 test pairs with noises of their own by the demo's
sampling, against the strongest text at the guidance scale that serves that best. On the way, reward and independent
measure of 48 validation pairs show whether the reward is climbed at the measure's cost. Writes
benchmarks/results/recipes.json and docs/images/recipes.png, docs/images/hacking.png.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lab import MEASURE, REWARD, Watcher, encoded, judge, learn, means, recipe, test_pairs, validation_pairs
from measure import RESULTS, publish, table

from reneg_core.evaluation import Evaluation, Mode
from reneg_core.evaluation.modes import exaggerate
from reneg_core.evaluation.statistics import estimate
from reneg_core.sampling import Jitter
from reneg_core.tiny.rivals import rivals
from reneg_core.training import TrainConfig

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
SEEDS, CHECKS = (0, 1, 2), 4
OURS = recipe(steps=60)
FIXED = replace(OURS, jitter=Jitter())
ONE_STEP = replace(FIXED, through=1, window=(2, 10), steps=120)
DDIM_30 = OURS.sampling.changed(solver="ddim", steps=30, spacing="model")
PAPER = replace(FIXED, sampling=DDIM_30, window=None, through=1, learning_rate=5e-3, init="", steps=45)
OURS_NAME, LONG = "ours", "ours, three times as long"


def recipes() -> dict[str, TrainConfig]:
    """By name, each changed in one or two things."""
    return {
        OURS_NAME: OURS,
        "ours, one sampler": FIXED,
        "ours, rate 1e-2": replace(OURS, learning_rate=1e-2),
        "ours, rate 4e-2": replace(OURS, learning_rate=4e-2),
        "ours, from the empty prompt": replace(OURS, init=""),
        "ours, from the strongest text": replace(OURS, init=rivals()["best_text"].text),
        LONG: replace(OURS, steps=180),
        f"{LONG}, norm limit 0.5": replace(OURS, steps=180, norm_limit=0.5),
        "through the last 3 steps": replace(FIXED, window=(7, 8), through=3, steps=100),
        "through 3 steps, from anywhere": replace(FIXED, window=(0, 8), through=3, steps=120),
        "one step, window 2..10": ONE_STEP,
        "one step, window 7..10": replace(ONE_STEP, window=(7, 10)),
        "one step, window 2..10, 3 points": replace(ONE_STEP, points=3, steps=80),
        "paper": PAPER,
        "paper, rate 2e-2": replace(PAPER, learning_rate=2e-2),
        "paper, rate 2e-2, window 6..30": replace(PAPER, learning_rate=2e-2, window=(6, 30), steps=60),
    }


def run(config: TrainConfig) -> dict[str, Any]:
    """Learn, with a look at the validation pairs on the way, and judge on the test pairs."""
    curve = [{"step": 0, "seconds": 0.0, **_looked_at(Mode(encoded([config.init])))}]

    def tell(step: int, spent: float, trainer: Any) -> None:
        curve.append(
            {
                "step": step,
                "seconds": round(spent, 1),
                **_looked_at(Mode(trainer.learner.negative(torch.device("cpu")))),
            }
        )

    embedding, seconds = learn(
        replace(config, validate_every=config.steps), Watcher(max(1, config.steps // CHECKS), tell)
    )
    found = judge(test_pairs(2, seed=4), {"learned": Mode(embedding.conditioning())}, OURS.sampling)
    return {
        "seconds": round(seconds, 1),
        **means(found)["learned"],
        "curve": curve,
        "scores": _rounded(found, "learned"),
    }


def strongest_text() -> list[list[float]]:
    """The measure of the strongest text on the same pairs, at its best guidance scale."""
    best, null = rivals()["best_text"], encoded([""])
    row = exaggerate(null, encoded([best.text]), best.strength)
    found = judge(test_pairs(2, seed=4), {"best_text": Mode(row)}, OURS.sampling.at_scale(best.guidance_scale))
    return _rounded(found, "best_text")


def _rounded(found: Evaluation, mode: str) -> list[list[float]]:
    return [[round(score, 4) for score in row] for row in found.scores[MEASURE][mode]]


@torch.no_grad()
def _looked_at(mode: Mode) -> dict[str, float]:
    found = judge(validation_pairs(2, seed=5), {"learned": mode}, OURS.sampling)
    return means(found)["learned"]


def main() -> None:
    """Run what is asked for, keep what is there, write the table and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=None, choices=list(recipes()), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args()
    for seed in () if args.plot else args.seeds:
        for name in args.only or recipes():
            if args.only or str(seed) not in _kept().get(name, {"runs": {}})["runs"]:
                _keep(name, seed, run(replace(recipes()[name], seed=seed)))
    found = _kept()
    plot(found)
    head = ("recipe", "seconds", "reward", "measure (each seed)")
    print(table([_row(name, entry["runs"].values()) for name, entry in found.items()], head))


def _results() -> dict[str, Any]:
    path = RESULTS / "recipes.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {"recipes": {}}


def _kept() -> dict[str, Any]:
    return _results()["recipes"]


def _keep(name: str, seed: int, result: dict[str, Any]) -> None:
    best = _results().get("best_text") or strongest_text()
    found = _kept()  # read as late as possible: seeds may run beside each other
    found.setdefault(name, {"settings": _settings(recipes()[name]), "runs": {}})["runs"][str(seed)] = result
    found = {known: found[known] for known in recipes() if known in found}
    publish("recipes", {"recipes": found, "best_text": best, "beside": _beside(found, best)})


def _beside(found: Mapping[str, Any], best: list[list[float]]) -> dict[str, dict[str, list[float]]]:
    """Every recipe's measure less that of ours and of the strongest text: mean and interval over prompts and noises,
    averaged over seeds."""
    return {
        name: {
            "ours": _gain(entry, found[OURS_NAME]["runs"]),
            "best_text": _gain(entry, {seed: {"scores": best} for seed in entry["runs"]}),
        }
        for name, entry in found.items()
    }


def _gain(entry: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    seeds = sorted(entry["runs"].keys() & other.keys())
    if not seeds:
        return []
    gain = estimate(np.mean([np.subtract(entry["runs"][seed]["scores"], other[seed]["scores"]) for seed in seeds], 0))
    return [round(value, 4) for value in (gain.value, *gain.interval)]


def _settings(config: TrainConfig) -> dict[str, Any]:
    names = ("learning_rate", "window", "points", "through", "steps", "init", "norm_limit")
    values = {name: getattr(config, name) for name in names}
    return {**values, "sampling": config.sampling.describe(), "jitter": config.jitter.to_mapping()}


def _row(name: str, runs: Any) -> list[object]:
    runs = list(runs)
    return [
        name,
        f"{min(run['seconds'] for run in runs):.0f}",
        f"{sum(run[REWARD] for run in runs) / len(runs):.3f}",
        " ".join(f"{run[MEASURE]:.3f}" for run in runs),
    ]


def plot(found: Mapping[str, Any]) -> None:
    """Reward against seconds for every recipe, and reward against measure over a long training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, entry) in enumerate(found.items()):
        curves = [run["curve"] for run in entry["runs"].values()]
        seconds = [point["seconds"] for point in min(curves, key=lambda curve: curve[-1]["seconds"])]
        reward = _mean_of(curves, REWARD)
        bold = name in ("ours", "paper")
        style = {"lw": 2.6 if bold else 1.1, "alpha": 1 if bold else 0.8, "ls": ("-", "--", ":")[index // 10 % 3]}
        axes.plot(seconds, reward, marker="o", ms=3, label=name, color=f"C{index % 10}", **style)
    axes.set(
        xlabel="seconds of training (the fastest of the seeds)",
        ylabel="reward on validation prompts (mean of the seeds)",
    )
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    _save(FigureCanvasAgg(figure), "recipes.png")
    long = [name for name in (LONG, f"{LONG}, norm limit 0.5") if name in found]
    if long:
        _plot_hacking({name: found[name] for name in long})


def _plot_hacking(found: Mapping[str, Any]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), (REWARD, MEASURE), strict=True):
        for index, (name, entry) in enumerate(found.items()):
            for run in entry["runs"].values():
                axes.plot(*zip(*[(p["step"], p[key]) for p in run["curve"]], strict=True), color=f"C{index}", lw=1.2)
            axes.plot([], [], color=f"C{index}", label=name)
        axes.set(xlabel="training step", title="reward (climbed)" if key == REWARD else "independent measure")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _save(FigureCanvasAgg(figure), "hacking.png")


def _mean_of(curves: list[list[dict[str, float]]], key: str) -> list[float]:
    return [sum(point[key] for point in points) / len(points) for points in zip(*curves, strict=True)]


def _save(canvas: Any, name: str) -> None:
    canvas.draw()
    canvas.figure.savefig(IMAGES / name)


if __name__ == "__main__":
    main()
