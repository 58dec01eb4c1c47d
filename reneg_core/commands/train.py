"""``reneg train``: learn a negative embedding."""

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..embedding import atomic_write
from ..model import DiffusionModel
from ..rewards import Reward, load_reward
from ..rewards.precision import PRECISIONS
from ..training import Batch, Prompts, Reach, Session, Trainer, TrainResult, reward_gradient, split_prompts
from ..training.run_config import RunConfig, load_run_config, recipe_names
from ..training.workers import Workers, pick_workers
from .common import ProgressObserver, graceful_stop, read_prompts, setting_lines

DESCRIPTION = """\
Learn a negative embedding by gradient ascent on a reward, with guidance inside the training.

Every setting is a name=value pair; --config reads them from a YAML file or a recipe ({recipes}), and pairs on the
command line come last. Without any, this is the paper's recipe (4000 steps of 64 samples) on the embedded tiny world.

  reneg train --config fast output=runs/tiny
  reneg train model=sd15/ prompts=prompts.txt reward=hpsv2.1 reward_weights=HPS_v2.1_compressed.pt output=runs/sd15
  reneg train --config runs/sd15/config.yaml --resume
  reneg train model=sd15/ prompts=prompts.txt --dry-run
  accelerate launch --num_processes 8 -m reneg_core train model=sd15/ prompts=prompts.txt output=runs/sd15
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="learn a negative embedding",
        description=DESCRIPTION.format(recipes=", ".join(recipe_names())) + _settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, see the list above")
    parser.add_argument("--config", default="", help="YAML file or recipe name")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in the output folder")
    parser.add_argument("--dry-run", action="store_true", help="check everything, estimate memory and time, then stop")
    parser.set_defaults(run=run)


def _settings_help() -> str:
    lines = [f"  {line}" for line in setting_lines(RunConfig().to_mapping())]
    return "\nSettings and their defaults (their meaning: docs/recipes.md):\n" + "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> int:
    """Train as the configuration says; exit code 0 when done, 130 when stopped by a signal."""
    config = load_run_config(args.config, args.overrides)
    workers = pick_workers(config.device)
    quiet = workers.rank != 0
    job = prepare(config, workers)
    if args.dry_run:
        return 0 if quiet else report_dry_run(config, job)
    directory = Path(config.output)
    observer = ProgressObserver(config.steps, 0, directory, config.tensorboard, quiet)
    with graceful_stop() as should_stop:
        trainer = job.trainer(config, Session(observer, should_stop, args.resume, workers))
        if not quiet:
            atomic_write(directory / "config.yaml", config.to_yaml().encode())
        try:
            result = trainer.run()
        finally:
            observer.close()
    if not quiet:
        report_result(result, directory)
    return 130 if result.reason == "stopped" else 0


@dataclass(frozen=True)
class Job:
    """Model, rewards and prompts of a configuration, loaded and checked."""

    model: DiffusionModel
    reward: Reward
    watch: Reward | None
    prompts: Prompts

    def trainer(self, config: RunConfig, session: Session) -> Trainer:
        return Trainer(
            self.model,
            self.reward,
            self.prompts,
            config.train_config(),
            config.output,
            watch=self.watch,
            session=session,
        )


def prepare(config: RunConfig, workers: Workers) -> Job:
    """Read the prompts first (cheap), then load rewards and model, so that mistakes show before long work."""
    from ..backends import load_model

    prompts = training_prompts(config)
    device = str(getattr(workers, "device", config.device))
    model = load_model(config.model, device=device, dtype=config.dtype, config=config.model_config or None)
    dtype = PRECISIONS[config.reward_dtype]
    rewards = [
        load_reward(name, weights=weights or None, device=model.device, dtype=dtype) if name else None
        for name, weights in ((config.reward, config.reward_weights), (config.watch, config.watch_weights))
    ]
    if rewards[0] is None:
        raise ValueError("Got no reward, expected a name or a mix. Try `reneg rewards` for what there is.")
    return Job(model, rewards[0], rewards[1], prompts)


def training_prompts(config: RunConfig) -> Prompts:
    """Training and validation prompts; without a validation file every tenth training prompt is held out."""
    own = bool(config.validation_prompts) or not config.prompts  # the tiny world has validation prompts
    held = read_prompts(config.validation_prompts, "validation", config.model) if own else ()
    return split_prompts(read_prompts(config.prompts, "train", config.model), held)


def report_dry_run(config: RunConfig, job: Job) -> int:
    """One sample through one gradient point: what it keeps in memory and how long it takes, scaled to the recipe."""
    model, settings = job.model, config.train_config()
    steps = max([config.sampling.steps, *config.jitter.steps])
    recorded = min(config.through or steps, steps)
    sampling = config.sampling.changed(solver="euler", steps=recorded, guidance_start=0.0, guidance_end=1.0)
    prompt, storages = [job.prompts.train[0]], {}
    parameters = _parameters(model, job.reward, job.watch)
    owned = {parameter.untyped_storage().data_ptr() for parameter in parameters}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def work(model: DiffusionModel) -> float:
        noise, positive = model.noise([0], sampling.size), model.encode(prompt)
        negative = model.encode([config.init if not config.init.endswith(".safetensors") else ""])
        clock = time.monotonic()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            reach = Reach([0], recorded, checkpoint_reward=config.checkpointing)
            reward_gradient(model, job.reward, Batch(prompt, positive, noise), negative, sampling, reach)
        point = time.monotonic() - clock
        level, clock = model.sigmas(sampling)[0], time.monotonic()
        with torch.no_grad():
            model.denoise(model.start(noise, level), level, positive)
        passes = 2 * settings.gradient_window[1] * steps / config.sampling.steps
        return config.batch_size * (point * config.points + passes * (time.monotonic() - clock))

    model.checkpointing(config.checkpointing)
    seconds = model.run(work)
    weights = sum(parameter.nbytes for parameter in parameters)
    kept = sum(size for pointer, size in storages.items() if pointer not in owned)
    total = (weights + kept * config.micro_batch) / 2**20
    print(config.to_yaml())
    print(f"model {model.name}: {model.family}, width {model.width}, on {model.device}")
    print(f"prompts: {len(job.prompts.train)} for training, {len(job.prompts.validation)} for validation")
    print(f"memory: about {total:,.0f} MiB at micro_batch {config.micro_batch} ({weights / 2**20:,.0f} MiB weights, ")
    print(f"        {kept / 2**20:,.0f} MiB activations a sample); halved automatically if it does not fit")
    print(f"time:   at most about {seconds:,.1f} s a step, {seconds * config.steps / 3600:,.1f} h in all")
    return 0


def _parameters(model: DiffusionModel, *rewards: Reward | None) -> list[torch.nn.Parameter]:
    pipeline = getattr(model, "pipeline", None)
    modules = [m for m in (pipeline.components.values() if pipeline else []) if isinstance(m, torch.nn.Module)]
    modules += [reward for reward in rewards if reward is not None]
    return [parameter for module in modules for parameter in module.parameters()]


def report_result(result: TrainResult, directory: Path) -> None:
    """Say what came out, where it is, and how to go on."""
    if result.best_reward is not None:
        print(
            f"{result.reason} after {result.steps} steps: validation reward {result.start_reward:.4f} -> "
            f"{result.best_reward:.4f} (best at step {result.best_step})"
        )
    print(f"embedding: {directory / 'negative.safetensors'}")
    if result.reason == "stopped":
        command = [Path(sys.executable).name, "-m", "reneg_core", "train", "--config", str(directory / "config.yaml")]
        print(f"resume:    {shlex.join([*command, '--resume'])}")
