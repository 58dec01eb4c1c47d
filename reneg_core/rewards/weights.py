"""Finding a reward's files: an explicit path, search directories, the hub cache, or a download that was asked for."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reneg_core import text_file
from reneg_core.rewards.checkpoint import SUFFIXES, Checkpoint

SEARCH_VARIABLE = "RENEG_REWARD_MODELS"
DIGESTS = "sha256.json"
NAMED = "hpsv2|imagereward|pickscore|clipscore|saclogosava1|aesthetic"  # files that name the reward they belong to


@dataclass(frozen=True)
class PublishedFile:
    """A file of a reward: where it is published, under which names it is found, how a renamed copy is recognised.

    repository: hub id; url: direct link of a file outside the hub, with `page` to read about it. size: bytes, for
    information. aliases: further exact names. copies: regex for the beginning of a renamed copy's letters and digits
    in lower case. signatures: keys of which one is in the file.
    """

    name: str
    repository: str = ""
    size: int = 0
    aliases: tuple[str, ...] = ()
    copies: str = ""
    signatures: tuple[str, ...] = ()
    url: str = ""
    homepage: str = ""

    @property
    def page(self) -> str:
        return self.homepage or f"https://huggingface.co/{self.repository}"

    @property
    def folder(self) -> str:
        """Subfolder of a search directory where a download is put: the repository's own name."""
        return self.page.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """Where to look: `weights` as the caller gave it (file, directory or None), search directories, permission to
    download."""

    weights: Path | None = None
    search_dirs: tuple[Path, ...] = ()
    download: bool = False

    @classmethod
    def of(cls, weights: object, search_dirs: Sequence[str | os.PathLike] = (), download: bool = False) -> "Source":
        """From a caller's arguments; adds the directories of the environment variable RENEG_REWARD_MODELS."""
        if weights is not None and not isinstance(weights, (str, os.PathLike)):
            raise TypeError(f"weights: got {type(weights).__name__}, expected the path of a file or a directory")
        named = os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep)
        dirs = tuple(Path(entry).expanduser() for entry in (*search_dirs, *named) if str(entry))
        return cls(None if weights is None else Path(weights).expanduser(), dirs, download)

    def beside(self, path: Path) -> "Source":
        """Where to look for a companion of the weight file `path`: next to it first."""
        return Source(None, (path.parent, *self.directories(), *self.search_dirs), self.download)

    def directories(self) -> tuple[Path, ...]:
        """Directories in the order they are searched."""
        if self.weights is not None:
            return (self.weights if self.weights.is_dir() else self.weights.parent,)
        return self.search_dirs


def find_file(file: PublishedFile, source: Source) -> Path:
    """The local path of `file`; raises FileNotFoundError saying which file, from where, how large, and where to put
    it, or ValueError if several files could be meant."""
    if source.weights is not None and source.weights.is_file():
        return source.weights
    if source.weights is not None and not source.weights.is_dir():
        raise FileNotFoundError(
            f"weights: {source.weights} does not exist; expected a file or a directory with {file.name} ({file.page})"
        )
    found = find_beside(file, source)
    if found is not None:
        return found
    if source.download:
        return download(file, source)
    raise FileNotFoundError(_missing(file, source))


def find_beside(file: PublishedFile, source: Source) -> Path | None:
    """The path of `file` in the source's directories or in the hub's cache, None if it is in neither."""
    for directory in source.directories():
        for folder in (directory / file.folder, directory):
            found = _in_folder(file, folder)
            if found is not None:
                return found
    return _in_hub_cache(file) if source.weights is None else None


def read_json_beside(
    path: Path,
    names: Sequence[str],
    accepts: Callable[[Mapping[str, object]], bool],
) -> dict[str, object]:
    """The configuration beside `path`: `<its stem>.json`, one of `names`, or the only other JSON object that
    `accepts` recognises; {} if there is none."""
    for name in (f"{path.stem}.json", *names):
        if path.with_name(name).is_file() and accepts(raw := read_json(path.with_name(name))):
            return raw
    others = [raw for file in sorted(path.parent.glob("*.json")) if accepts(raw := _object(file))]
    return others[0] if len(others) == 1 else {}


