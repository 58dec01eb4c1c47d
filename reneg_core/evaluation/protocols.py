"""Published evaluation protocols: HPSv2's four styles, and a mean over a fixed prompt set (PickScore, Parti).

Statistics, prompt files and folders of pictures; which reward scores is the caller's choice and part of the result's
name. ``reneg evaluate --protocol`` is the command.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reneg_core.rewards import Reward
from reneg_core.score import SUFFIXES, ScoredImage, score_files
from reneg_core.text_file import checked_prompts, read_json, read_text

HPSV2_STYLES = ("anime", "concept-art", "paintings", "photo")
HPSV2_GROUP = 80
Job = tuple[Path, str]


@dataclass(frozen=True)
class StyleRow:
    """One style of the HPSv2 benchmark. mean, std: over the groups' means, in units of the table; count: pictures."""

    style: str
    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class HPSv2Table:
    """The rows, and `average`: the mean over all pictures."""

    reward: str
    rows: tuple[StyleRow, ...]
    average: float


@dataclass(frozen=True)
class MeanRow:
    """Mean of a reward over a prompt set, with the standard error of that mean."""

    reward: str
    mean: float
    standard_error: float
    count: int


def hpsv2_table(
    scores: Mapping[str, Sequence[float]], reward: str, *, group: int = HPSV2_GROUP, scale: float = 100.0
) -> HPSv2Table:
    """The published HPSv2 benchmark statistics (Wu et al. 2023, arXiv 2306.09341; `evaluate` of the hpsv2 package).

    scores: cosines by style, in the order of the prompts. Each style's scores are cut into groups of `group` in that
    order; its mean and population standard deviation are over the groups' means, times `scale`. Averages are
    comparable only within one version of the model ("hpsv2.0" against "hpsv2.1") and one resize variant.
    Raises ValueError for an empty style.
    """
    if not scores or not all(len(values) for values in scores.values()):
        raise ValueError("HPSv2 protocol: got a style without scores; expected at least one picture per style")
    rows = []
    for style, values in scores.items():
        values = scale * np.asarray(values, dtype=np.float64)
        means = [values[start : start + group].mean() for start in range(0, len(values), group)]
        rows.append(StyleRow(style, float(np.mean(means)), float(np.std(means)), len(values)))
    everything = scale * np.concatenate([np.asarray(values, dtype=np.float64) for values in scores.values()])
    return HPSv2Table(reward, tuple(rows), float(everything.mean()))


def prompt_set_rows(scores: Mapping[str, Sequence[float]]) -> list[MeanRow]:
    """Mean and standard error by reward over one prompt set, as PickScore and Parti results are reported.

    Such means compare only within the same prompts. Raises ValueError for fewer than 2 scores.
    """
    rows = []
    for reward, values in scores.items():
        values = np.asarray(values, dtype=np.float64)
        if len(values) < 2:
            raise ValueError(f"prompt-set protocol: got {len(values)} scores of {reward}, expected at least 2")
        rows.append(MeanRow(reward, float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5), len(values)))
    return rows


def hpsv2_prompts(folder: Path, limit: int | None = None) -> dict[str, list[str]]:
    """Prompts by style from `folder`/STYLE.json, the benchmark's own files; `limit`: only the first ones of each.

    Raises FileNotFoundError for a folder without such files, ValueError for one that is no list of strings.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"{folder}: expected a folder with a JSON list of prompts per style, e.g. {HPSV2_STYLES[0]}.json"
        )
    return {path.stem: read_prompt_list(path)[:limit] for path in files}


def hpsv2_jobs(pictures: Path, prompts: Path) -> dict[str, list[Job]]:
    """Pictures and prompts of the HPSv2 layout: `pictures`/STYLE/00012.jpg (any picture suffix) belongs to entry 12
    of `prompts`/STYLE.json, a list of strings.

    A style may have fewer pictures than prompts. Raises FileNotFoundError or ValueError for missing folders, files
    that are not numbered, or numbers without a prompt.
    """
    styles = sorted(path.name for path in Path(pictures).iterdir() if path.is_dir()) if Path(pictures).is_dir() else []
    if not styles:
        raise FileNotFoundError(
            f"{pictures}: expected a folder with one subfolder per style, e.g. {', '.join(HPSV2_STYLES)}"
        )
    return {style: _style_jobs(Path(pictures) / style, Path(prompts) / f"{style}.json") for style in styles}


def prompt_set_jobs(pictures: Path, prompts: Path) -> list[Job]:
    """Numbered pictures in one folder and their prompts: a JSON list, a text file with one prompt per line, or
    Parti's TSV (column "Prompt"). Same errors as `hpsv2_jobs`."""
    return _style_jobs(Path(pictures), Path(prompts))


def score_jobs(
    reward: Reward,
    jobs: Sequence[Job],
    *,
    batch_size: int = 16,
    side_by_side: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ScoredImage]:
    """Score jobs in their order."""
    return score_files(
        reward,
        [path for path, _ in jobs],
        [prompt for _, prompt in jobs],
        batch_size=batch_size,
        side_by_side=side_by_side,
        progress=progress,
    )


def read_prompt_list(path: Path) -> list[str]:
    """Prompts of a JSON list, a TSV with a column "Prompt", or a text file with one per line.

    Errors: FileNotFoundError, OSError, ValueError for what holds no such text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected the prompts (JSON list, TSV or one per line)")
    if path.suffix == ".json":
        entries = read_json(path)
        if not isinstance(entries, list):
            raise ValueError(f"Got {path} with {type(entries).__name__}, expected a JSON list of prompts.")
        return checked_prompts(entries, path)
    lines = read_text(path).splitlines()
    if path.suffix == ".tsv":
        columns = lines[0].split("\t") if lines else []
        if "Prompt" not in columns:
            raise ValueError(f"{path}: has the columns {', '.join(columns) or 'none'}, expected one called Prompt")
        rows, place = [line.split("\t") for line in lines[1:]], columns.index("Prompt")
        short = [number for number, row in enumerate(rows, 2) if len(row) <= place]
        if short:
            raise ValueError(f"{path}: line {short[0]} has no column {place + 1}, expected tabs between the columns")
        lines = [row[place] for row in rows]
    return checked_prompts(lines, path)


def _style_jobs(folder: Path, prompt_file: Path) -> list[Job]:
    prompts = read_prompt_list(prompt_file)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{folder} holds no pictures; expected files numbered like 00000.jpg")
    unnumbered = [path.name for path in files if not path.stem.isdigit()]
    if unnumbered:
        raise ValueError(f"{folder / unnumbered[0]}: expected a name that is the prompt's number, like 00012.jpg")
    beyond = [path for path in files if int(path.stem) >= len(prompts)]
    if beyond:
        raise ValueError(f"{beyond[0]} has no prompt: {prompt_file} holds {len(prompts)}")
    return [(path, prompts[int(path.stem)]) for path in sorted(files, key=lambda path: int(path.stem))]
