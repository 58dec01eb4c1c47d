"""Finding a reward's files: an explicit path, search directories, the hub cache, or a download that was asked for."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

from reneg_core import text_file
from reneg_core.fetching import Told, fetch
from reneg_core.rewards.checkpoint import SUFFIXES, Checkpoint
from reneg_core.rewards.published import SHARED_NAMES, WEIGHTS, PublishedFile, size_text
from reneg_core.rewards.recognition import misfit, open_as, sha256

SEARCH_VARIABLE = "RENEG_REWARD_MODELS"
DIGESTS = "sha256.json"
DOWNLOADABLE = "allow the download (download=True, --download)"
Given = str | os.PathLike | None


class MissingFile(FileNotFoundError):
    """A published file that was not found; `plain` is the message without the advice to download."""

    def __init__(self, plain: str) -> None:
        super().__init__(f"{plain}, or {DOWNLOADABLE}")
        self.plain = plain


@dataclass(frozen=True)
class Source:
    """Where a reward's files are.

    weights: file, directory or None; search_dirs: where to look without it; download: permission to fetch, or a
    function that is told (name, bytes so far, bytes in all) of what is being fetched; config,
    vocab, merges, clip_weights: companions that the caller named, None to look for them.
    """

    weights: Path | None = None
    search_dirs: tuple[Path, ...] = ()
    download: bool | Told = False
    config: Mapping[str, object] | Given = None
    vocab: Given = None
    merges: Given = None
    clip_weights: Given = None

    @classmethod
    def of(cls, weights: object = None, search_dirs: Sequence[str | os.PathLike] = (), **options: object) -> "Source":
        """From a caller's arguments; adds the directories of the environment variable RENEG_REWARD_MODELS."""
        if weights is not None and not isinstance(weights, (str, os.PathLike)):
            raise TypeError(f"weights: got {type(weights).__name__}, expected the path of a file or a directory")
        named = os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep)
        dirs = tuple(Path(entry).expanduser() for entry in (*search_dirs, *named) if str(entry))
        return cls(None if weights is None else Path(weights).expanduser(), dirs, **options)

    def beside(self, path: Path) -> "Source":
        """Where to look for a companion of the weight file `path`: next to it first."""
        return replace(self, weights=None, search_dirs=(path.parent, *self.directories(), *self.search_dirs))

    def at(self, weights: Given) -> "Source":
        """The same with other weights."""
        return replace(self, weights=None if weights is None else Path(weights).expanduser())

    def directories(self) -> tuple[Path, ...]:
        """Directories in the order they are searched."""
        if self.weights is not None:
            return (self.weights if self.weights.is_dir() else self.weights.parent,)
        return self.search_dirs


FILE_OPTIONS = frozenset(field.name for field in fields(Source))


def open_published(file: PublishedFile, source: Source) -> Checkpoint:
    """The weights that `find_file` finds; ValueError if they are those of something else."""
    return open_as(file, find_file(file, source))


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
    raise _missing(file, source)


def find_beside(file: PublishedFile, source: Source) -> Path | None:
    """The path of `file` in the source's directories or in the hub's cache, None if it is in neither."""
    found = next((path for path, problem in _candidates(file, source) if not problem), None)
    if found is None and source.weights is None:
        return _in_hub_cache(file)
    return found


def locate(files: Sequence[PublishedFile], source: Source) -> dict[PublishedFile, Path | None]:
    """Where loading finds each of `files`: the first in `source`, the others beside it, too."""
    first, *companions = files
    path = find_beside(first, source)
    beside = source if path is None else source.beside(path)
    return {first: path, **{file: find_beside(file, beside) for file in companions}}


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
    except (ValueError, OSError):
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
    """Fetch `file` into the first search directory (else ~/.cache/reneg), and check it; a part of an earlier download
    is gone on from. What is there already is not fetched again."""
    directories = source.directories()
    path = (directories[0] if directories else Path.home() / ".cache" / "reneg") / file.place
    if path.is_file():
        return path
    told = source.download if callable(source.download) else None
    with nullcontext(told) if told else progress_bar() as tell:
        checked = fetch(file.address, path, sha256=file.sha256, told=tell)
    if not checked:
        verify(path)
    return path


@contextmanager
def progress_bar() -> Iterator[Told]:
    """A bar on stderr for downloads."""
    from tqdm import tqdm

    with tqdm(unit="B", unit_scale=True) as bar:

        def tell(name: str, done: int, total: int) -> None:
            bar.set_description(name, refresh=False)
            bar.total = total or None
            bar.update(done - bar.n)

        yield tell


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


def _recorded(path: Path) -> dict[str, str]:
    record = path.with_name(DIGESTS)
    return read_json(record) if record.is_file() else {}


def _candidates(file: PublishedFile, source: Source) -> Iterator[tuple[Path, str]]:
    """Files that could be `file`, best first, each with why it is not, "" if it is.

    A name that says which file it is counts whatever the content, so that a broken one is reported when it is loaded.
    What other rewards' files are called too, and copies under other names, are looked into.
    """
    for directory in source.directories():
        for folder in (directory / file.folder, directory):
            explicit = folder != directory or source.weights is not None
            for name in (file.name, *file.aliases):
                path = folder / name
                if path.is_file():
                    told = explicit or name not in SHARED_NAMES or not file.marks
                    yield path, "" if told else misfit(file, path)
            yield from _copies(file, folder, anything=source.weights is not None)


def _copies(file: PublishedFile, folder: Path, anything: bool) -> Iterator[tuple[Path, str]]:
    """Renamed copies of `file` in `folder`; `anything`: also weights of which no name says what they are."""
    names = {file.name, *file.aliases}
    if not file.marks or not folder.is_dir():
        return
    entries = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES and path.name not in names]
    copies = [path for path in entries if re.match(file.copies, _plain(path))]
    if anything:
        copies += [path for path in entries if not any(re.match(other.copies, _plain(path)) for other in WEIGHTS)]
    looked_at = [(path, misfit(file, path)) for path in copies]
    meant = [path for path, problem in looked_at if not problem]
    called = [path for path in meant if re.match(file.copies, _plain(path))] or meant
    if len(called) > 1:
        raise ValueError(
            f"{folder} holds several files that could be {file.name}: "
            f"{', '.join(path.name for path in called)}; give the path of the one you mean as weights"
        )
    yield from [(path, problem) for path, problem in looked_at if problem or path in called]


def _plain(path: Path) -> str:
    return "".join(letter for letter in path.stem.lower() if letter.isalnum())


def _in_hub_cache(file: PublishedFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(file.repository, file.name) if file.repository else None
    return Path(found) if isinstance(found, str) else None


def _missing(file: PublishedFile, source: Source) -> MissingFile:
    places = list(dict.fromkeys(source.directories()))
    looked = f"; looked in {', '.join(map(str, places))}" if places else ""
    passed = [f"{path} {problem}" for path, problem in _candidates(file, source)]
    over = f"; passed over {'; '.join(passed)}" if passed else ""
    target = file.name if source.weights is not None else file.place
    where = (
        f"put it at {places[0] / target}"
        if places
        else f"give its directory as weights, or name one in the environment variable {SEARCH_VARIABLE}"
    )
    return MissingFile(
        f"{file.name} not found{looked}{over}. It is published at {file.address}{size_text(file.size)}: {where}"
    )
