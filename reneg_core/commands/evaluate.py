"""``reneg evaluate``: compare negatives on the same prompts and the same noise, with intervals and a report."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..embedding import NegativeEmbedding, load_embedding
from ..evaluate import Evaluation, Mode, evaluate
from ..model import Conditioning, DiffusionModel
from ..report import headline, write_report
from ..rewards import Reward, load_reward
from ..training import AdaptConfig, adapt
from .common import (
    HANDCRAFTED,
    add_model_options,
    add_sampling_options,
    default_batch_size,
    default_sampling,
    independent_measure,
    load_model_of,
    read_prompts,
    sampling_of,
)
from .protocol import (
    add_protocol_options,
    picture_jobs,
    protocol_prompts,
    report_tables,
    tables_of,
    tables_of_pictures,
)
from .score import weights_of

DESCRIPTION = """\
Sample every prompt with every seed once per mode from the same noise, score the pictures, and write report.html,
report.json and grid.png. Intervals are 95 % bootstrap intervals over prompts.

  modes: none (empty prompt), text (--negative-prompt), embedding (--embedding), adapted (per pair from the embedding)

  reneg evaluate --embedding runs/tiny/negative.safetensors
  reneg evaluate --model sd15/ --embedding sd1.5_reneg_emb.bin --prompts p.txt --reward hpsv2.1 \\
                 --weights HPS_v2.1_compressed.pt --measure image_reward

Published benchmarks: the HPSv2 one (four styles, groups of 80) and means over a prompt set (PickScore, Parti), with the
pictures made here, or made elsewhere. They end up in protocol.json as well.

  reneg evaluate --protocol hpsv2 --prompts benchmark/ --model sd15/ --embedding sd1.5_reneg_emb.bin --reward hpsv2.1
  reneg evaluate --protocol prompt-set --prompts parti.tsv --from-pictures pictures/ --reward pickscore
"""
MODES = ("none", "text", "embedding", "adapted")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="compare negatives, write a report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    add_sampling_options(parser, "30 DDIM steps at guidance scale 7.5 (the tiny world: 3)")
    parser.add_argument("--embedding", default="", metavar="FILE")
    parser.add_argument("--negative-prompt", default=None, help="for the mode text (a handcrafted one)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=None, help="all that the other options allow")
    parser.add_argument("--prompts", default="", metavar="FILE", help="one prompt per line (the tiny world's test set)")
    parser.add_argument("--seeds", type=int, default=None, help="noise seeds per prompt (4; with --protocol 1)")
    parser.add_argument("--reward", default="tiny", help="judge, and what adapted climbs; name or mix (%(default)s)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a reward's weights: file or folder; NAME= for one of several rewards",
    )
    parser.add_argument("--measure", action="append", default=[], metavar="REWARD", help="a further judge; repeat")
    parser.add_argument("--pictures", type=int, default=8, help="rows of the grid (%(default)s)")
    parser.add_argument("--output", default="runs/evaluation", help="folder (%(default)s)")
    add_protocol_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the headline and the report's path."""
    args.batch_size = args.batch_size or default_batch_size(args.model)
    if (args.from_pictures or args.limit) and not args.protocol:
        raise ValueError("--from-pictures and --limit belong to a published protocol: give --protocol too.")
    if args.from_pictures:
        return _score_pictures(args)
    modes = chosen_modes(args.modes, args.embedding)
    styles = protocol_prompts(args.protocol, args.prompts, args.limit) if args.protocol else {}
    prompts = [prompt for style in styles.values() for prompt in style]
    prompts = prompts or read_prompts(args.prompts, "test", args.model)
    embedding = load_embedding(args.embedding) if args.embedding else None
    model = load_model_of(args)
    rewards = _judges(args, model.device)
    reward = rewards.pop(args.reward)
    others = {name: judge.score for name, judge in rewards.items()}
    text = handwritten(args.model) if args.negative_prompt is None else args.negative_prompt
    sampling = sampling_of(args, default_sampling(args.model))
    adapting = AdaptConfig.for_sampling(sampling, micro_batch=args.batch_size)
    evaluation = compare(
        model, reward, prompts, range(args.seeds or (1 if args.protocol else 4)), modes, embedding, text, adapting,
        measures={**others, **independent_measure(args.model)}, pictures=args.pictures,
    )  # fmt: skip
    print(headline(evaluation))
    print(write_report(args.output, evaluation, embedding=embedding))
    if args.protocol:
        print(report_tables(tables_of(evaluation, styles, args.protocol), args.protocol, args.output))
    return 0


