"""``reneg transfer``: which models an embedding serves, why not the others, and how well."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from ..backends.outline import outline
from ..clip_files import FORMATS, check_format
from ..embedding import NegativeEmbedding, load_embedding
from ..evaluation import Evaluation, Keep, Pairs, Rivals, compare_rivals, headline, prepare_folder, write_report
from ..evaluation.modes import EMBEDDING, NONE
from ..files import write_text
from ..model import DiffusionModel
from ..rewards import load_reward
from ..sampling import NATIVE, Sampling
from ..text_file import printable
from ..transfer import Fit, comparison_clip, fit_of
from .common import (
    add_reward_dtype,
    add_sampling_options,
    default_batch_size,
    default_sampling,
    given_sampling,
    read_prompts,
    reward_dtype_of,
)
from .evaluate import judges_of, progress_bars
from .values import MOST, whole_number

DESCRIPTION = """\
Say which models read an embedding's text convention, and for each other one what differs: convention, width, tokens,
layer, mask, pooled vector. Only configurations are read for that. With --prompts the models that fit are then loaded
and compared with the empty prompt on the same noise: a report with its grid in OUTPUT/MODEL, for video a clip of both.

  reneg transfer --from sd2.1_reneg_emb.bin --to sd21/ zeroscope/ videocrafter2_unet/ sdxl.safetensors
  reneg transfer --from pixart-alpha_reneg_emb.bin --to pixart/ ltx/ --prompts p.txt --reward hpsv2.1 --weights HPS.pt
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "transfer",
        help="say which models an embedding serves",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="file", required=True, metavar="FILE", help="the embedding")
    parser.add_argument("--to", nargs="+", action="extend", required=True, metavar="MODEL", help="as --model elsewhere")
    parser.add_argument("--json", action="store_true", help="print JSON")
    group = parser.add_argument_group("pictures", "With --prompts only.")
    group.add_argument("--prompts", default="", metavar="FILE", help="text file with one prompt per line")
    group.add_argument("--noises", type=whole_number(1, MOST), default=1, help="pictures per prompt (%(default)s)")
    group.add_argument("--reward", default="tiny", help="name or mix (%(default)s)")
    group.add_argument("--weights", default=None, help="the reward's weights: file or folder")
    add_reward_dtype(group)
    group.add_argument("--model-config", default=None, metavar="FOLDER", help="as for the other commands")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (%(default)s)")
    group.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16 (%(default)s)")
    group.add_argument("--clip", choices=FORMATS, default="gif", help="how clips are written (%(default)s)")
    group.add_argument("--output", default="runs/transfer", help="folder (%(default)s)")
    add_sampling_options(parser, "what the embedding was learned for, at the model's own size, else the default")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a verdict per model, then the scores."""
    embedding = load_embedding(args.file)
    check_format(args.clip)
    prompts = read_prompts(args.prompts, "test", "") if args.prompts else []
    fits, unread = _verdicts(embedding, args.to)
    facts: dict[str, Any] = {name: _facts(fit) for name, fit in fits.items()}
    facts |= {name: {"fits": None, "reasons": [reason], "notes": []} for name, reason in unread.items()}
    if not args.json:
        print(printable("\n".join(_lines(name, facts[name]) for name in dict.fromkeys(args.to))))
    for name in [name for name, fit in fits.items() if fit.fits and prompts]:
        facts[name]["scores"] = _scores(_compared(args, embedding, name, prompts))
    if prompts:
        write_text(Path(args.output) / "transfer.json", json.dumps(facts, indent=1))
    if args.json:
        print(json.dumps(facts, indent=1))
    return 0


def _verdicts(embedding: NegativeEmbedding, models: list[str]) -> tuple[dict[str, Fit], dict[str, str]]:
    """The fit of every model that can be read, and for the others why they cannot."""
    fits, unread = {}, {}
    for name in dict.fromkeys(models):
        try:
            fits[name] = fit_of(embedding, outline(name))
        except (OSError, ValueError) as error:
            unread[name] = str(error)
    return fits, unread


def _facts(fit: Fit) -> dict[str, Any]:
    model = fit.model
    return {
        "fits": fit.fits, "reasons": list(fit.reasons), "notes": list(fit.notes), "pipeline": model.kind,
        "family": model.family, "width": model.width, "pooled": model.pooled, "max_tokens": model.max_tokens,
    }  # fmt: skip


def _lines(name: str, facts: dict[str, Any]) -> str:
    verdict = {True: "fits", False: "does not fit", None: "cannot be read"}[facts["fits"]]
    kind = f" ({facts['pipeline']}, {facts['family']})" if facts["fits"] is not None else ""
    return "\n  ".join([f"{name}{kind}: {verdict}", *facts["reasons"], *facts["notes"]])


def _compared(args: argparse.Namespace, embedding: NegativeEmbedding, name: str, prompts: list[str]) -> Evaluation:
    """Sample, score and write the report of one model, and of video a clip."""
    from ..backends import load_model

    folder = Path(args.output) / _folder_name(name)
    prepare_folder(folder)
    model = load_model(name, device=args.device, dtype=args.dtype, config=args.model_config)
    reward = load_reward(args.reward, weights=args.weights, device=model.device, dtype=reward_dtype_of(args))
    sampling = _sampling(args, embedding, model)
    print(printable(f"{name}: {sampling.describe()}"), file=sys.stderr)
    pairs = Pairs.own(prompts, args.noises)
    with progress_bars() as progress:
        evaluation = compare_rivals(
            model, pairs, Rivals(embeddings={EMBEDDING: embedding}), judges_of(reward, name, {}), sampling,
            keep=Keep(8, 4), batch_size=args.batch_size or default_batch_size(name, model), progress=progress,
        )  # fmt: skip
    print(f"{printable(name)}: {headline(evaluation)}\n{write_report(folder, evaluation, embedding=embedding)}",
          file=sys.stderr if args.json else sys.stdout)  # fmt: skip
    if hasattr(model, "frame_rate"):
        comparison_clip(model, embedding, *pairs.pair(0), sampling, folder / f"comparison.{args.clip}")
    return evaluation


def _sampling(args: argparse.Namespace, embedding: NegativeEmbedding, model: DiffusionModel) -> Sampling:
    """As learned or asked for; but another model's pictures have a size of their own, and only clips have frames."""
    base, given = embedding.sampling or default_sampling(model.name), given_sampling(args)
    own = {part: getattr(NATIVE, part) for part in ("height", "width", "frames")}
    if not hasattr(model, "frame_rate"):
        given.pop("frames", None)
    return base.changed(**{**own, **given})


def _folder_name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model"


def _scores(evaluation: Evaluation) -> dict[str, Any]:
    found = evaluation.to_json()
    judge = evaluation.judge
    return {"judge": evaluation.label(judge), **{mode: found[mode][f"{judge}_mean"] for mode in (NONE, EMBEDDING)}} | {
        "embedding > none": found["win_rate"][judge][f"{EMBEDDING}>{NONE}"]
    }
