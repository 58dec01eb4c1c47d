"""``reneg train``: learn a negative embedding."""

import argparse
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..durations import duration
from ..files import check_folder
from ..model import DiffusionModel
from ..rewards import Reward, load_reward
from ..rewards.precision import PRECISIONS
from ..training import Prompts, Run, Session, split_prompts
from ..training.config import AHEAD, LEAP, recorded_passes
from ..training.decoding import EXACT, FULL, RECOMPUTED
from ..training.footprint import Footprint, Step, fits, footprint
from ..training.rehearsal import Rehearsal, rehearse
from ..training.run_config import JobConfig, RunConfig, load_run_config, recipe_names
from ..training.run_folder import RunFolder
from ..training.workers import Workers, device_of, processes
from .common import ProgressObserver, graceful_stop, read_prompts, say_how_many, setting_lines

J = TypeVar("J", bound=JobConfig)
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
        description=DESCRIPTION.format(recipes=", ".join(recipe_names())) + settings_help(RunConfig(), "recipes"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_run_options(parser)
    parser.set_defaults(run=run)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Settings, --config, --resume, --dry-run."""
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings, see the list above")
    parser.add_argument("--config", default="", help="YAML file or recipe name")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint; also with more steps",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, measure what the first steps take, then stop"
    )


def settings_help(config: JobConfig, page: str) -> str:
    """A table of the settings with what they are in ``config``."""
    lines = [f"  {line}" for line in setting_lines(config.to_mapping())]
    return f"\nSettings and their defaults (their meaning: docs/{page}.md):\n" + "\n".join(lines) + "\n"


def run(args: argparse.Namespace, kind: type[JobConfig] = RunConfig) -> int:
    """Train as the configuration says; exit code 0 when done, 130 when stopped by a signal."""
    config = run_config(args, kind)
    with processes(config.device) as workers:
        return _run(args, config, workers, kind)


def _run(args: argparse.Namespace, config: JobConfig, workers: Workers, kind: type[JobConfig]) -> int:
    folder = RunFolder(config.output)
    quiet = workers.rank != 0
    say_how_many(workers)

    def checked() -> Job:
        if not quiet:
            check_output(folder, args.resume)
        return prepare(config, workers)

    job = workers.together(checked)
    if args.dry_run:
        trainer = job.trainer(config, Session(resume=args.resume, workers=workers, say=say))
        return 0 if quiet else report_dry_run(config, job, rehearse(trainer, job.weights()))
    observer = ProgressObserver(config.steps, 0, folder.path, config.tensorboard, quiet)
    with graceful_stop() as should_stop:
        session = Session(observer, should_stop, args.resume, workers, _silent if quiet else say, config.to_yaml())
        try:
            result = job.trainer(config, session).run()
        finally:
            observer.close()
    if not quiet:
        report_result(result, folder.path, kind)
    return 130 if result.reason == "stopped" else 0


def run_config(args: argparse.Namespace, kind: type[J] = RunConfig) -> J:
    """The configuration with absolute paths, so that it means the same from any folder.

    Resuming with a run folder's own config.yaml goes on in that folder, wherever it has been moved.
    """
    config = load_run_config(args.config, args.overrides, kind)
    own = RunFolder(Path(args.config).parent)
    here = args.resume and own.checkpoints() and Path(args.config).absolute() == own.config.absolute()
    if here and not any(override.partition("=")[0].strip() == "output" for override in args.overrides):
        config = replace(config, output=str(own.path))
    return config.anchored()


def check_output(folder: RunFolder, resume: bool) -> None:
    """Refuse, before anything is loaded, a folder that has no run to resume or one in the way, that another process
    trains in, or that has no room."""
    folder.require_run() if resume else folder.require_unused()
    check_folder(folder.path)
    if folder.path.is_dir():
        with folder.locked():
            pass


def say(sentence: str) -> None:
    """On stderr, above the progress bar."""
    from tqdm import tqdm

    tqdm.write(sentence, file=sys.stderr)


def _silent(sentence: str) -> None:
    """What the other processes say."""


@dataclass(frozen=True)
class Job:
    """Model, rewards and prompts of a configuration, loaded and checked."""

    model: DiffusionModel
    reward: Reward
    watch: Reward | None
    prompts: Prompts

    def weights(self) -> list[torch.Tensor]:
        """Every weight of the model's networks and the rewards."""
        pipeline = getattr(self.model, "pipeline", None)
        networks = [m for m in (pipeline.components.values() if pipeline else []) if isinstance(m, torch.nn.Module)]
        networks += [reward for reward in (self.reward, self.watch) if reward is not None]
        return [parameter for network in networks for parameter in network.parameters()]

    def trainer(self, config: JobConfig, session: Session) -> Run:
        return config.method(
            self.model,
            self.reward,
            self.prompts,
            config.train_config(),
            config.output,
            watch=self.watch,
            session=session,
        )


def prepare(config: JobConfig, workers: Workers) -> Job:
    """Read the prompts first (cheap), then load rewards and model, so that mistakes show before long work."""
    from ..backends import load_model
    from ..backends.lora_terms import parse_loras
    from ..backends.loras import with_loras

    prompts = training_prompts(config)
    device = device_of(workers, config.device)
    plain = load_model(config.model, device=device, dtype=config.dtype, config=config.model_config or None)
    model = with_loras(plain, parse_loras(config.loras))
    dtype = PRECISIONS[config.reward_dtype]
    rewards = [
        load_reward(name, weights=weights or None, device=model.device, dtype=dtype) if name else None
        for name, weights in ((config.reward, config.reward_weights), (config.watch, config.watch_weights))
    ]
    if rewards[0] is None:
        raise ValueError("Got no reward, expected a name or a mix. Try `reneg rewards` for what there is.")
    return Job(model, rewards[0], rewards[1], prompts)


def training_prompts(config: JobConfig) -> Prompts:
    """Training and validation prompts; without a validation file every tenth training prompt is held out."""
    own = bool(config.validation_prompts) or not config.prompts  # the tiny world has validation prompts
    held = read_prompts(config.validation_prompts, "validation", config.model) if own else ()
    return split_prompts(read_prompts(config.prompts, "train", config.model), held)


def report_dry_run(config: JobConfig, job: Job, found: Rehearsal) -> int:
    """The resolved configuration, what was found, and what the run will take."""
    model, mib = job.model, 2.0**20
    weights = sum(tensor.nbytes for tensor in job.weights())
    memory = f"{found.peak / mib:,.0f} MiB used" if found.peak else f"about {weights / mib:,.0f} MiB weights"
    print(config.to_yaml())
    print(f"model {model.name}: {model.family}, width {model.width}, on {model.device}")
    print(f"prompts: {len(job.prompts.train)} for training, {len(job.prompts.validation)} for validation")
    print(f"memory: {memory} at micro_batch {found.micro_batch}; {found.kept / mib:,.0f} MiB activations a sample")
    for line in memory_lines(config, job) if isinstance(config, RunConfig) else ():
        print(line)
    print(
        f"time:   about {found.step:,.1f} s a step and {found.validation:,.1f} s a validation, "
        f"{duration(found.total)} in all without loading (mean of {found.parts} parts of first steps and of "
        f"{found.checks} of a validation, timed here and now)"
    )
    print("checked: settings, prompts, weights, start, rewards and their gradient, room in the output folder")
    return 0


def memory_lines(config: RunConfig, job: Job) -> list[str]:
    """What a step takes at this size by its tensors' shapes, and the micro-batches that cards of some sizes hold."""
    left = config.sampling.steps - config.gradient_window[0]
    through = config.through if config.through == LEAP else recorded_passes(config.through, left)

    def of(rows: int, recompute: bool, decoder: str) -> Footprint:
        together = min(config.rollout_batch or AHEAD * rows, config.batch_size)
        step = Step(rows, config.sampling, through, recompute, config.judged_frames, together, decoder)
        return footprint(job.model, job.reward, step)

    here = of(config.micro_batch, config.checkpointing, config.decoder)
    lines = [f"        {here.peak / 2**20:,.0f} MiB computed for micro_batch {config.micro_batch}; what fits a card:"]
    own = () if config.decoder in EXACT else (config.decoder,)
    ways = {f"decoder={decoder}": (False, decoder) for decoder in (FULL, RECOMPUTED, *own)}
    for name, way in {**ways, "checkpointing=true": (True, FULL)}.items():
        sizes = fits(lambda rows, way=way: of(rows, *way))
        held = ", ".join(f"{card} GB {rows or 'nothing'}" for card, rows in sizes.items())
        lines.append(f"        {name}: micro_batch at most {held}")
    return lines


def report_result(result: Any, directory: Path, kind: type[JobConfig] = RunConfig) -> None:
    """Say what came out, where it is, and how to go on."""
    if result.best_reward is not None:
        print(
            f"{result.reason} after {result.steps} steps: validation reward {result.start_reward:.4f} -> "
            f"{result.best_reward:.4f} (best at step {result.best_step})"
        )
    print(f"{kind.method.learned + ':':<10} {directory / kind.method.product}.safetensors")
    if result.reason == "stopped":
        print(f"resume:    {resume_command(directory, kind.command)}")


def resume_command(directory: Path, subcommand: str = RunConfig.command) -> str:
    """A command that goes on with the run, from any folder and without an active environment."""
    config = str(directory / "config.yaml")
    command = [sys.executable, "-m", "reneg_core", *subcommand.split(), "--config", config, "--resume"]
    source = str(Path(__file__).resolve().parents[2])
    searched = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    found_only_here = any(place and os.path.realpath(place) == source for place in searched)
    return shlex.join(["env", f"PYTHONPATH={source}", *command] if found_only_here else command)
