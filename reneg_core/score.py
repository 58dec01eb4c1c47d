"""Scoring picture files: which files, which prompt belongs to each, what every reward says."""

import glob
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from reneg_core.picture_files import PictureError, read_levels
from reneg_core.picture_metadata import read_prompt
from reneg_core.rewards import Reward, RewardMix, load_reward
from reneg_core.rewards.base import device_of
from reneg_core.rewards.pixels import Pixels, form, joined, size_in_bytes
from reneg_core.text_file import checked_prompts, read_json, read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
WAITING_BYTES = 1 << 28  # of pictures that wait for others of their size


@dataclass(frozen=True)
class ScoredImage:
    """One picture's result. score: of the reward (of the first, if there are several); scores: raw score by name,
    the parts of a mix included; truncated: a text encoder read only the beginning of the prompt."""

    image: Path
    prompt: str
    score: float
    scores: dict[str, float]
    truncated: bool


def load_rewards(specs: Sequence[str], **options: object) -> Reward:
    """One reward, or several as a mix of equal weights without normalisation, so that image towers are shared.

    options: see `load_reward`; with several rewards, each takes the options it knows.
    """
    if not specs:
        raise ValueError("no reward given; expected at least one name, e.g. image_reward")
    if len(specs) == 1:
        return load_reward(specs[0], **options)
    if not any("*" in spec or "+" in spec for spec in specs):
        return load_reward(" + ".join(specs), normalise="none", **options)
    rewards = {spec: load_reward(spec, **options) for spec in specs}
    return RewardMix(rewards, dict.fromkeys(rewards, 1.0), normalise="none").eval()


def columns_of(reward: Reward, side_by_side: bool = False) -> list[str]:
    """Names of the numbers that `score_files` gives, the one that counts first.

    side_by_side: a mix only lists several rewards (`load_rewards`), so its sum is left out.
    """
    names = reward.columns()
    return names[1:] if side_by_side and len(names) > 1 else names


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Files as given, the pictures of folders (subfolders included, sorted), and what patterns such as `out/*.png`
    match; raises FileNotFoundError for an input that does not exist or a folder or pattern without pictures."""
    return [path for entry in inputs for path in _pictures(Path(entry))]


def _pictures(entry: Path) -> list[Path]:
    if entry.is_file():
        return [entry]
    if entry.is_dir():
        inside = sorted(path for path in entry.rglob("*") if path.suffix.lower() in SUFFIXES)
        problem = "holds no pictures"
    else:
        matches = sorted(Path(match) for match in glob.glob(str(entry), recursive=True))
        inside = [path for path in matches if path.suffix.lower() in SUFFIXES]
        problem = "matches no pictures" if glob.has_magic(str(entry)) else "does not exist"
    if not inside:
        raise FileNotFoundError(f"{entry} {problem}; expected picture files ({', '.join(SUFFIXES)}) or folders")
    return inside


def prompts_for(
    paths: Sequence[Path],
    prompt: str | None = None,
    prompt_file: Path | None = None,
    failed: dict[Path, str] | None = None,
) -> list[str | None]:
    """One prompt per picture: `prompt` for all, or from `prompt_file`, or from each picture's own metadata (None if it
    has none). The file holds one prompt per line in the order of the pictures, or is JSON: a list, or an object from
    file name to prompt. Errors: OSError; ValueError for files that hold no such text.

    failed: receives what is wrong with each picture that cannot be read; without it the first raises PictureError.
    """
    if prompt is not None:
        return [prompt] * len(paths)
    if prompt_file is None:
        return [_own_prompt(path, failed) for path in paths]
    path = Path(prompt_file)
    entries = read_json(path) if path.suffix == ".json" else read_text(path).splitlines()
    if isinstance(entries, Mapping):
        found = [entries.get(str(picture), entries.get(picture.name)) for picture in paths]
        checked_prompts([entry for entry in found if entry is not None], path)
        return found
    if not isinstance(entries, list):
        raise ValueError(f"Got {path} with {type(entries).__name__}, expected a list of prompts or names with prompts.")
    if len(entries) != len(paths):
        raise ValueError(
            f"{prompt_file} has {len(entries)} prompts for {len(paths)} pictures; expected as many, "
            "or a JSON object from file name to prompt"
        )
    return checked_prompts(entries, path)


def _own_prompt(path: Path, failed: dict[Path, str] | None) -> str | None:
    try:
        return read_prompt(path)
    except PictureError as error:
        if failed is None:
            raise
        failed[path] = str(error)
        return None


def score_files(
    reward: Reward,
    paths: Sequence[Path],
    prompts: Sequence[str | None],
    *,
    batch_size: int = 16,
    side_by_side: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    failed: dict[Path, str] | None = None,
) -> list[ScoredImage]:
    """Score pictures without gradient, in batches of what is of one size after the reward's preprocessing.

    Every prompt is checked before the first picture is read; results have the order of `paths`.
    side_by_side: see `columns_of`. progress: is told how many more pictures are done.
    failed: receives what is wrong with each picture that cannot be read or scored, and the others are scored; those
    in it already are left out. Without it the first such picture raises PictureError.
    Raises ValueError naming the first picture without a prompt if the reward reads prompts.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected at least 1")
    jobs = [job for job in zip(paths, prompts, strict=True) if failed is None or job[0] not in failed]
    without = [path for path, prompt in jobs if prompt is None]
    if reward.needs_prompt and without:
        raise ValueError(
            f"{len(without)} of {len(jobs)} pictures carry no prompt in their metadata, "
            f"first {without[0]}; {reward.name} needs one: give --prompt or --prompts"
        )
    names = columns_of(reward, side_by_side)
    results: dict[int, ScoredImage] = {}
    for batch in _batches(reward, jobs, batch_size, failed):
        for index, outcome in _scored(reward, batch, names):
            if isinstance(outcome, ScoredImage):
                results[index] = outcome
            else:
                _fail(outcome, jobs[index][0], failed)
        progress(len(batch))
    return [results[index] for index in sorted(results)]


