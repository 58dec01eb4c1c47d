"""The demo's claim with other training seeds: does the learned negative beat the strongest text each time?

    python benchmarks/claim.py      (about twenty minutes on two slow cores)

Trains by the demo's recipe with seeds 0, 1 and 2 and judges each as `reneg demo` does. Writes
benchmarks/results/claim.json.
"""

import argparse

from lab import MEASURE, figures, learn, means, recipe, world
from measure import publish, table

from reneg_core.commands.demo import compare_negatives

AGAINST = ("none", "text", "best_text")


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runs = []
    for seed in parser.parse_args().seeds:
        config = recipe(seed=seed)
        embedding, seconds = learn(config)
        found = compare_negatives(*world(), embedding, config)
        against = {
            f"{mode}>{rival}": figures(found, mode, rival) for mode in ("embedding", "adapted") for rival in AGAINST
        }
        against["adapted>embedding"] = figures(found, "adapted", "embedding")
        samplings = {mode: sampling.describe() for mode, sampling in found.samplings.items()}
        runs.append({"seed": seed, "seconds": round(seconds), "means": means(found), "against": against})
        runs[-1] |= {"samplings": samplings, "pairs": len(found.pairs)}
        print(runs[-1], flush=True)
    publish("claim", {"runs": runs})
    modes = list(runs[0]["means"])
    head = ("seed", *modes, "embedding - best text")
    print(table([_row(run, modes) for run in runs], head))


def _row(run: dict, modes: list[str]) -> list[object]:
    best = run["against"]["embedding>best_text"]
    low, high = best["interval"]
    measured = (f"{run['means'][mode][MEASURE]:.3f}" for mode in modes)
    return [run["seed"], *measured, f"{best['difference']:+.3f} ({low:+.3f} to {high:+.3f}), wins {best['wins']:.0%}"]


if __name__ == "__main__":
    main()
