"""``reneg score``: what rewards say about picture files."""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import check_folder
from ..score import ScoredImage, columns_of, find_images, load_rewards, prompts_for, score_files
from ..text_file import printable
from .common import add_reward_dtype, reward_dtype_of
from .values import prompt_text, whole_number

DESCRIPTION = """\
Score pictures with reward models. Higher is better; a mix is standardised part by part.

  reneg score --reward image_reward --weights models/ImageReward --prompt "a red fox" picture.png
  reneg score --reward hpsv2.1 --reward aesthetic --sort aesthetic --top 10 --format csv output/
  reneg score --reward "hpsv2.1*1.0 + image_reward*0.5" --write-metadata output/*.png

Without --prompt and --prompts each picture's own metadata is read (ComfyUI, A1111, reneg). A picture that cannot be
read is named at the end and left out; the exit code is then 1.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "score", help="score pictures", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="picture files, folders or patterns")
    parser.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="SPEC",
        help="name, mix or python file; repeat for several (see: reneg rewards)",
    )
    parser.add_argument("--prompt", type=prompt_text, help="the same prompt for every picture")
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="one prompt per line in the order of the pictures, or JSON: file name to prompt",
    )
    add_weight_options(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (%(default)s)")
    add_reward_dtype(parser, "--dtype")
    parser.add_argument("--preprocess", choices=("exact", "smooth"), help="default: exact, as published")
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=16,
        help="at most so many pictures at once (%(default)s); fewer if memory says so",
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument("--sort", metavar="NAME", nargs="?", const="", help="best first, by this column or the first")
    parser.add_argument("--top", type=whole_number(1), metavar="K", help="only the best K (implies --sort)")
    parser.add_argument("--write-metadata", action="store_true", help="store the scores in the PNG files")
    parser.set_defaults(run=run)


def add_weight_options(parser: argparse.ArgumentParser) -> None:
    """--weights, --config, --vocab, --merges, --search-dir, --download."""
    group = parser.add_argument_group("weights")
    group.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="file or folder in the published layout; NAME= for one of several rewards",
    )
    group.add_argument("--config", type=Path, help="configuration JSON, if it is not beside the weights")
    group.add_argument("--vocab", help="vocabulary file, folder or hub id, if it is not beside the weights")
    group.add_argument("--merges", help="merges.txt that belongs to --vocab")
    group.add_argument("--search-dir", action="append", default=[], help="where to look for weights (repeat)")
    group.add_argument("--download", action="store_true", help="fetch missing files from their publisher")


def run(args: argparse.Namespace) -> int:
    """Print the scores of all pictures that can be read; 1 if there were others, which are named on stderr."""
    from ..picture_metadata import check_png

    failed: dict[Path, str] = {}
    paths = find_images(args.images)
    prompts = prompts_for(paths, args.prompt, args.prompts, failed)
    if args.write_metadata:
        for path in paths:
            check_png(path)
        for folder in {path.parent for path in paths}:
            check_folder(folder)
    reward = load_rewards(args.reward, **reward_options(args))
    check_sort(args.sort, columns_of(reward, len(args.reward) > 1))
    results = _with_progress(args, reward, paths, prompts, failed)
    if results:
        print({"table": as_table, "csv": as_csv, "json": as_json}[args.format](select(results, args.sort, args.top)))
    if args.write_metadata:
        _write(results, failed)
    return _report(failed, len(paths))


def reward_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments for `load_reward` from the command line; what was not given is left out."""
    from ..backends.devices import pick_device

    given = {name: getattr(args, name) for name in ("config", "vocab", "merges", "preprocess")}
    given |= {"search_dirs": args.search_dir, "download": args.download, "weights": weights_of(args.weights)}
    return {
        "device": pick_device(args.device),
        "dtype": reward_dtype_of(args),
        **{name: value for name, value in given.items() if value},
    }


