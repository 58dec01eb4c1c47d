"""One file for every sampler: a negative learned with one sampler, and one learned with many, judged on all.

    python benchmarks/samplers.py      (about half an hour on two slow cores)

Every cell is a solver, a number of steps, a spacing and a guidance scale; 144 test pairs with noises of their own, the
same in every cell. The rival is the strongest text of the search (`benchmarks/rival.py`), at the cell's guidance scale
like everything else. Writes benchmarks/results/samplers.json.
"""

from dataclasses import replace
from itertools import product

from lab import MEASURE, encoded, figures, judge, learn, means, recipe, test_pairs
from measure import publish, table

from reneg_core.evaluation import Mode
from reneg_core.evaluation.modes import exaggerate
from reneg_core.sampling import Jitter, Sampling
from reneg_core.tiny.rivals import rivals

SOLVERS = (("euler", 10), ("euler", 20), ("euler", 30), ("dpmpp_2m", 10), ("dpmpp_2m", 20))
SPACINGS, SCALES = ("trailing", "karras"), (2.0, 3.0, 5.0)


def learned() -> dict[str, tuple[str, Mode]]:
    """The same recipe with one sampler and with the demo's jitter."""
    config = recipe()
    fixed, many = replace(config, jitter=Jitter()), config
    return {
        "fixed": (config.sampling.describe(), Mode(learn(fixed)[0].conditioning())),
        "jittered": (str(config.jitter.to_mapping()), Mode(learn(many)[0].conditioning())),
    }


def main() -> None:
    """Judge every cell and write the table."""
    best, files = rivals()["best_text"], learned()
    null = encoded([""])
    modes = {"none": Mode(null), "best_text": Mode(exaggerate(null, encoded([best.text]), best.strength))}
    modes |= {name: mode for name, (_, mode) in files.items()}
    pairs, rows = test_pairs(2, seed=3), []
    for (solver, steps), spacing, scale in product(SOLVERS, SPACINGS, SCALES):
        sampling = Sampling(solver, steps, spacing).at_scale(scale)
        found = judge(pairs, modes, sampling)
        against = {name: figures(found, name, "best_text") for name in files}
        rows.append({"sampling": sampling.describe(), "means": means(found), "against_best_text": against})
        print(rows[-1], flush=True)
    counts = {name: _counted([row["against_best_text"][name]["interval"] for row in rows]) for name in files}
    publish(
        "samplers",
        {"pairs": len(pairs), "learned_with": {n: words for n, (words, _) in files.items()}, "counts": counts}
        | {"cells": rows},
    )
    head = ("sampling", *modes, *(f"{name} - best text" for name in files))
    print(table([_row(row, modes, files) for row in rows], head))


def _counted(intervals: list[list[float]]) -> dict[str, int]:
    return {
        "cells": len(intervals),
        "better": sum(low > 0 for low, _ in intervals),
        "worse": sum(high < 0 for _, high in intervals),
    }


def _row(row: dict, modes: dict, files: dict) -> list[str]:
    against = (row["against_best_text"][name] for name in files)
    return [
        row["sampling"],
        *(f"{row['means'][mode][MEASURE]:.3f}" for mode in modes),
        *(f"{a['difference']:+.3f} ({a['interval'][0]:+.3f} to {a['interval'][1]:+.3f})" for a in against),
    ]


if __name__ == "__main__":
    main()
