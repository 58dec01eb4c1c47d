"""``reneg adapt``: a negative embedding for each prompt, starting from a global one."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..embedding import NegativeEmbedding, load_embedding
from ..files import check_folder, write_picture, write_text
from ..rewards import load_reward
from ..sampling import Sampling
from ..text_file import printable
from ..training import AdaptConfig, AdaptResult, adapt
from ..training.names import merge, normalised
from ..training.run_config import parse_override
from ..training.workers import Workers
from .common import (
    add_model_options,
    add_reward_dtype,
    default_sampling,
    graceful_stop,
    load_model_of,
    read_prompts,
    reward_dtype_of,
    setting_lines,
    shared,
)
from .values import prompt_text, whole_number

DESCRIPTION = """\
Adapt a global embedding to single (prompt, seed) pairs: at most 10 steps each, the best is kept, so that no pair ends
below its start by the reward. Writes an embedding and a picture per pair and adapted.json with the rewards.
Pictures are sampled as the embedding was learned, where its file says how; --set sampling.steps=20 changes that.

  reneg adapt --embedding runs/tiny/negative.safetensors --output runs/adapted
  reneg adapt --model sd15/ --embedding e.safetensors --prompts p.txt --reward hpsv2.1 --weights WEIGHTS.pt
  accelerate launch --num_processes 8 -m reneg_core adapt --embedding e.safetensors --output runs/adapted
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "adapt",
        help="adapt an embedding to single prompts",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument("--embedding", required=True, metavar="FILE", help="where each adaptation starts")
    parser.add_argument("--prompt", type=prompt_text, action="append", default=[], help="repeat for several")
    parser.add_argument("--prompts", default="", metavar="FILE", help="text file with one prompt per line")
    parser.add_argument("--seed", type=whole_number(0), default=42, help="the noise of every pair (%(default)s)")
    parser.add_argument("--reward", default="tiny", help="name or mix (%(default)s)")
    parser.add_argument("--weights", default=None, help="the reward's weights: file or folder")
    add_reward_dtype(parser)
    parser.add_argument("--output", default="runs/adapted", help="folder (%(default)s)")
    settings = " ".join(setting_lines(AdaptConfig().to_mapping()))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=f"settings: {settings}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Adapt, write the results, print a line per pair."""
    return shared(args, _adapt)


def _adapt(args: argparse.Namespace, workers: Workers) -> int:
    start = load_embedding(args.embedding)
    config = settings_of(args, start)
    prompts = args.prompt or read_prompts(args.prompts, "test", args.model)
    if workers.rank == 0:
        check_folder(args.output)
    model = load_model_of(args)
    reward = load_reward(args.reward, weights=args.weights, device=model.device, dtype=reward_dtype_of(args))
    from tqdm import tqdm

    with tqdm(total=len(prompts), unit="pair", desc="adapting") as bar, graceful_stop() as should_stop:
        seeds = [args.seed] * len(prompts)
        watching = {"progress": bar.update, "should_stop": should_stop}
        result = adapt(model, reward, prompts, seeds, start, config, workers=workers, **watching)
    if workers.rank == 0:
        _write(Path(args.output), prompts, args.seed, result, start)
    return 0


def settings_of(args: argparse.Namespace, start: NegativeEmbedding) -> AdaptConfig:
    """The settings given, over the sampling that ``start`` was learned for (or the model's default)."""
    base = start.sampling or default_sampling(args.model)
    settings = merge({"sampling": base.to_mapping()}, normalised(dict(parse_override(text) for text in args.set)))
    return AdaptConfig.for_sampling(Sampling.from_mapping(settings.pop("sampling")), **settings)


def _write(folder: Path, prompts: list[str], seed: int, result: AdaptResult, start: NegativeEmbedding) -> None:
    from ..evaluation import to_image

    rows = []
    for index, prompt in enumerate(prompts):
        name = f"{index:05d}"
        result.embedding(index, start).save(folder / f"{name}.safetensors", overwrite=True)
        write_picture(folder / f"{name}.png", to_image(result.images[index]))
        before, after, step = (v[index].item() for v in (result.start_rewards, result.rewards, result.steps))
        rows.append({"file": name, "prompt": prompt, "seed": seed, "start": before, "reward": after, "step": step})
        print(f"{name}  {before:8.4f} -> {after:8.4f}  step {step:2d}  {printable(prompt)}")
    write_text(folder / "adapted.json", json.dumps(rows, indent=1))
