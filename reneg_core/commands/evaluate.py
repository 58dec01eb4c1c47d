"""``reneg evaluate``: compare negatives on the same prompts and the same noise, with intervals and a report."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..backends.lora_terms import Weighted, parse_loras
from ..backends.loras import with_loras
from ..embedding import NegativeEmbedding, load_embedding
from ..evaluation import (
    Judges,
    Keep,
    Measure,
    Pairs,
    Rivals,
    Words,
    compare_rivals,
    headline,
    prepare_folder,
    write_report,
)
from ..evaluation.modes import ADAPTED, BEST_TEXT, EMBEDDING, NONE, TEXT
from ..evaluation.results import baseline_of
from ..rewards import Reward, load_reward
from ..sampling import Sampling
from ..text_file import checked_prompts
from ..training import AdaptConfig
from ..training.workers import Workers
from .common import (
    HANDCRAFTED,
    add_model_options,
    add_reward_dtype,
    add_sampling_options,
    chosen_sampling,
    default_batch_size,
    independent_measure,
    independent_parts,
    load_model_of,
    read_prompts,
    reward_dtype_of,
    shared,
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
from .values import MOST, finite_number, prompt_text, whole_number

DESCRIPTION = """\
Sample every prompt once per noise and mode, from the same noise for every mode, score the pictures, and write
report.html, report.json and pictures. Intervals are 95 % bootstrap intervals over prompts and noises.

  modes: none (empty prompt), text (--negative-prompt), best_text (--best-text), embedding (--embedding), adapted (the
  first embedding, adapted to each pair); a second text or embedding is best_text_2 or embedding_2, and so on

  reneg evaluate --embedding runs/tiny/negative.safetensors --best-text "noisy faded" 2.5
  reneg evaluate --model sd15/ --embedding sd1.5_reneg_emb.bin --prompts p.txt --reward hpsv2.1 \\
                 --weights HPS_v2.1_compressed.pt --measure image_reward --scale none=9 --scale text=8

Published benchmarks: the HPSv2 one (four styles, groups of 80) and means over a prompt set (PickScore, Parti), with the
pictures made here, or made elsewhere. They end up in protocol.json as well.

  reneg evaluate --protocol hpsv2 --prompts benchmark/ --model sd15/ --embedding sd1.5_reneg_emb.bin --reward hpsv2.1
  reneg evaluate --protocol prompt-set --prompts parti.tsv --from-pictures pictures/ --reward pickscore

Several processes share the batches of --batch-size pictures and write the same report:

  accelerate launch --num_processes 8 -m reneg_core evaluate --model sd15/ --embedding e.safetensors --prompts p.txt
"""
MODES = (NONE, TEXT, BEST_TEXT, EMBEDDING, ADAPTED)
NOISES = 4


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="compare negatives, write a report",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    add_sampling_options(
        parser, "what the first embedding was learned for, else 30 DDIM steps at guidance scale 7.5 (the tiny world: 3)"
    )
    _add_mode_options(parser.add_argument_group("modes"))
    _add_pair_options(parser.add_argument_group("pairs"))
    parser.add_argument("--reward", default="tiny", help="judge, and what adapted climbs; name or mix (%(default)s)")
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="a reward's weights: file or folder; NAME= for one of several rewards",
    )
    add_reward_dtype(parser)
    parser.add_argument("--measure", action="append", default=[], metavar="REWARD", help="a further judge; repeat")
    parser.add_argument("--pictures", type=whole_number(0, MOST), default=8, help="rows of the grid (%(default)s)")
    parser.add_argument(
        "--losses", type=whole_number(0, MOST), default=6, help="pairs to show where the embedding loses (%(default)s)"
    )
    parser.add_argument("--baseline", default="", metavar="MODE", help="what it loses against (none, else the first)")
    parser.add_argument("--output", default="runs/evaluation", help="folder (%(default)s)")
    add_protocol_options(parser)
    parser.set_defaults(run=run)


def _add_mode_options(group: Any) -> None:
    group.add_argument("--embedding", nargs="+", action="extend", default=[], metavar="FILE", help="one or several")
    group.add_argument(
        "--negative-prompt", type=prompt_text, default=None, help="for the mode text (a handcrafted one)"
    )
    group.add_argument(
        "--best-text", nargs=2, action="append", default=[], metavar=("TEXT", "STRENGTH"),
        help="a further handwritten negative as null + STRENGTH * (TEXT - null); repeat",
    )  # fmt: skip
    group.add_argument(
        "--tuned", action="append", default=[], metavar="NAME=LORA",
        help="the modes NAME and, with an embedding, NAME+embedding: the model with a LoRA of its text encoder or of "
        "other parts, FILE[*WEIGHT], several joined with ' + '; repeat",
    )  # fmt: skip
    group.add_argument("--modes", nargs="+", choices=MODES, default=None, help="all that the other options allow")
    group.add_argument(
        "--scale", action="append", default=[], metavar="MODE=SCALE", help="a guidance scale of its own; repeat"
    )


def _add_pair_options(group: Any) -> None:
    group.add_argument("--prompts", default="", metavar="FILE", help="one prompt per line (the tiny world's test set)")
    group.add_argument(
        "--noises", type=whole_number(1, MOST), default=None, metavar="K",
        help=f"pictures per prompt, each with a noise of its own ({NOISES}; with --protocol 1)",
    )  # fmt: skip
    group.add_argument(
        "--noise-seed", type=whole_number(0), default=0, metavar="N", help="another set of noises (%(default)s)"
    )
    group.add_argument(
        "--seeds", type=whole_number(1, MOST), default=None, metavar="K",
        help="instead of --noises: the same K noises for all prompts (wider intervals)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the headline and the report's path."""
    return shared(args, _evaluate)