def _object(path: Path) -> dict[str, object]:
    """The JSON object in a file that may hold anything."""
    try:
        data = text_file.read_json(path)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def read_json(source: Mapping[str, object] | str | os.PathLike) -> dict[str, object]:
    """A configuration given as a mapping or as the path of a JSON file."""
    if isinstance(source, Mapping):
        return dict(source)
    data = text_file.read_json(source)
    if not isinstance(data, dict):
        raise ValueError(f"{source}: expected a JSON object, got {type(data).__name__}")
    return data


def download(file: PublishedFile, source: Source) -> Path:
    """Fetch `file` into the first search directory (else the hub's cache) with a progress bar, and check it."""
    directories = source.directories()
    target = directories[0] / file.folder if directories else None
    if file.url:
        return _download_url(file, target or Path.home() / ".cache" / "reneg" / file.folder)
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    digest = get_hf_file_metadata(hf_hub_url(file.repository, file.name)).etag or ""
    path = Path(hf_hub_download(file.repository, file.name, local_dir=target))
    verify(path, digest if re.fullmatch("[0-9a-f]{64}", digest) else "")
    return path


def _download_url(file: PublishedFile, folder: Path) -> Path:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.name
    torch.hub.download_url_to_file(file.url, str(path), progress=True)
    verify(path)
    return path


def verify(path: Path, published: str = "") -> str:
    """SHA-256 of `path`, checked against the `published` digest, or the one recorded when it was first downloaded.

    The hub publishes digests of its large files. Where none is published, the digest of the first download is
    recorded in `sha256.json` beside the file. Raises OSError if the digest is another one.
    """
    digest, recorded = sha256(path), _recorded(path)
    expected = published or recorded.get(path.name, "")
    if expected and digest != expected:
        raise OSError(f"{path}: SHA-256 is {digest}, expected {expected}; delete the file and download it again")
    if recorded.get(path.name) != digest:
        path.with_name(DIGESTS).write_text(json.dumps(recorded | {path.name: digest}, indent=1), encoding="utf-8")
    return digest


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def _recorded(path: Path) -> dict[str, str]:
    record = path.with_name(DIGESTS)
    return read_json(record) if record.is_file() else {}


def _in_folder(file: PublishedFile, folder: Path) -> Path | None:
    for name in (file.name, *file.aliases):
        if (folder / name).is_file():
            return folder / name
    if not file.signatures or not folder.is_dir():
        return None
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and _has_signature(path, file)]
    copies = [path for path in files if re.match(file.copies, _plain(path))]
    meant = copies or [path for path in files if not re.match(NAMED, _plain(path))]
    if len(meant) > 1:
        raise ValueError(
            f"{folder} holds several files that could be {file.name}: "
            f"{', '.join(path.name for path in meant)}; give the path of the one you mean as weights"
        )
    return meant[0] if meant else None


def _plain(path: Path) -> str:
    return "".join(letter for letter in path.stem.lower() if letter.isalnum())


def _has_signature(path: Path, file: PublishedFile) -> bool:
    return path.suffix != ".safetensors" or not set(file.signatures).isdisjoint(Checkpoint(path).keys())


def _in_hub_cache(file: PublishedFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repository, file.name) if file.repository else None
    return Path(found) if isinstance(found, str) else None


def _missing(file: PublishedFile, source: Source) -> str:
    places = [str(directory) for directory in source.directories()]
    size = f" (about {file.size / 1e9:.3g} GB)" if file.size else ""
    where = (
        f"put it into {places[0]}"
        if places
        else (f"give its directory as weights, or name one in the environment variable {SEARCH_VARIABLE}")
    )
    looked = f"; looked in {', '.join(places)}" if places else ""
    return (
        f"{file.name} not found{looked}. It is published at {file.page}{size}: {where}, "
        "or allow the download (download=True, --download)"
    )