def _score_pictures(args: argparse.Namespace) -> int:
    from ..backends.diffusers import pick_device

    jobs = picture_jobs(args.protocol, args.from_pictures, args.prompts, args.limit)
    judges = _judges(args, pick_device(args.device))
    found = tables_of_pictures(judges, jobs, args.protocol, args.batch_size)
    print(report_tables(found, args.protocol, args.output))
    return 0


def _judges(args: argparse.Namespace, device: torch.device) -> dict[str, Reward]:
    """The reward and the further measures by name, each with its weights."""
    names, weights = [args.reward, *args.measure], weights_of(args.weights)
    if len(set(names)) < len(names):
        raise ValueError(f"Got the judges {', '.join(names)}, expected different ones in --reward and --measure.")
    return {
        name: load_reward(
            name, weights=weights if name == args.reward or isinstance(weights, dict) else None, device=device
        )
        for name in names
    }


def chosen_modes(asked: Sequence[str] | None, embedding: str) -> list[str]:
    """The modes asked for, or all that are possible; ValueError when an embedding is missing."""
    needed = {"embedding", "adapted"} & set(asked or ())
    if needed and not embedding:
        raise ValueError(f"The mode {sorted(needed)[0]} needs --embedding FILE.")
    return list(asked or (MODES if embedding else MODES[:2]))


def handwritten(model: str) -> str:
    """The handwritten negative prompt to compare with: the tiny world's best, else the published handcrafted one."""
    if model != "tiny":
        return HANDCRAFTED
    from ..tiny import HANDWRITTEN_NEGATIVE

    return HANDWRITTEN_NEGATIVE


def compare(
    model: DiffusionModel,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[int],
    modes: Sequence[str],
    embedding: NegativeEmbedding | None,
    text: str,
    adapting: AdaptConfig,
    *,
    measures: dict[str, Callable[..., Any]],
    pictures: int = 8,
) -> Evaluation:
    """Evaluate ``modes`` by the reward and the other measures; ``adapted`` adapts every pair first."""
    if embedding:
        embedding.require(model.family, model.width, model.max_tokens)
    negatives: dict[str, Callable[[], Conditioning]] = {
        "none": lambda: model.encode([""]),
        "text": lambda: model.encode([text]),
        "embedding": lambda: embedding.conditioning(),
        "adapted": lambda: _adapted(model, reward, prompts, seeds, embedding, adapting),
    }
    labels = {"none": "empty prompt", "text": f"“{text}”", "embedding": "learned", "adapted": "learned + adapted"}
    chosen = {name: Mode(negatives[name](), labels[name]) for name in modes}
    from tqdm import tqdm

    with tqdm(total=len(prompts) * len(seeds) * len(modes), unit="picture", desc="judging") as bar:
        return evaluate(
            model, prompts, seeds, chosen, {"reward": reward.score, **measures},
            guidance_scale=adapting.sampling.guidance.scale, steps=adapting.sampling.steps,
            batch_size=adapting.micro_batch, solver=adapting.sampling.solver,
            height=adapting.sampling.size.height, width=adapting.sampling.size.width, pictures=pictures,
            measure_labels={"reward": f"reward {reward.name}", "independent": "the independent measure"},
            progress=lambda done, total: bar.update(done - bar.n),
        )  # fmt: skip


def _adapted(
    model: DiffusionModel,
    reward: Reward,
    prompts: Sequence[str],
    seeds: Sequence[int],
    embedding: NegativeEmbedding,
    config: AdaptConfig,
) -> Conditioning:
    from tqdm import tqdm

    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    with tqdm(total=len(pairs), unit="pair", desc="adapting") as bar:
        result = adapt(model, reward, *zip(*pairs, strict=True), embedding, config, progress=bar.update)
    return result.negatives