def _evaluate(args: argparse.Namespace, workers: Workers) -> int:
    if args.batch_size is None:
        args.batch_size = default_batch_size(args.model)
    if (args.from_pictures or args.limit) and not args.protocol:
        raise ValueError("--from-pictures and --limit belong to a published protocol: give --protocol too.")
    if args.from_pictures:
        if workers.count > 1:
            raise ValueError(f"Got --from-pictures in {workers.count} processes, expected one: nothing is sampled.")
        return _score_pictures(args)
    names = chosen_modes(args.modes, args.best_text, args.embedding)
    styles = protocol_prompts(args.protocol, args.prompts, args.limit) if args.protocol else {}
    prompts = [prompt for style in styles.values() for prompt in style]
    pairs = chosen_pairs(args, prompts or read_prompts(args.prompts, "test", args.model))
    embeddings = {name: load_embedding(file) for name, file in numbered(EMBEDDING, args.embedding).items()}
    sampling = chosen_sampling(args, embeddings.get(EMBEDDING))
    changes = chosen_tunings(args.tuned)
    chosen_rivals(args, names, embeddings, sampling, dict.fromkeys(changes))
    if workers.rank == 0:
        prepare_folder(args.output)
    model = load_model_of(args)
    tuned = {name: with_loras(model, loras) for name, loras in changes.items()}
    rivals = chosen_rivals(args, names, embeddings, sampling, tuned)
    rewards = _judges(args, model.device)
    reward = rewards.pop(args.reward)
    judges = judges_of(reward, args.model, {name: judge.score for name, judge in rewards.items()})
    keep = Keep(args.pictures, args.losses, args.baseline)
    with progress_bars() as progress:
        evaluation = compare_rivals(
            model, pairs, rivals, judges, sampling, keep=keep, batch_size=args.batch_size, progress=progress,
            workers=workers,
        )  # fmt: skip
    if workers.rank:
        return 0
    print(headline(evaluation))
    print(write_report(args.output, evaluation, embedding=embeddings.get(EMBEDDING)))
    if args.protocol:
        print(report_tables(tables_of(evaluation, styles, args.protocol), args.protocol, args.output))
    return 0


def chosen_modes(asked: Sequence[str] | None, texts: Sequence[Any], embeddings: Sequence[str]) -> list[str]:
    """The modes asked for, or all that are possible; ValueError for one whose option is missing or repeated files."""
    if len(set(embeddings)) < len(embeddings):
        raise ValueError(f"Got --embedding {' '.join(embeddings)}, expected different files.")
    possible = {NONE: True, TEXT: True, BEST_TEXT: bool(texts), EMBEDDING: bool(embeddings), ADAPTED: bool(embeddings)}
    for name in asked or ():
        if not possible[name]:
            needed = "--best-text TEXT STRENGTH" if name == BEST_TEXT else "--embedding FILE"
            raise ValueError(f"The mode {name} needs {needed}.")
    return [name for name in MODES if (name in asked if asked else possible[name])]


def chosen_pairs(args: argparse.Namespace, prompts: Sequence[str]) -> Pairs:
    """The prompts with the noises that the options name; ValueError for none, and for both kinds at once."""
    given = {"--noises": args.noises, "--seeds": args.seeds}
    if all(value is not None for value in given.values()):
        raise ValueError(
            "Got --noises and --seeds, expected one of them: noises of their own, or shared by all prompts."
        )
    if args.seeds:
        return Pairs.shared(prompts, range(args.noise_seed, args.noise_seed + args.seeds))
    return Pairs.own(prompts, args.noises or (1 if args.protocol else NOISES), args.noise_seed)


