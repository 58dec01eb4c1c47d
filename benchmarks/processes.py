"""What several processes bring: two on this machine's CPU, measured, and 64 GPUs on paper, with the traffic counted.

    python benchmarks/processes.py [--repeat 3] [--sample-seconds 1] [--picture-seconds 0.4] [--gbit 10] [--hop-us 50]

Measured: a training step and a comparison on the tiny world by one process, by two that share the work, and by two that
each do all of it at the same time and know nothing of each other: what the machine itself takes for being asked twice.
Each has one thread. On paper: the paper's recipe with Stable Diffusion 1.5's embedding on n GPUs. What travels is
counted in a training; seconds of a sample and of a validation picture, bandwidth and latency are the parameters given.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import publish, table
from torch import Tensor

from reneg_core.backends import load_model
from reneg_core.evaluation import Mode, Pairs, evaluate
from reneg_core.rewards import load_reward
from reneg_core.sampling import Sampling
from reneg_core.tiny import measure, test_prompts, train_prompts, validation_prompts
from reneg_core.training import Prompts, Session, TrainConfig, Trainer
from reneg_core.training.workers import Workers, processes

SAMPLING = Sampling(steps=10, spacing="trailing").at_scale(3)
BATCH, STEPS, PAIRS = 32, 3, 48
SHARED = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
TOKENS, WIDTH = 77, 768


def trainer(folder: Path, workers: Workers, batch: int = BATCH) -> Trainer:
    model = load_model("tiny", device="cpu")
    config = TrainConfig(
        steps=STEPS, batch_size=batch, micro_batch=8, sampling=SAMPLING, validation_pairs=2, validate_every=1000,
        checkpoint_every=1000,
    )  # fmt: skip
    prompts = Prompts(train_prompts(), validation_prompts())
    return Trainer(model, load_reward("tiny"), prompts, config, folder, session=Session(workers=workers))


def seconds_of_a_step(workers: Workers) -> float:
    """The fastest of the steps but the first; checkpoints and validations are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        one = trainer(Path(folder) / "run", workers)
        one.run()
        steps = [record["seconds"] for record in one.files.records()[2:] if record["event"] == "step"]
        return min(steps, default=0.0)  # the first process records them


def seconds_of_a_comparison(workers: Workers) -> float:
    model = load_model("tiny", device="cpu")
    modes = {name: Mode(model.encode([text])) for name, text in (("none", ""), ("text", "faded"))}
    pairs = Pairs.own(test_prompts()[:PAIRS], 1)
    began = time.perf_counter()
    evaluate(model, pairs, modes, {"measure": measure}, SAMPLING, batch_size=8, workers=workers)
    return time.perf_counter() - began


WORK: dict[str, Callable[[Workers], float]] = {"step": seconds_of_a_step, "comparison": seconds_of_a_comparison}


def child(kind: str) -> None:
    """One process of a measurement; the first prints the seconds."""
    with processes("cpu") as workers:
        found = WORK[kind](workers)
        if workers.rank == 0:
            print(json.dumps(found), flush=True)


def started(kind: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, __file__, "--child", kind]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def seconds(*children: subprocess.Popen) -> float:
    outputs = [one.communicate()[0] for one in children]
    if any(one.returncode for one in children):
        raise RuntimeError("A process of the measurement failed; start it with --child to see why.")
    return statistics.mean(json.loads(output.splitlines()[-1]) for output in outputs)


def measured(repeat: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for kind in WORK:
        rounds: dict[str, list[float]] = {"alone": [], "shared": [], "apart": []}
        for _ in range(repeat):
            rounds["alone"].append(seconds(started(kind)))
            rounds["shared"].append(seconds(started(kind, SHARED)))
            rounds["apart"].append(seconds(started(kind), started(kind)))
        alone, shared, apart = (statistics.median(values) for values in rounds.values())
        found[kind] = {
            "alone": alone, "shared": shared, "apart": apart,
            "efficiency": alone / (2 * shared), "machine": alone / apart, "sharing": apart / (2 * shared),
        }  # fmt: skip
    return found


class Counted(Workers):
    """A single process that notes how many numbers every sum over all processes carries."""

    def __init__(self) -> None:
        self.sums: list[int] = []

    def sum(self, tensor: Tensor) -> Tensor:
        self.sums.append(tensor.numel())
        return tensor


def counted() -> list[int]:
    """Numbers (float64) in each sum of a training step, with the published embedding in the tiny one's place."""
    with tempfile.TemporaryDirectory() as folder:
        workers, steps = Counted(), []
        one = trainer(Path(folder) / "run", workers, batch=8)
        original = one._step
        one._step = lambda began: (original(began), steps.append(len(workers.sums)))
        one.run()
        step = workers.sums[steps[0] : steps[1]]
        own = one.learner.parameters["tokens"].numel()
    return [TOKENS * WIDTH if numbers == own else numbers for numbers in step]


def on_paper(sums: list[int], args: argparse.Namespace) -> list[dict[str, float]]:
    """The paper's steps of 64 samples, with 32 validation pairs every 50 steps, on 1 to 64 GPUs: a ring passes each
    sum on in 2 (n - 1) hops and sends 2 (n - 1) / n of it from every process."""
    batch, pairs, every = 64, 32, 50
    rows = []
    for count in (1, 2, 4, 8, 16, 32, 64):
        hops, bits = 2 * (count - 1), 64 * sum(sums) * 2 * (count - 1) / count
        exchange = len(sums) * hops * args.hop_us * 1e-6 + bits / (args.gbit * 1e9)
        step = math.ceil(batch / count) * args.sample_seconds + exchange
        validation = math.ceil(pairs / count) * args.picture_seconds / every
        whole = (batch * args.sample_seconds + pairs * args.picture_seconds / every) / (count * (step + validation))
        rows.append({
            "gpus": count, "samples": math.ceil(batch / count), "sent_mb": bits / 8e6, "exchange_ms": 1e3 * exchange,
            "step": step, "efficiency_step": batch * args.sample_seconds / (count * step), "efficiency": whole,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--sample-seconds", type=float, default=1.0, help="of a training sample on one GPU (%(default)s)"
    )
    parser.add_argument("--picture-seconds", type=float, default=0.4, help="of a validation picture (%(default)s)")
    parser.add_argument("--gbit", type=float, default=10.0, help="bandwidth between processes, Gbit/s (%(default)s)")
    parser.add_argument("--hop-us", type=float, default=50.0, help="latency of a hop in microseconds (%(default)s)")
    parser.add_argument("--child", choices=WORK, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        child(args.child)
        return
    sums = counted()
    paper, found = on_paper(sums, args), measured(args.repeat)
    print(
        table(
            [[kind, *(f"{value:.3f}" for value in row.values())] for kind, row in found.items()], ["", *found["step"]]
        )
    )
    print(table([[f"{value:.4g}" for value in row.values()] for row in paper], list(paper[0])))
    settings: dict[str, Any] = {name: value for name, value in vars(args).items() if name not in ("child", "repeat")}
    publish(
        "processes", {"measured": found, "sums": sums, "bytes": 8 * sum(sums), "settings": settings, "paper": paper}
    )


if __name__ == "__main__":
    main()
