"""Which published file a weight file is: by its keys, the shape of its patches, its SHA-256 where known, its name."""

import hashlib
from pathlib import Path

from reneg_core.rewards.checkpoint import Checkpoint
from reneg_core.rewards.published import ARCHITECTURES, LAYOUTS, WEIGHTS, PublishedFile


def open_as(file: PublishedFile, path: Path) -> Checkpoint:
    """The weights at `path`, which are to be `file`; ValueError saying what else they are."""
    checkpoint = Checkpoint(path)
    if other := _other_content(file, checkpoint) or _other_digest(file, path):
        raise ValueError(
            f"{path} {other}; expected {file.name} of {file.repository or file.page}. Give the path of that file as "
            "weights, or the reward that belongs to this one"
        )
    return checkpoint


def misfit(file: PublishedFile, path: Path) -> str:
    """Why `path` cannot be `file` by its content, "" if it can."""
    try:
        return _other_content(file, Checkpoint(path))
    except (ValueError, OSError) as error:
        return str(error).removeprefix(str(path)).strip()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def _other_content(file: PublishedFile, checkpoint: Checkpoint) -> str:
    """What the keys and the patches say. Sizes that no published model has pass: shrunken networks are loaded too."""
    keys = set(checkpoint.keys())
    mark = next((key for key in file.marks if key in keys), None)
    if mark is None:
        other = next((name for key, name in LAYOUTS.items() if key in keys), "")
        return f"holds {other}" if other else f"holds no weights of this reward (lacks {' and '.join(file.marks)})"
    shape, published = checkpoint.shape(mark), file.marks[mark]
    if shape != published and shape in ARCHITECTURES:
        return f"holds a {ARCHITECTURES[shape]} where the published weights are a {ARCHITECTURES.get(published, 'ViT')}"
    return ""


def _other_digest(file: PublishedFile, path: Path) -> str:
    """What its SHA-256 says, computed only if some published file has this size; without one, what its name says."""
    size, known = path.stat().st_size, [other for other in WEIGHTS if other.sha256]
    if any(other.size == size for other in (*known, file)):
        digest = sha256(path)
        if file.sha256 and digest == file.sha256:
            return ""
        for other in known:
            if digest == other.sha256:
                return f"is {other.name} of {other.repository or other.page} (by its SHA-256)"
        if file.sha256 and size == file.size:
            return f"has the size of the published file but another SHA-256 ({digest}): another version, or damaged"
    named = [other for other in WEIGHTS if path.name in other.own_names]
    return f"is named as {named[0].name} of {named[0].repository}" if named and file not in named else ""
