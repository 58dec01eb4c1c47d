"""A tuned text encoder on the tiny world: both routes, with a learned negative, and with a reward without a gradient.

    python benchmarks/texforce.py                              all of it
    python benchmarks/texforce.py --learn direct policy        some of what is learned; what was learned before is kept
    python benchmarks/texforce.py --learn                      judge what there is

Learns LoRAs by the recipes tiny-direct, tiny-policy and tiny-jpeg, three seeds each, and by 30 steps of the recipe fast
a negative for the encoder as it was and one on top of each LoRA of tiny-direct, into runs/texforce-benchmark; a
learning that was broken off goes on. Recipes were chosen on validation prompts. Judges every one on 144 test pairs,
each with a noise of its own, against the encoder as it was, by its reward and by the independent measure. Writes
benchmarks/results/texforce.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lab import BATCH, MEASURE, REWARD, means, test_pairs, world
from measure import publish, table

from reneg_core.backends.loras import merged
from reneg_core.embedding import load_embedding
from reneg_core.evaluation import Evaluation, Mode, evaluate
from reneg_core.model import Conditioning
from reneg_core.rewards import load_reward
from reneg_core.texforce import TexForceResult, load_text_lora
from reneg_core.texforce.run_config import TexForceRunConfig
from reneg_core.tiny import measure, train_prompts, validation_prompts
from reneg_core.training import Prompts, Session, Trainer
from reneg_core.training.run_config import RunConfig, load_run_config

RUNS = Path("runs/texforce-benchmark")
PRODUCT = "text-lora.safetensors"
JUDGED_SEED = 20  # noises that nothing else was judged on
LEARNED = ("direct", "policy", "jpeg")
NEGATIVE, ON_TOP = "negative", "on-top"  # for the encoder as it was; for the tuned one


def main() -> None:
    """Learn, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", nargs="*", default=[*LEARNED, NEGATIVE, ON_TOP])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for what in args.learn:
        if what == NEGATIVE:
            learn_negative(RUNS / NEGATIVE)
        for seed in args.seeds:
            if what == ON_TOP:
                learn_negative(RUNS / f"{ON_TOP}-{seed}", RUNS / f"direct-{seed}" / PRODUCT)
            elif what != NEGATIVE:
                learn(what, seed)
    found = {what: judged(what) for what in LEARNED if any(RUNS.glob(f"{what}-*/{PRODUCT}"))}
    publish("texforce", found)
    for what, one in found.items():
        rows = [(mode, *row.values()) for mode, row in one["modes"].items()]
        print(table(rows, (what, *next(iter(one["modes"].values())))))


def learn(what: str, seed: int) -> TexForceResult:
    """A LoRA by the recipe ``tiny-WHAT``."""
    config = load_run_config(f"tiny-{what}", [f"seed={seed}"], TexForceRunConfig)
    reward, folder = load_reward(config.reward), RUNS / f"{what}-{seed}"
    prompts = Prompts(train_prompts(), validation_prompts())
    session = Session(resume=True, description=config.to_yaml())
    return config.method(world()[0], reward, prompts, config.train_config(), folder, session=session).run()


def learn_negative(folder: Path, lora: Path | None = None) -> None:
    """A negative embedding by the recipe ``fast``, for the encoder as it was or with a LoRA in it."""
    config: RunConfig = load_run_config("fast", ["steps=30", f"loras={lora or ''}"])
    prompts = Prompts(train_prompts(), validation_prompts())
    model, reward = world()
    if lora:
        model = merged(model, load_text_lora(lora))
    Trainer(model, reward, prompts, config.train_config(), folder, session=Session(resume=True)).run()


def judged(what: str) -> dict[str, Any]:
    """Every LoRA of a recipe against the encoder as it was, sampled as the recipe says; with the negatives where they
    were learned for that sampling."""
    config = load_run_config(f"tiny-{what}", [], TexForceRunConfig)
    model, reward = world()[0], load_reward(config.reward)
    modes = {"none": Mode(model.encode([""]))}
    negative = _negative(NEGATIVE) if what == "direct" else None
    if negative is not None:
        modes[NEGATIVE] = Mode(negative)
    for path in sorted(RUNS.glob(f"{what}-*/{PRODUCT}")):
        name, tuned = path.parent.name, merged(model, load_text_lora(path))
        modes[name] = Mode(tuned.encode([""]), model=tuned)
        on_top = _negative(f"{ON_TOP}-{name.partition('-')[2]}") if negative is not None else None
        together = {NEGATIVE: negative, ON_TOP: on_top}
        modes |= {f"{name}+{kind}": Mode(one, model=tuned) for kind, one in together.items() if one is not None}
    measures = {REWARD: reward.score, MEASURE: measure}
    found = evaluate(model, test_pairs(2, JUDGED_SEED), modes, measures, config.sampling, batch_size=BATCH)
    contests = [(mode, "none") for mode in modes if mode != "none"]
    contests += [(mode, alone) for mode in modes if "+" in mode for alone in (NEGATIVE, mode.partition("+")[0])]
    return {
        "reward": reward.name,
        "pairs": len(found.pairs),
        "sampling": config.sampling.describe(),
        "modes": means(found),
        "against": {f"{a}>{b}": {m: against(found, m, a, b) for m in measures} for a, b in contests},
        "spent": {folder.name: spent(folder, config.batch_size) for folder in sorted(RUNS.glob(f"{what}-*"))},
    }


def _negative(name: str) -> Conditioning | None:
    path = RUNS / name / "negative.safetensors"
    return load_embedding(path).conditioning() if path.exists() else None


def against(found: Evaluation, measure: str, first: str, second: str) -> dict[str, Any]:
    """Difference with its interval, and the share of pairs that ``first`` wins."""
    difference = found.difference(measure, first, second)
    return {
        "difference": round(difference.value, 4),
        "interval": [round(bound, 4) for bound in difference.interval],
        "wins": round(found.win_rate(measure, first, second).value, 3),
    }


def spent(folder: Path, batch: int) -> dict[str, Any]:
    """Steps, trajectories, the seconds that they took, and the validation reward at the start and at best."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    rewards = [record["reward"] for record in records if record["event"] == "validation"]
    return {
        "steps": len(steps),
        "trajectories": len(steps) * batch,
        "seconds": round(sum(record["seconds"] for record in steps)),
        "validation": [round(rewards[0], 4), round(max(rewards), 4)],
    }


if __name__ == "__main__":
    main()