def chosen_rivals(
    args: argparse.Namespace,
    names: Sequence[str],
    embeddings: Mapping[str, NegativeEmbedding],
    sampling: Sampling,
    tuned: Mapping[str, Any],
) -> Rivals:
    """What the options say about the modes ``names`` and the ``tuned`` models; ValueError for a strength or scale that
    is no number, and for a baseline that is none of the modes."""
    texts = {TEXT: Words(handwritten(args.model) if args.negative_prompt is None else args.negative_prompt)}
    strong = checked_prompts([text for text, _ in args.best_text], "--best-text")
    strengths = [_number("--best-text", strength) for _, strength in args.best_text]
    texts |= numbered(BEST_TEXT, list(map(Words, strong, strengths)))
    several = numbered(EMBEDDING, args.embedding) if len(embeddings) > 1 else {}
    samplings = own_samplings(args.scale, sampling)
    adapting = None
    if ADAPTED in names:
        adapting = AdaptConfig.for_sampling(samplings.get(ADAPTED, sampling), micro_batch=args.batch_size)
    rivals = Rivals(
        none=NONE in names,
        texts={name: words for name, words in texts.items() if kind_of(name) in names},
        embeddings=embeddings if EMBEDDING in names else {},
        start=embeddings.get(EMBEDDING),
        adapted=adapting,
        samplings=samplings,
        labels={name: f"learned ({Path(file).stem})" for name, file in several.items()},
        tuned=tuned,
    )
    baseline_of(rivals.names, args.baseline)
    return rivals


def chosen_tunings(entries: Sequence[str]) -> dict[str, list[Weighted]]:
    """["texforce=a.safetensors*0.8 + b.safetensors"] as LoRAs by the name of the tuned model; ValueError otherwise."""
    found = {}
    for entry in entries:
        name, equals, loras = entry.partition("=")
        if not equals or not name.isidentifier() or name in found or not loras.strip():
            raise ValueError(
                f"Got --tuned {entry}, expected NAME=FILE[*WEIGHT] [+ FILE...], each with a name of its own."
            )
        found[name] = parse_loras(loras)
    return found


def numbered(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """``name``, ``name_2``, ``name_3`` and so on."""
    return {name if i == 0 else f"{name}_{i + 1}": value for i, value in enumerate(values)}


def kind_of(mode: str) -> str:
    """The mode that a numbered one is a further one of: ``best_text`` for ``best_text_2``."""
    name, _, number = mode.rpartition("_")
    return name if number.isdigit() else mode


def own_samplings(entries: Sequence[str], sampling: Sampling) -> dict[str, Sampling]:
    """["none=4", ...] as ``sampling`` at that guidance scale, by mode; ValueError for anything else."""
    found = {}
    for entry in entries:
        mode, _, scale = entry.rpartition("=")
        if not mode:
            raise ValueError(f"Got --scale {entry}, expected MODE=SCALE, for example --scale none=4.")
        found[mode] = sampling.at_scale(_number("--scale", scale))
    return found


def _number(option: str, text: str) -> float:
    try:
        return finite_number()(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{option}: {error}.") from error


def judges_of(reward: Reward, model: str, others: Mapping[str, Measure]) -> Judges:
    """The reward under the name ``reward``, further judges, and the tiny world's independent measure with its parts."""
    return Judges(
        {"reward": reward.score, **others, **independent_measure(model)},
        independent_parts(model),
        reward,
        {"reward": f"reward {reward.name}", "independent": "the independent measure"},
    )


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage of a comparison, moved by the yielded function."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def advance(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, unit="pair" if stage == "adapting" else "picture", desc=stage)
        bars[stage].update(done - bars[stage].n)

    try:
        yield advance
    finally:
        for bar in bars.values():
            bar.close()


def _score_pictures(args: argparse.Namespace) -> int:
    from ..backends.devices import pick_device

    jobs = picture_jobs(args.protocol, args.from_pictures, args.prompts, args.limit)
    prepare_folder(args.output)
    judges = _judges(args, pick_device(args.device))
    found = tables_of_pictures(judges, jobs, args.protocol, args.batch_size)
    print(report_tables(found, args.protocol, args.output))
    return 0


def _judges(args: argparse.Namespace, device: torch.device) -> dict[str, Reward]:
    """The reward and the further measures by name, each with its weights."""
    names, weights = [args.reward, *args.measure], weights_of(args.weights)
    if len(set(names)) < len(names):
        raise ValueError(f"Got the judges {', '.join(names)}, expected different ones in --reward and --measure.")
    options = {"device": device, "dtype": reward_dtype_of(args)}
    return {
        name: load_reward(
            name, weights=weights if name == args.reward or isinstance(weights, dict) else None, **options
        )
        for name in names
    }


def handwritten(model: str) -> str:
    """The handwritten negative prompt to compare with: the tiny world's best, else the published handcrafted one."""
    if model != "tiny":
        return HANDCRAFTED
    from ..tiny import HANDWRITTEN_NEGATIVE

    return HANDWRITTEN_NEGATIVE
