"""``reneg rewards``: which rewards there are, and what each still needs."""

import argparse
import json
from typing import Any

from ..rewards import available_rewards
from ..rewards.published import size_text

DESCRIPTION = """\
List the rewards with the state of their files: found (and where) or missing (and where they are published).

  reneg rewards
  reneg rewards --search-dir ComfyUI/models/reward_models --format json
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "rewards", help="list rewards", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search-dir", action="append", default=[], help="where to look for weights (repeat)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one block per reward."""
    rows = [describe(name, args.search_dir) for name in available_rewards()]
    print(json.dumps(rows, indent=2) if args.format == "json" else "\n".join(map(as_text, rows)))
    return 0


def describe(name: str, search_dirs: list[str]) -> dict[str, Any]:
    """Name, summary, statistics, and the files of a reward as loading finds them: found paths and what is missing."""
    from ..rewards.registry import reward_class_of
    from ..rewards.weights import Source

    cls = reward_class_of(name)
    try:
        located, problem = cls.locate(Source.of(None, search_dirs)), ""
    except ValueError as error:
        located, problem = {}, str(error)
    stats = {"mean": cls.statistics.mean, "std": cls.statistics.std, "source": cls.statistics.source}
    missing = [file for file, path in located.items() if path is None]
    return {
        "name": name,
        "summary": available_rewards()[name].summary,
        "ready": not missing and not problem,
        "found": {file.name: str(path) for file, path in located.items() if path is not None},
        "missing": [
            {"file": file.name, "place": file.place.as_posix(), "page": file.page, "bytes": file.size or None}
            for file in missing
        ],
        "problem": problem,
        "needs_prompt": cls.needs_prompt,
        "statistics": stats,
    }


def as_text(row: dict[str, Any]) -> str:
    """A line for the reward and one for each of its files."""
    state = "ready" if row["ready"] else "ambiguous" if row["problem"] else "missing files"
    lines = [f"{row['name']:<22} {state:<14} {row['summary']}"]
    lines += [f"    {row['problem']}"] if row["problem"] else []
    lines += [f"    found   {name}: {path}" for name, path in row["found"].items()]
    for entry in row["missing"]:
        lines.append(f"    missing {entry['place']}: {entry['page']}{size_text(entry['bytes'])}")
    return "\n".join(lines)
