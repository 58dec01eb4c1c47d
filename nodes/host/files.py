"""Where files are, by the host's rules; names that come from a graph cannot leave these folders."""

import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

from reneg_core.fetching import Told, fetch
from reneg_core.rewards import published
from reneg_core.rewards.published import PublishedFile, size_text

EMBEDDINGS = "reneg"
REWARDS = "reward_models"
LORAS, TUNED = "loras", "texforce"
EMBEDDING_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
REWARD_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
NOTHING = "none"
ABSENT = " (not installed)"
PUBLISHED = {file.name: file for file in published.EMBEDDINGS}
OF_A_RUN = {"shown.safetensors", "start.safetensors"}
"""What a training keeps beside its results, in folders where embeddings are looked for."""
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\s*(\.|$)", re.IGNORECASE)
LONGEST = 200


def register_folders() -> None:
    """Tell the host of models/reneg, models/reward_models and output/reneg, and create them."""
    _register(EMBEDDINGS, EMBEDDING_SUFFIXES, [Path(folder_paths.models_dir) / EMBEDDINGS, output_root()])
    _register(REWARDS, REWARD_SUFFIXES, [Path(folder_paths.models_dir) / REWARDS])


def _register(kind: str, suffixes: set[str], folders: list[Path]) -> None:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        folder_paths.add_model_folder_path(kind, str(folder))
    folder_paths.folder_names_and_paths[kind][1].update(suffixes)


def output_root() -> Path:
    """The folder that training and saving write to."""
    return Path(folder_paths.get_output_directory()) / EMBEDDINGS


def embedding_names() -> list[str]:
    """Embedding files the user can choose: of a training run its result alone; then the published ones that are not
    there."""
    names = {name for name in folder_paths.get_filename_list(EMBEDDINGS) if _is_result(Path(name)) and _stays(name)}
    results = [Path(name) for name in names if Path(name).name == "negative.safetensors"]
    best = {str(path.with_name("best.safetensors")) for path in results}
    there = {Path(name).name for name in names}
    return [*sorted(names - best), *(name + ABSENT for name in PUBLISHED if name not in there)]


def _is_result(name: Path) -> bool:
    return "checkpoints" not in name.parts and name.name not in OF_A_RUN


def _stays(name: str) -> bool:
    """Whether a listed embedding is a file of its folder, and no link to elsewhere, which would be refused."""
    places = [(Path(root), Path(root) / name) for root in folder_paths.get_folder_paths(EMBEDDINGS)]
    return any(path.resolve().is_relative_to(root.resolve()) for root, path in places if path.is_file())


def embedding_path(name: str) -> Path:
    """The file behind a name of :func:`embedding_names`; ValueError or FileNotFoundError otherwise."""
    relative = safe_name(name.removesuffix(ABSENT).replace(os.sep, "/"))
    for root in folder_paths.get_folder_paths(EMBEDDINGS):
        path = Path(root) / relative
        if path.is_file() and path.suffix in EMBEDDING_SUFFIXES:
            return _inside(path, Path(root), name)
    folder, file = folder_paths.get_folder_paths(EMBEDDINGS)[0], PUBLISHED.get(str(relative))
    if file:
        raise FileNotFoundError(
            f"{file.name} is not in {folder}. It is published at {file.address}{size_text(file.size)}: put it there, "
            "or switch download on."
        )
    installed = ", ".join(entry for entry in embedding_names() if not entry.endswith(ABSENT)) or "nothing"
    raise FileNotFoundError(
        f"No file {str(relative)!r} in {folder}; there is {installed:.300}. Published: {', '.join(PUBLISHED)} at "
        f"{published.RENEG_PAGE}. Put it there, choose another, or train one, then refresh the page's lists."
    )


def is_published(name: str) -> bool:
    """Whether a name is that of a published embedding, which can be downloaded."""
    return name.removesuffix(ABSENT) in PUBLISHED


def download_embedding(name: str, told: Told) -> Path:
    """A published embedding from its own address into the first folder of embeddings; any other is only looked for."""
    try:
        return embedding_path(name)
    except FileNotFoundError:
        if not is_published(name):
            raise
    file: PublishedFile = PUBLISHED[name.removesuffix(ABSENT)]
    path = Path(folder_paths.get_folder_paths(EMBEDDINGS)[0]) / file.name
    fetch(file.address, path, sha256=file.sha256, told=told)
    return path


def reward_weight_names() -> list[str]:
    """Files and folders directly in the reward folders, for choosing weights by hand."""
    found = set()
    for root in folder_paths.get_folder_paths(REWARDS):
        for entry in Path(root).iterdir() if Path(root).is_dir() else []:
            inside = entry.resolve().is_relative_to(Path(root).resolve())
            if inside and (entry.is_dir() or entry.suffix in REWARD_SUFFIXES):
                found.add(entry.name)
    return sorted(found)


