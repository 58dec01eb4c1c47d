"""Where files are, by the host's rules; names that come from a graph cannot leave these folders."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

EMBEDDINGS = "reneg"
REWARDS = "reward_models"
EMBEDDING_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
REWARD_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
NOTHING = "none"
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\s*(\.|$)", re.IGNORECASE)
LONGEST = 200
PUBLISHED = "The published embeddings are at https://huggingface.co/XiaominDLUT/ReNeg"


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
    """Embedding files the user can choose, without the training runs' checkpoints; ``["none"]`` if there is none."""
    names = [name for name in folder_paths.get_filename_list(EMBEDDINGS) if "checkpoints" not in Path(name).parts]
    return names or [NOTHING]


def embedding_path(name: str) -> Path:
    """The file behind a name of :func:`embedding_names`; ValueError or FileNotFoundError otherwise."""
    if name == NOTHING:
        raise FileNotFoundError(
            f"There is no embedding file yet. {PUBLISHED}: put one into "
            f"{folder_paths.get_folder_paths(EMBEDDINGS)[0]}, or train one, then refresh."
        )
    relative = safe_name(name.replace(os.sep, "/"))
    for root in folder_paths.get_folder_paths(EMBEDDINGS):
        path = Path(root) / relative
        if path.is_file() and path.suffix in EMBEDDING_SUFFIXES:
            return _inside(path, Path(root), name)
    folder, listed = folder_paths.get_folder_paths(EMBEDDINGS)[0], ", ".join(embedding_names()[:5])
    raise FileNotFoundError(
        f"No file {name!r} in {folder}; there is {listed}. {PUBLISHED}: put it there, or choose another, then refresh "
        "the page's lists."
    )


def reward_weight_names() -> list[str]:
    """Files and folders directly in the reward folders, for choosing weights by hand."""
    found = set()
    for root in folder_paths.get_folder_paths(REWARDS):
        for entry in Path(root).iterdir() if Path(root).is_dir() else []:
            if entry.is_dir() or entry.suffix in REWARD_SUFFIXES:
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
    return [NOTHING, *sorted(p.relative_to(root).as_posix() for p in root.rglob("*.txt") if p.is_file())]


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
    path, count = _inside(output_root() / f"{wanted}.safetensors", output_root(), name), 2
    while path.exists():
        path, count = path.with_name(f"{wanted.name}_{count:03d}.safetensors"), count + 1
    return path


def run_folder(name: str) -> Path:
    """output/reneg/``name``, the folder of a training run."""
    return _inside(output_root() / new_name(name), output_root(), name)


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
