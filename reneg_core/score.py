"""Scoring picture files: which files, which prompt belongs to each, what every reward says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reneg_core.picture_metadata import read_prompt
from reneg_core.rewards import Reward, RewardMix, load_reward
from reneg_core.text_file import checked_prompts, read_json, read_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


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


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Files as given and the pictures of folders (subfolders included, sorted); raises FileNotFoundError for an input
    that does not exist or a folder without pictures."""
    found: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_file():
            found.append(entry)
            continue
        inside = sorted(path for path in entry.rglob("*") if path.suffix.lower() in SUFFIXES) if entry.is_dir() else []
        if not inside:
            problem = "holds no pictures" if entry.is_dir() else "does not exist"
            raise FileNotFoundError(f"{entry} {problem}; expected picture files ({', '.join(SUFFIXES)}) or folders")
        found.extend(inside)
    return found


def prompts_for(paths: Sequence[Path], prompt: str | None = None, prompt_file: Path | None = None) -> list[str | None]:
    """One prompt per picture: `prompt` for all, or from `prompt_file`, or from each picture's own metadata (None if it
    has none). The file holds one prompt per line in the order of the pictures, or is JSON: a list, or an object from
    file name to prompt. Errors: OSError; ValueError for files that hold no such text."""
    if prompt is not None:
        return [prompt] * len(paths)
    if prompt_file is None:
        return [read_prompt(path) for path in paths]
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


def score_files(
    reward: Reward,
    paths: Sequence[Path],
    prompts: Sequence[str | None],
    *,
    batch_size: int = 16,
    side_by_side: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> list[ScoredImage]:
    """Score pictures in batches of equal size, without gradient. Every prompt is checked before the first picture.

    side_by_side: a mix only lists several rewards (`load_rewards`), so its sum is left out.

    Raises ValueError naming the first picture without a prompt if the reward reads prompts.
    """
    without = [path for path, prompt in zip(paths, prompts, strict=True) if prompt is None]
    if reward.needs_prompt and without:
        raise ValueError(
            f"{len(without)} of {len(paths)} pictures carry no prompt in their metadata, "
            f"first {without[0]}; {reward.name} needs one: give --prompt or --prompts"
        )
    results = []
    for batch_paths, images in _batches(paths, batch_size):
        texts = [prompt or "" for prompt in prompts[len(results) : len(results) + len(batch_paths)]]
        results += _score_batch(reward, batch_paths, images, texts, side_by_side)
        progress(len(batch_paths))
    return results


def load_image(path: Path) -> Tensor:
    """A picture file as [1,3,H,W] float32 in [0,1]; transparency is dropped."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def _batches(paths: Sequence[Path], batch_size: int) -> Iterator[tuple[list[Path], Tensor]]:
    """Consecutive pictures of one size, at most `batch_size` at a time."""
    names: list[Path] = []
    images: list[Tensor] = []
    for path in paths:
        image = load_image(path)
        if images and (len(images) == batch_size or images[0].shape != image.shape):
            yield names, torch.cat(images)
            names, images = [], []
        names.append(path)
        images.append(image)
    if images:
        yield names, torch.cat(images)


@torch.no_grad()
def _score_batch(
    reward: Reward, paths: list[Path], images: Tensor, prompts: list[str], side_by_side: bool
) -> list[ScoredImage]:
    details = reward.details(images, prompts)
    named = details.parts if side_by_side or len(details.parts) == 1 else {reward.name: details.scores, **details.parts}
    columns = {name: scores.tolist() for name, scores in named.items()}
    first = next(iter(columns.values()))
    return [
        ScoredImage(
            path, prompts[i], first[i], {name: values[i] for name, values in columns.items()}, details.truncated[i]
        )
        for i, path in enumerate(paths)
    ]
