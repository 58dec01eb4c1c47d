"""``reneg demo``: learn a negative embedding on the embedded tiny world and show that it works."""

import argparse
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..embedding import atomic_write
from ..report import headline, write_report
from ..training import AdaptConfig, TrainConfig
from ..training.config import RolloutConfig
from ..training.run_config import load_run_config
from ..training.workers import Workers
from .common import ProgressObserver, graceful_stop, independent_measure
from .evaluate import MODES, compare, handwritten
from .train import prepare, report_result

DESCRIPTION = """\
Learn a negative embedding for the embedded tiny world (two minutes on two slow cores), then compare it with the empty
prompt, a handwritten negative prompt and per-sample adaptation on held-out prompts. Leaves negative.safetensors,
report.html, report.json, curve.png and grid.png. Interrupted, it goes on where it was when called again.
"""
TEST_PROMPTS, SEEDS = 64, 4


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "demo", help="see it work on the tiny world", description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--output", default="demo-output", help="folder (%(default)s)")
    parser.add_argument("--config", default="demo", help="recipe name or YAML file (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings of the training, see reneg train")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, adapt, evaluate, report."""
    from .. import tiny

    directory = Path(args.output)
    config = load_run_config(args.config, [*args.overrides, f"output={directory}"])
    job = prepare(config, Workers())
    clock = time.monotonic()
    observer = ProgressObserver(config.steps, 0, directory)
    with graceful_stop() as should_stop:
        trainer = job.trainer(config, Workers(), observer=observer, should_stop=should_stop, resume=True)
        atomic_write(directory / "config.yaml", config.to_yaml().encode())
        try:
            result = trainer.run()
        finally:
            observer.close()
    if result.reason == "stopped":
        report_result(result, directory)
        return 130
    learned = time.monotonic() - clock
    evaluation = compare(
        job.model, job.reward, tiny.test_prompts()[:TEST_PROMPTS], range(SEEDS), MODES, result.embedding,
        handwritten("tiny"), adaptation(config), measures=independent_measure("tiny"),
    )  # fmt: skip
    write_report(
        directory, evaluation, title="A negative embedding for the tiny world", records=trainer.files.records(),
        config=asdict(config), embedding=result.embedding, command="python -m reneg_core demo",
    )  # fmt: skip
    print(f"\nlearned in {learned:.0f} s, {time.monotonic() - clock:.0f} s with adaptation and evaluation")
    print(headline(evaluation))
    for name in ("report.html", "grid.png", "curve.png", "comparison.png", "report.json", "negative.safetensors"):
        print(f"  {directory / name}")
    return 0


def adaptation(config: TrainConfig) -> AdaptConfig:
    """The per-sample recipe that goes with a training's settings: the same sampler and gradient points, six steps."""
    shared = {field.name: getattr(config, field.name) for field in fields(RolloutConfig)}
    return AdaptConfig(**{**shared, "learning_rate": 1e-2}, steps=6, micro_batch=64)