def weights_of(entries: Sequence[str]) -> str | dict[str, str] | None:
    """["PATH"] as the path, ["NAME=PATH", ...] as a mapping; raises ValueError for a mixture."""
    named = dict(entry.split("=", 1) for entry in entries if "=" in entry and not Path(entry).exists())
    if not entries or len(named) == len(entries):
        return named or None
    if len(entries) > 1:
        raise ValueError(f"--weights: got {', '.join(entries)}; expected one path, or NAME=PATH for each reward")
    return entries[0]


def check_sort(sort: str | None, names: Sequence[str]) -> None:
    """Raise ValueError unless `sort` is empty or one of the columns `names`."""
    if sort and sort not in names:
        raise ValueError(f"--sort: got {sort!r}, expected one of {', '.join(names)}")


def select(results: Sequence[ScoredImage], sort: str | None, top: int | None) -> list[ScoredImage]:
    """Best first by column `sort` (empty: the first column) and cut to `top`; in the given order if neither is set."""
    if sort is None and top is None:
        return list(results)
    name = sort or next(iter(results[0].scores))
    return sorted(results, key=lambda result: -result.scores[name])[:top]


def as_json(results: Sequence[ScoredImage]) -> str:
    """A list of objects, one per picture."""
    rows = [
        {"image": str(r.image), "prompt": r.prompt, "score": r.score, "scores": r.scores, "truncated": r.truncated}
        for r in results
    ]
    return printable(json.dumps(rows, indent=2, ensure_ascii=False))


def as_csv(results: Sequence[ScoredImage]) -> str:
    """A header and one line per picture; texts are :func:`inert`."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", *map(inert, results[0].scores), "truncated", "prompt"])
    writer.writerows([inert(r.image), *r.scores.values(), r.truncated, inert(r.prompt)] for r in results)
    return stream.getvalue().rstrip("\n")


def inert(text: object) -> str:
    """Text that no spreadsheet takes for a formula, nor a terminal for a command.

    An apostrophe goes before a leading = + - @ (also in full width), tab or line break, spaces before it or not.
    """
    text = printable(str(text))
    return f"'{text}" if text.lstrip(" ").startswith(tuple("=+-@\t\r\n＝＋－＠")) else text


def one_line(prompt: str) -> str:
    """The beginning of a prompt without its line breaks."""
    return " ".join(prompt.split())[:60]


def as_table(results: Sequence[ScoredImage]) -> str:
    """Aligned columns; a star marks prompts that a text encoder cut."""
    names = list(results[0].scores)
    width = max(len(str(r.image)) for r in results)
    lines = ["  ".join([f"{'image':<{width}}", *(f"{name:>10}" for name in names), "prompt"])]
    for r in results:
        numbers = [f"{r.scores[name]:>{max(10, len(name))}.4f}" for name in names]
        lines.append("  ".join([f"{r.image!s:<{width}}", *numbers, ("* " if r.truncated else "") + one_line(r.prompt)]))
    return printable("\n".join(lines))


def _with_progress(
    args: argparse.Namespace, reward: Any, paths: list[Path], prompts: list[str | None], failed: dict[Path, str]
) -> list[ScoredImage]:
    from tqdm import tqdm

    options = {"batch_size": args.batch_size, "side_by_side": len(args.reward) > 1, "failed": failed}
    with tqdm(total=len(paths), unit="picture", disable=not sys.stderr.isatty()) as bar:
        return score_files(reward, paths, prompts, progress=bar.update, **options)


def _write(results: Sequence[ScoredImage], failed: dict[Path, str]) -> None:
    """Store the scores in the pictures, which are printed by then."""
    from ..picture_metadata import write_scores

    for result in results:
        try:
            write_scores(result.image, result.scores)
        except (ValueError, OSError) as error:
            failed[result.image] = f"{result.image}: the scores could not be written ({error})"


def _report(failed: dict[Path, str], count: int) -> int:
    """Name what failed on stderr; the exit code."""
    if failed:
        print(f"reneg score: {len(failed)} of {count} pictures failed:", file=sys.stderr)
        for problem in failed.values():
            print(printable(f"  {problem}"), file=sys.stderr)
    return 1 if failed else 0
