"""A tuned text encoder on the tiny world: both routes, with a learned negative, and with a reward without a gradient.

    python benchmarks/texforce.py                              all of it
    python benchmarks/texforce.py --learn direct policy        some of what is learned; what was learned before is kept
    python benchmarks/texforce.py --learn                      judge what there is

Learns LoRAs by the recipes tiny-direct, tiny-policy (three seeds each) and tiny-jpeg, and a negative by 30 steps of the
recipe fast, into runs/texforce-benchmark; a learning that was broken off goes on. Recipes were chosen on validation
prompts. Judges every one on 144 test pairs, each with a noise of its own, against the encoder as it was, by the reward
and by the independent measure. Writes benchmarks/results/texforce.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lab import MEASURE, REWARD, judge, means, test_pairs, world
from measure import publish, table

from reneg_core.backends.loras import merged
from reneg_core.embedding import load_embedding
from reneg_core.evaluation import Evaluation, Mode
from reneg_core.rewards import load_reward
from reneg_core.texforce import TexForceResult, load_text_lora
from reneg_core.texforce.run_config import TexForceRunConfig
from reneg_core.tiny import train_prompts, validation_prompts
from reneg_core.training import Prompts, Session, Trainer
from reneg_core.training.run_config import RunConfig, load_run_config

RUNS = Path("runs/texforce-benchmark")
SEEDS = (0, 1, 2)
JUDGED_SEED = 20  # noises that nothing else was judged on
ROUTES = ("direct", "policy")
JPEG = "jpeg"


def main() -> None:
    """Learn, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learn", nargs="*", default=["direct", "policy", JPEG, "negative"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    args = parser.parse_args()
    for what in args.learn:
        if what == "negative":
            learn_negative()
        else:
            for seed in args.seeds[:1] if what == JPEG else args.seeds:
                learn(what, seed)
    found = judged()
    publish("texforce", found)
    print(table([(mode, *row.values()) for mode, row in found["modes"].items()], ("mode", REWARD, MEASURE)))


def learn(what: str, seed: int) -> TexForceResult:
    """A LoRA by the recipe ``tiny-WHAT``."""
    config = load_run_config(f"tiny-{what}", [f"seed={seed}"], TexForceRunConfig)
    reward, folder = load_reward(config.reward), RUNS / f"{what}-{seed}"
    prompts = Prompts(train_prompts(), validation_prompts())
    session = Session(resume=True, description=config.to_yaml())
    return config.method(world()[0], reward, prompts, config.train_config(), folder, session=session).run()


def learn_negative() -> None:
    """A negative embedding by the recipe ``fast``, for the encoder as it was."""
    config: RunConfig = load_run_config("fast", ["steps=30"])
    prompts = Prompts(train_prompts(), validation_prompts())
    Trainer(*world(), prompts, config.train_config(), RUNS / "negative", session=Session(resume=True)).run()


def judged() -> dict[str, Any]:
    """Every LoRA that there is against the encoder as it was; the negative alone, and together with the direct ones."""
    model, sampling = world()[0], load_run_config("tiny-direct", [], TexForceRunConfig).sampling
    null = model.encode([""])
    modes = {"none": Mode(null)}
    negative = RUNS / "negative/negative.safetensors"
    learned = load_embedding(negative).conditioning() if negative.exists() else None
    if learned is not None:
        modes["negative"] = Mode(learned)
    for path in sorted(RUNS.glob("*/text-lora.safetensors")):
        name, tuned = path.parent.name, merged(model, load_text_lora(path))
        if not name.startswith(JPEG):
            modes[name] = Mode(tuned.encode([""]), model=tuned)
            if learned is not None and name.startswith("direct"):
                modes[f"{name}+negative"] = Mode(learned, model=tuned)
    found = judge(test_pairs(2, JUDGED_SEED), modes, sampling)
    contests = [(mode, "none") for mode in modes if mode != "none"]
    contests += [(mode, other) for mode in modes if "+" in mode for other in ("negative", mode.partition("+")[0])]
    return {
        "pairs": len(found.pairs),
        "sampling": sampling.describe(),
        "modes": means(found),
        "against": {f"{a}>{b}": {m: against(found, m, a, b) for m in (REWARD, MEASURE)} for a, b in contests},
        "spent": {path.parent.name: spent(path.parent) for path in sorted(RUNS.glob("*/metrics.jsonl"))},
        **without_gradient(),
    }


def against(found: Evaluation, measure: str, first: str, second: str) -> dict[str, Any]:
    """Difference with its interval, and the share of pairs that ``first`` wins."""
    difference = found.difference(measure, first, second)
    return {
        "difference": round(difference.value, 4),
        "interval": [round(bound, 4) for bound in difference.interval],
        "wins": round(found.win_rate(measure, first, second).value, 3),
    }


def without_gradient() -> dict[str, Any]:
    """The encoder that was tuned for small files, by the size of its files."""
    path = RUNS / f"{JPEG}-0/text-lora.safetensors"
    if not path.exists():
        return {}
    config = load_run_config(f"tiny-{JPEG}", [], TexForceRunConfig)
    model, reward = world()[0], load_reward(config.reward)
    tuned = merged(model, load_text_lora(path))
    modes = {"none": Mode(model.encode([""])), JPEG: Mode(tuned.encode([""]), model=tuned)}
    from reneg_core.evaluation import evaluate

    found = evaluate(model, test_pairs(2, JUDGED_SEED), modes, {REWARD: reward.score}, config.sampling, batch_size=64)
    return {JPEG: {"reward": reward.name, "modes": means(found), "against": against(found, REWARD, JPEG, "none")}}


def spent(folder: Path) -> dict[str, Any]:
    """Steps, trajectories, and the seconds that they took."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    rewards = [record["reward"] for record in records if record["event"] == "validation"]
    settings = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").exists() else ""
    size = next((int(line.split(":")[1]) for line in settings.splitlines() if line.startswith("batch_size:")), 16)
    return {
        "steps": len(steps),
        "trajectories": len(steps) * size,
        "seconds": round(sum(record["seconds"] for record in steps)),
        "validation": [round(rewards[0], 4), round(max(rewards), 4)],
    }


if __name__ == "__main__":
    main()