def reward_weights(name: str) -> Path:
    """The file or folder behind a name of :func:`reward_weight_names`."""
    relative = safe_name(name)
    for root in folder_paths.get_folder_paths(REWARDS):
        path = Path(root) / relative
        if path.exists():
            return _inside(path, Path(root), name)
    raise FileNotFoundError(
        f"No reward weights {name!r} in {folder_paths.get_folder_paths(REWARDS)[0]}; there is "
        f"{', '.join(reward_weight_names()) or 'nothing'}. Try automatic, which says what is missing and where it goes."
    )


def prompt_files() -> list[str]:
    """``none`` and the text files in the host's input folder."""
    root = Path(folder_paths.get_input_directory())
    found = [p for p in root.rglob("*.txt") if p.is_file() and p.resolve().is_relative_to(root.resolve())]
    return [NOTHING, *sorted(p.relative_to(root).as_posix() for p in found)]


def prompt_path(name: str) -> Path:
    """The prompt list behind a name of :func:`prompt_files`."""
    root = Path(folder_paths.get_input_directory())
    path = root / safe_name(name)
    if path.suffix != ".txt" or not path.is_file():
        raise FileNotFoundError(f"No prompt list {name!r} in {root}; expected a .txt with one prompt per line.")
    return _inside(path, root, name)


def new_file(name: str) -> Path:
    """A path in output/reneg for ``name``, numbered if it exists; the suffix .safetensors is added."""
    wanted = new_name(name.removesuffix(".safetensors"))
    path, number = _inside(output_root() / f"{wanted}.safetensors", output_root(), name), 2
    while path.exists():
        path, number = path.with_name(f"{wanted.name}_{number:03d}.safetensors"), number + 1
    return path


def run_folder(name: str) -> Path:
    """output/reneg/``name``, the folder of a training run."""
    return _inside(output_root() / new_name(name), output_root(), name)


def tuning_root() -> Path:
    """The folder of the runs that tune text encoders: apart from the embeddings, which are looked for in theirs."""
    return Path(folder_paths.get_output_directory()) / TUNED


def tuning_folder(name: str) -> Path:
    """output/texforce/``name``, the folder of such a run."""
    return _inside(tuning_root() / new_name(name), tuning_root(), name)


def lora_places(name: str) -> Iterator[Path]:
    """loras/texforce/``name``.safetensors, then with the numbers from 2 on."""
    root = Path(folder_paths.get_folder_paths(LORAS)[0])
    first = _inside(root / TUNED / f"{new_name(name)}.safetensors", root, name)
    yield first
    yield from (first.with_name(f"{first.stem}_{number:03d}.safetensors") for number in count(2))


def lora_name(path: Path) -> str:
    """How a file of :func:`lora_places` is called in the host's list of LoRAs."""
    return str(path.relative_to(folder_paths.get_folder_paths(LORAS)[0]))


def listed_name(path: Path) -> str:
    """How a file in output/reneg is called in the embedding list."""
    return path.relative_to(output_root()).as_posix()


def safe_name(name: str) -> PurePosixPath:
    """A relative path of plain parts, or ValueError: not absolute, no "..", no drive, no control or half characters."""
    text = name.strip()
    path = PurePosixPath(text)
    odd = any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 or c in '\\:*?"<>|' for c in text) or PureWindowsPath(text).drive
    if not text or odd or path.is_absolute() or not path.name or any(p in ("..", "~") for p in path.parts):
        raise ValueError(
            f"Got the file name {name!r}, expected a plain name or folder/name inside ComfyUI's folders: no absolute "
            'path, no "..", no drive, none of \\ : * ? " < > |.'
        )
    return path


def new_name(name: str) -> PurePosixPath:
    """A :func:`safe_name` that every system can have, since workflows are shared; ValueError otherwise."""
    path = safe_name(name)
    for part in path.parts:
        if DEVICE.match(part) or part[-1] in ". " or len(os.fsencode(part)) > LONGEST:
            raise ValueError(
                f"Got the file name {name!r}, expected a plain name that every system can have: at most {LONGEST} "
                "bytes, no dot or space at its end, and not the name of a device of Windows (con, nul, com1...)."
            )
    return path


def _inside(path: Path, root: Path, name: str) -> Path:
    """``path`` if it stays in ``root`` once links are followed, else ValueError."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"Got {name!r}, which links to a place outside {root}. Copy it there, or add its folder to "
            "extra_model_paths.yaml."
        )
    return path
