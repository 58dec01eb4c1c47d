"""``reneg evaluate --protocol``: published benchmark statistics over pictures made here or elsewhere."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..evaluation.protocols import (
    HPSv2Table,
    Job,
    MeanRow,
    hpsv2_jobs,
    hpsv2_prompts,
    hpsv2_table,
    prompt_set_jobs,
    prompt_set_rows,
    read_prompt_list,
    score_jobs,
)
from ..evaluation.results import Evaluation
from ..files import write_text
from ..rewards import Reward
from .values import whole_number

PROTOCOLS = ("hpsv2", "prompt-set")
FILE = "protocol.json"
WHOLE = "all"  # the only style of a prompt set
Tables = dict[str, HPSv2Table | MeanRow]


def add_protocol_options(parser: argparse.ArgumentParser) -> None:
    """--protocol, --from-pictures, --limit."""
    group = parser.add_argument_group("published protocols")
    group.add_argument(
        "--protocol", choices=PROTOCOLS,
        help="hpsv2: --prompts is a folder with STYLE.json; prompt-set: a TSV (Parti), JSON list or text file",
    )  # fmt: skip
    group.add_argument(
        "--from-pictures", type=Path, metavar="FOLDER",
        help="score pictures made elsewhere, named by their prompt's number (hpsv2: STYLE/00012.jpg)",
    )  # fmt: skip
    group.add_argument("--limit", type=whole_number(1), metavar="N", help="only the first N prompts (of each style)")


def protocol_prompts(protocol: str, source: str, limit: int | None) -> dict[str, list[str]]:
    """The protocol's prompts by style; a prompt set is one style. Raises ValueError for an empty source."""
    _check(protocol, source)
    if protocol == "hpsv2":
        return hpsv2_prompts(Path(source), limit)
    prompts = [prompt for prompt in read_prompt_list(Path(source)) if prompt.strip()][:limit]
    if not prompts:
        raise ValueError(f"{source} holds no prompts")
    return {WHOLE: prompts}


def tables_of(evaluation: Evaluation, styles: Mapping[str, Sequence[str]], protocol: str) -> dict[str, Tables]:
    """``[measure][mode]``: the protocol's table over an evaluation whose prompts are those of ``styles`` in order."""
    return {
        measure: {
            mode: table(protocol, evaluation.label(measure), _by_style(rows, styles)) for mode, rows in modes.items()
        }
        for measure, modes in evaluation.scores.items()
    }


def picture_jobs(protocol: str, pictures: Path, source: str, limit: int | None) -> dict[str, list[Job]]:
    """Pictures made elsewhere, named by their prompt's number, with those prompts, by style.

    limit: only pictures of the first prompts (of each style). Raises ValueError where none is left, and as
    `protocol_prompts` and `hpsv2_jobs`.
    """
    _check(protocol, source)
    find = hpsv2_jobs if protocol == "hpsv2" else lambda *folders: {WHOLE: prompt_set_jobs(*folders)}
    jobs = find(pictures, Path(source))
    if limit is not None:
        jobs = {style: [job for job in every if int(job[0].stem) < limit] for style, every in jobs.items()}
    empty = [style for style, every in jobs.items() if not every]
    if empty:
        raise ValueError(f"--limit {limit}: {pictures} has no picture of the first {limit} prompts ({empty[0]})")
    return jobs


def tables_of_pictures(
    rewards: Mapping[str, Reward], jobs: Mapping[str, Sequence[Job]], protocol: str, batch_size: int
) -> dict[str, Tables]:
    """``[reward]["pictures"]``: the protocol's table over pictures made elsewhere."""
    from tqdm import tqdm

    total, found = sum(map(len, jobs.values())) * len(rewards), {}
    with tqdm(total=total, unit="picture", desc="scoring") as bar:
        for name, reward in rewards.items():
            scores = {
                style: [r.score for r in score_jobs(reward, entries, batch_size=batch_size, progress=bar.update)]
                for style, entries in jobs.items()
            }
            found[name] = {"pictures": table(protocol, name, scores)}
    return found


def table(protocol: str, reward: str, scores: Mapping[str, Sequence[float]]) -> HPSv2Table | MeanRow:
    """One protocol's statistics of scores by style."""
    return hpsv2_table(scores, reward) if protocol == "hpsv2" else prompt_set_rows({reward: scores[WHOLE]})[0]


def report_tables(found: Mapping[str, Tables], protocol: str, directory: str | Path) -> str:
    """Write ``protocol.json`` into ``directory`` and return the tables as text."""
    plain: dict[str, Any] = {
        measure: {mode: asdict(entry) for mode, entry in modes.items()} for measure, modes in found.items()
    }
    path = Path(directory) / FILE
    write_text(path, json.dumps({"protocol": protocol, "tables": plain}, indent=2))
    lines = [line for modes in found.values() for line in (_hpsv2_lines if protocol == "hpsv2" else _lines)(modes)]
    return "\n".join([*lines, str(path)])


def _check(protocol: str, source: str) -> None:
    if not source:
        raise ValueError(f"--protocol {protocol} needs --prompts: the benchmark's own prompt file or folder.")


def _by_style(rows: Sequence[Sequence[float]], styles: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    rest, found = list(rows), {}
    for style, prompts in styles.items():
        found[style], rest = [score for row in rest[: len(prompts)] for score in row], rest[len(prompts) :]
    return found


def _hpsv2_lines(modes: Mapping[str, HPSv2Table]) -> list[str]:
    first = next(iter(modes.values()))
    names = [row.style for row in first.rows]
    lines = ["  ".join([f"{first.reward[:24]:<24}", *(f"{name:>15}" for name in [*names, "average"])])]
    for mode, entry in modes.items():
        cells = [f"{row.mean:8.3f} ± {row.std:.2f}" for row in entry.rows]
        lines.append("  ".join([f"{mode:<24}", *(f"{cell:>15}" for cell in [*cells, f"{entry.average:.3f}"])]))
    return lines


def _lines(modes: Mapping[str, MeanRow]) -> list[str]:
    return [
        f"{row.reward[:24]:<24}  {mode:<12}  {row.mean:.4f} ± {row.standard_error:.4f} (standard error, {row.count})"
        for mode, row in modes.items()
    ]
