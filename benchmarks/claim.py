"""The demo's claim with other training seeds: does the learned negative beat the strongest text each time?

    python benchmarks/claim.py      (about twenty minutes on two slow cores)

Trains by the demo's recipe with seeds 0, 1 and 2 and judges each as `reneg demo` does; seed 0 is the demo. Writes
benchmarks/results/claim.json.
"""

import argparse
from typing import Any

from lab import MEASURE, figures, learn, recipe, world
from measure import publish, table

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
    runs = []
    for seed in parser.parse_args().seeds:
        config = recipe(seed=seed)
        embedding, seconds = learn(config)
        found = compare_negatives(*world(), embedding, config)
        runs.append({"seed": seed, "seconds": round(seconds), "pairs": len(found.pairs), **_found(found)})
        print(runs[-1], flush=True)
        publish("claim", {"runs": runs})
    modes = list(runs[0]["modes"])
    print(table([_row(run, modes) for run in runs], ("seed", *modes, "embedding - best text")))


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
