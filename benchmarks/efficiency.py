"""The paper's parameter efficiency on the tiny world: the negative embedding, a LoRA on the denoiser and the whole
denoiser, at equal steps of the same objective (`reneg analyze`).

    python benchmarks/efficiency.py [--steps 60]

One training seed. Every method has three learning rates and the best of them by the validation reward, and is judged
on 72 test pairs with a noise each. Writes benchmarks/results/efficiency.json and docs/images/efficiency.png.
"""

import argparse
from pathlib import Path

import torch
from lab import MEASURE, REWARD, recipe, test_pairs, world
from measure import publish

from reneg_core.commands.analyze import table
from reneg_core.efficiency import RANK, Work, analyse
from reneg_core.evaluation import plots
from reneg_core.files import write_picture
from reneg_core.tiny import measure, train_prompts, validation_prompts
from reneg_core.training import Prompts

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "efficiency.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of every training (%(default)s)")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    model, reward = world()
    config = recipe("analysis", steps=args.steps)
    work = Work(reward, Prompts(train_prompts(), validation_prompts()), config)
    measures = {REWARD: reward.score, MEASURE: measure}

    def tell(method: str, rate: float, step: int) -> None:
        if step == config.steps:
            print(f"{method} at {rate:g}", flush=True)

    found = analyse(model, work, test_pairs(1), measures, progress=tell)
    print(table(found))
    evaluation = found.evaluation.labelled(**{REWARD: "reward", MEASURE: "independent measure"})
    chosen = found.chosen.items()
    picture = plots.efficiency(evaluation, {m: c.curve for m, c in chosen}, {m: c.parameters for m, c in chosen})
    write_picture(IMAGE, picture)
    means = {
        measure: {mode: evaluation.mean(measure, mode).value for mode in evaluation.modes}
        for measure in evaluation.measures
    }
    settings = {"steps": config.steps, "batch_size": config.batch_size, "rank": RANK, "pairs": len(evaluation.pairs)}
    publish(
        "efficiency",
        {
            **settings,
            "means": means,
            "methods": {row["method"]: row for row in found.rows()},
            "courses": [vars(course) for course in found.courses],
        },
    )


if __name__ == "__main__":
    main()