@dataclass(frozen=True)
class _Ready:
    """A picture as the reward looks at it, and its place among the jobs."""

    index: int
    path: Path
    prompt: str
    pixels: Pixels


def _batches(
    reward: Reward, jobs: Sequence[tuple[Path, str | None]], batch_size: int, failed: dict[Path, str] | None
) -> Iterator[list[_Ready]]:
    """Pictures of one size after preprocessing, at most `batch_size` and what one pass takes; few wait at a time."""
    limit = min(batch_size, reward.images_per_pass(0, 0, gradient=False))
    device, waiting = device_of(reward), dict[Hashable, list[_Ready]]()
    for index, (path, prompt) in enumerate(jobs):
        try:
            pixels = _looked_at(reward, path, device)
        except PictureError as error:
            _fail(error, path, failed)
            continue
        size = form(pixels)
        group = waiting.setdefault(size, [])
        group.append(_Ready(index, path, prompt or "", pixels))
        if len(group) == limit:
            yield waiting.pop(size)
        elif sum(size_in_bytes(ready.pixels) for group in waiting.values() for ready in group) > WAITING_BYTES:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size])))
    yield from waiting.values()


@torch.no_grad()
def _looked_at(reward: Reward, path: Path, device: torch.device) -> Pixels:
    levels = read_levels(path)
    try:
        return reward.preprocess(levels.to(device))
    except ValueError as error:
        raise PictureError(f"{path} cannot be scored ({error})") from error


def _scored(
    reward: Reward, batch: Sequence[_Ready], names: Sequence[str]
) -> Iterator[tuple[int, ScoredImage | PictureError]]:
    """Each picture's place and result; where the reward refuses a batch, which of its pictures it refuses."""
    prompts = [ready.prompt for ready in batch]
    try:
        details = reward.details_of_pixels(joined([ready.pixels for ready in batch]), prompts)
    except ValueError as error:
        if len(batch) > 1:
            for ready in batch:
                yield from _scored(reward, [ready], names)
        else:
            yield batch[0].index, PictureError(f"{batch[0].path} cannot be scored ({error})")
        return
    columns = {reward.name: details.scores.tolist()}
    columns |= {name: scores.tolist() for name, scores in details.parts.items()}
    for i, ready in enumerate(batch):
        scores = {name: columns[name][i] for name in names}
        odd = [f"{name} gives {value}" for name, value in scores.items() if not math.isfinite(value)]
        if odd:
            yield ready.index, PictureError(f"{ready.path} cannot be scored ({odd[0]}; try the precision fp32)")
        else:
            first = scores[names[0]]
            yield ready.index, ScoredImage(ready.path, ready.prompt, first, scores, details.truncated[i])


def _fail(error: PictureError, path: Path, failed: dict[Path, str] | None) -> None:
    if failed is None:
        raise error
    failed[path] = str(error)
