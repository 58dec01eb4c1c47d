"""``reneg analyze``: the negative embedding against a LoRA and against the whole denoiser, at equal steps."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..efficiency import METHODS, RANK, RATES, Analysis, Work, analyse
from ..evaluation import Keep, Pairs, plots, prepare_folder, write_report
from ..files import write_picture, write_text
from ..training.run_config import load_run_config
from .common import read_prompts
from .evaluate import judges_of
from .train import prepare
from .values import MOST, finite_number, whole_number

DESCRIPTION = """\
How much a reward is climbed per trained number: the negative embedding, a LoRA on the denoiser's attention, and all of
the denoiser's parameters, each from the same start, by the same gradient, on the same prompts and noises, for the same
number of steps, at the best of a few learning rates by the validation reward. Compared on test prompts. Writes a
report, efficiency.png and analysis.json.

Settings are those of `reneg train`, over the recipe `analysis` (the tiny world, a few minutes); the embedding starts as
the empty prompt, there is no jitter, and gradient points are drawn once a step. The LoRA needs the package peft. The
learning rates are the tiny world's: give others for another model (the paper's for Stable Diffusion is embedding=5e-3).

  reneg analyze
  reneg analyze model=sd15/ prompts=p.txt reward=hpsv2.1 reward_weights=HPS.pt steps=500 --test-prompts t.txt
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "analyze",
        help="compare the embedding with a LoRA and with training the denoiser",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, see `reneg train --help`")
    parser.add_argument("--config", default="analysis", help="YAML file or recipe name (%(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="what is trained (all)")
    rates = "; ".join(f"{method}: {' '.join(f'{rate:g}' for rate in tried)}" for method, tried in RATES.items())
    parser.add_argument(
        "--rate", action="append", default=[], metavar="METHOD=RATE", help=f"a learning rate to try; repeat ({rates})"
    )
    parser.add_argument("--rank", type=whole_number(1, MOST), default=RANK, help="of the LoRA (%(default)s)")
    parser.add_argument("--test-prompts", default="", metavar="FILE", help="one prompt per line (the tiny world's)")
    parser.add_argument(
        "--noises", type=whole_number(1, MOST), default=2, help="pictures per test prompt (%(default)s)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train, compare, and print the table and the report's path."""
    from ..training.workers import Workers

    rates = chosen_rates(args.methods, args.rate)
    config = load_run_config(args.config, args.overrides).anchored()
    tests = read_prompts(args.test_prompts, "test", config.model)
    folder = prepare_folder(config.output)
    job = prepare(config, Workers())
    judges = judges_of(job.reward, config.model, {})
    work = Work(job.reward, job.prompts, config.train_config(), args.rank)
    with _progress(rates, config.steps) as progress:
        found = analyse(
            job.model, work, Pairs.own(tests, args.noises), judges.measures, rates, keep=Keep(8), progress=progress
        )
    evaluation = found.evaluation.labelled(**{n: w for n, w in judges.labels.items() if n in judges.measures})
    curves = {method: course.curve for method, course in found.chosen.items()}
    counts = {method: course.parameters for method, course in found.chosen.items()}
    write_picture(folder / "efficiency.png", plots.efficiency(evaluation, curves, counts))
    write_text(folder / "analysis.json", json.dumps(found.to_json(), indent=1))
    print(table(found))
    print(write_report(folder, evaluation, title="Parameter efficiency", config=config.to_mapping()))
    return 0


def chosen_rates(methods: Sequence[str], entries: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The learning rates by method: those given, else the defaults; ValueError for anything else."""
    given: dict[str, list[float]] = {}
    for entry in entries:
        method, _, rate = entry.partition("=")
        if method not in methods:
            raise ValueError(f"Got --rate {entry}, expected METHOD=RATE with one of {', '.join(methods)}.")
        try:
            given.setdefault(method, []).append(finite_number(1e-12)(rate))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--rate: {error}.") from error
    return {method: tuple(given.get(method, RATES[method])) for method in methods}


def table(found: Analysis) -> str:
    """A line per method, aligned."""
    judge, head = (
        found.evaluation.judge,
        ("method", "parameters", "rate", "s a step", "validation", "test", "gain", "wins"),
    )
    rows = [
        (
            row["label"], f"{row['parameters']:,}", f"{row['rate']:g}", f"{row['seconds']:.2f}",
            f"{row['validation']:.4f}", f"{row[judge]:.4f}", f"{row['gain']:+.4f}", f"{100 * row['win_rate']:.0f} %",
        )
        for row in found.rows()
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    )


@contextmanager
def _progress(rates: Mapping[str, Sequence[float]], steps: int) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=steps * sum(map(len, rates.values())), unit="step", desc="training") as bar:

        def advance(method: str, rate: float, step: int) -> None:
            bar.set_postfix_str(f"{method} at {rate:g}", refresh=False)
            bar.update()

        yield advance
