"""The demo's claim with other training seeds: does the learned negative beat the strongest text each time?

    python benchmarks/claim.py               (about twenty minutes on two slow cores)
    python benchmarks/claim.py --seeds 1     some of them; results of others are kept
    python benchmarks/claim.py --demo demo-output      the figures of a demo that has been run

Trains by the demo's recipe with seeds 0, 1 and 2 and judges each as `reneg demo` does. The demo has seed 0; with
another number of threads its sums round otherwise, and it learns another embedding, as another seed would. Writes
benchmarks/results/claim.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lab import MEASURE, figures, learn, recipe, world
from measure import RESULTS, publish, table

from reneg_core.commands.demo import compare_negatives
from reneg_core.evaluation import Evaluation

CONTESTS = [
    *((mode, rival) for mode in ("embedding", "adapted") for rival in ("none", "text", "best_text")),
    ("text", "none"),
    ("best_text", "none"),
    ("best_text", "text"),
    ("adapted", "embedding"),
]


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--demo", type=Path, metavar="FOLDER")
    args = parser.parse_args()
    if args.demo:
        publish("claim", {"runs": _kept(), "demo": _of_demo(args.demo)})
        return
    for seed in args.seeds:
        config = recipe(seed=seed)
        embedding, seconds = learn(config)
        found = compare_negatives(*world(), embedding, config)
        run = {"seed": seed, "seconds": round(seconds), "pairs": len(found.pairs), **_found(found)}
        others = [other for other in _kept() if other["seed"] != seed]
        publish("claim", {**_results(), "runs": sorted([*others, run], key=lambda one: one["seed"])})
    runs = _kept()
    modes = list(runs[0]["modes"])
    print(table([_row(run, modes) for run in runs], ("seed", *modes, "embedding - best text")))


def _results() -> dict[str, Any]:
    path = RESULTS / "claim.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}


def _kept() -> list[dict[str, Any]]:
    return _results()["runs"]


def _of_demo(folder: Path) -> dict[str, Any]:
    """What a finished ``reneg demo`` found, and the seconds that its training steps took."""
    found = Evaluation.from_json(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = sum(record["seconds"] for record in records if record["event"] == "step")
    return {"seconds": round(seconds), "pairs": len(found.pairs), **_found(found)}


def _found(found: Evaluation) -> dict[str, Any]:
    summary = found.to_json()
    return {
        "modes": {mode: {**summary[mode], "sampling": found.samplings[mode].describe()} for mode in found.modes},
        "scales": {mode: sampling.guidance.scale for mode, sampling in found.samplings.items()},
        "against": {f"{first}>{second}": figures(found, first, second) for first, second in CONTESTS},
    }


def _row(run: dict[str, Any], modes: list[str]) -> list[object]:
    best = run["against"]["embedding>best_text"]
    low, high = best["interval"]
    measured = (f"{run['modes'][mode][f'{MEASURE}_mean']:.3f}" for mode in modes)
    return [run["seed"], *measured, f"{best['difference']:+.3f} ({low:+.3f} to {high:+.3f}), wins {best['wins']:.0%}"]


if __name__ == "__main__":
    main()
