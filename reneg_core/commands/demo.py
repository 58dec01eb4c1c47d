"""``reneg demo``: learn a negative embedding on the embedded tiny world and show that it works."""

import argparse
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..embedding import NegativeEmbedding
from ..evaluation import (
    Evaluation,
    Keep,
    Pairs,
    Rivals,
    Words,
    compare_rivals,
    headline,
    prepare_folder,
    write_report,
)
from ..evaluation.modes import BEST_TEXT, EMBEDDING, TEXT
from ..model import DiffusionModel
from ..rewards import Reward
from ..training import AdaptConfig, Session, TrainConfig, TrainResult
from ..training.config import RolloutConfig
from ..training.run_config import JobConfig, load_run_config
from ..training.workers import Workers
from .common import ProgressObserver, graceful_stop
from .evaluate import judges_of, progress_bars
from .train import Job, prepare, report_result, say

DESCRIPTION = """\
Learn a negative embedding for the embedded tiny world (a few minutes on two slow cores), then compare it, on held-out
prompts, with the empty prompt, a handwritten negative prompt and the strongest text that a search found, each at the
guidance scale that serves it best, and with per-sample adaptation. Leaves negative.safetensors, report.html,
report.json, curve.png and grid.png. Interrupted, it goes on where it was when called again.
"""
TEST_PROMPTS, NOISES, PICTURES, LOSSES, BATCH = 64, 4, 8, 6, 64
NOISE_SEED = 10  # noises that no earlier recipe was judged on
Progress = Callable[[str, int, int], Any]


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
    config = load_run_config(args.config, [*args.overrides, f"output={prepare_folder(args.output)}"])

    def compare(job: Job, result: TrainResult, progress: Progress) -> Evaluation:
        return compare_negatives(job.model, job.reward, result.embedding, config.train_config(), progress)

    return show(config, compare, "A negative embedding for the tiny world", "demo")


def show(config: JobConfig, compare: Callable[[Job, Any, "Progress"], Evaluation], title: str, command: str) -> int:
    """Train as ``config`` says, ``compare`` what came out, write the report; 130 when stopped."""
    directory, kind = Path(config.output), type(config)
    job, clock = prepare(config, Workers()), time.monotonic()
    observer = ProgressObserver(config.steps, 0, directory)
    with graceful_stop() as should_stop:
        description = config.anchored().to_yaml()
        trainer = job.trainer(config, Session(observer, should_stop, True, say=say, description=description))
        try:
            result = trainer.run()
        finally:
            observer.close()
    if result.reason == "stopped":
        report_result(result, directory, kind)
        return 130
    learned = time.monotonic() - clock
    with progress_bars() as progress:
        evaluation = compare(job, result, progress)
    write_report(
        directory, evaluation, title=title, records=trainer.files.records(), config=config.to_mapping(),
        embedding=getattr(result, "embedding", None), command=f"python -m reneg_core {command}",
    )  # fmt: skip
    print(f"\nlearned in {learned:.0f} s, {time.monotonic() - clock:.0f} s with evaluation")
    print(headline(evaluation))
    product = f"{trainer.product}.safetensors"
    for name in ("report.html", "grid.png", "curve.png", "comparison.png", "report.json", product):
        print(f"  {directory / name}")
    return 0


def compare_negatives(
    model: DiffusionModel,
    reward: Reward,
    embedding: NegativeEmbedding,
    config: TrainConfig,
    progress: Progress | None = None,
) -> Evaluation:
    """The embedding against the empty prompt and handwritten negatives, and adapted per pair, on 256 test pairs.

    The rivals are sampled at the guidance scale that serves each best by the measure that judges here, on validation
    pairs (:func:`reneg_core.tiny.rivals.rivals`); the measure chose the strongest text itself, too. The embedding is
    sampled at the scale that it was learned for.
    """
    from ..tiny import test_prompts
    from ..tiny.rivals import rivals

    written = rivals()
    samplings = {name: config.sampling.at_scale(rival.guidance_scale) for name, rival in written.items()}
    compared = Rivals(
        texts={name: Words(written[name].text, written[name].strength) for name in (TEXT, BEST_TEXT)},
        embeddings={EMBEDDING: embedding},
        adapted=adaptation(config),
        samplings=samplings,
    )
    pairs = Pairs.own(test_prompts()[:TEST_PROMPTS], NOISES, NOISE_SEED)
    return compare_rivals(
        model, pairs, compared, judges_of(reward, "tiny", {}), config.sampling,
        keep=Keep(PICTURES, LOSSES), batch_size=BATCH, progress=progress,
    )  # fmt: skip


def adaptation(config: TrainConfig) -> AdaptConfig:
    """The per-sample recipe that goes with a training's settings: six steps, sampled as the training samples."""
    shared = {field.name: getattr(config, field.name) for field in fields(RolloutConfig)}
    return AdaptConfig(**{**shared, "learning_rate": 1e-2}, steps=6, micro_batch=64)
