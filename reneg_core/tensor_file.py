"""Tensors out of files that anybody may have made, and into files that are the same for the same tensors.

Nothing is materialised before its size is known, and a pickle may ask for nothing but plain tensors. Damage and malice
end alike, as a ValueError that names the file.
"""

import io
import json
import math
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_ELEMENTS = 2**24
"""Numbers in one file or tensor: 4096 tokens of width 4096."""
MAX_HEADER = 4 * 2**20
MAX_RECORDS = 1000
REBUILD = {f"torch._utils _rebuild_{what}" for what in ("tensor_v2", "tensor_v3", "parameter")}
PLAIN = REBUILD | {"collections OrderedDict", "torch Size", "torch.storage UntypedStorage"}
"""What a pickle of plain tensors names, besides dtypes and storage types."""
MAX_PICKLE = 2**14
"""Bytes of a pickle's structure, which a few tensors need hundreds of: what it costs to read grows with the square."""
LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage keys


@dataclass(frozen=True)
class Limits:
    """What a file may hold: elements, numbers in all; pickle, bytes of a pickle's structure; kind: what it is to be."""

    elements: int = MAX_ELEMENTS
    pickle: int = MAX_PICKLE
    kind: str = "embedding"


EMBEDDING_LIMITS = Limits()
ADAPTER_LIMITS = Limits(2**26, 2**18, "LoRA")
"""A LoRA of rank 128 on both of SDXL's text encoders, hundreds of tensors."""


def read_tensors(path: Path, limits: Limits = EMBEDDING_LIMITS) -> tuple[dict[Any, Any], dict[str, str]]:
    """What a ``.safetensors`` file (with its metadata) or a pickle of tensors holds, by key; a lone tensor is "tensor".

    Values of a pickle may be anything that is no code: check them with :func:`require_plain`.
    Errors: ValueError for more numbers than ``limits`` allow, damage, and pickles that ask for more than tensors.
    """
    size, most = path.stat().st_size, _most_bytes(limits)
    if size > most:
        raise ValueError(f"Got {path.name} of {size:,} bytes, expected at most {most:,}: that is no {limits.kind}.")
    return _read_safetensors(path, limits) if path.suffix == ".safetensors" else (_read_pickle(path, limits), {})


def require_plain(name: str, tensor: Any) -> None:
    """Refuse what is no dense tensor on a real device of at most :data:`MAX_ELEMENTS` numbers (ValueError)."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"Got {type(tensor).__name__} for the {name}, expected a tensor.")
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else "sparse or quantized"
        raise ValueError(f"Got a {kind} tensor for the {name}, expected a plain one. Try saving it with .to_dense().")
    _bounded(tensor.numel(), f"the {name}")


def canonical(data: bytes) -> bytes:
    """A safetensors file with its header in one fixed order: equal contents become equal bytes."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = {key: dict(sorted(header.pop(key).items())) for key in ("__metadata__",) if key in header}
    tensors = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    text = json.dumps({**metadata, **dict(tensors)}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def _most_bytes(limits: Limits) -> int:
    return 8 * limits.elements + 2**20


def _bounded(count: int, what: str, most: int = MAX_ELEMENTS) -> None:
    if count > most:
        room = " (4096 tokens of width 4096)" if most == MAX_ELEMENTS else ""
        raise ValueError(f"Got {count:,} numbers in {what}, expected at most {most:,}{room}.")


def _read_safetensors(path: Path, limits: Limits) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
    if MAX_HEADER < header < path.stat().st_size:
        raise ValueError(f"Got a header of {header:,} bytes in {path.name}, expected at most {MAX_HEADER:,}.")
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            count = sum(math.prod(file.get_slice(key).get_shape()) for key in keys)
            _bounded(count, path.name, limits.elements)
            return {key: file.get_tensor(key).clone() for key in keys}, file.metadata() or {}
    except (SafetensorError, RuntimeError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"Got a damaged or truncated safetensors file {path.name} ({_first_line(error)}). "
            "Try copying or downloading it again."
        ) from error


def _read_pickle(path: Path, limits: Limits) -> dict[Any, Any]:
    data = path.read_bytes()
    try:
        loaded = _load_archive(data, limits) if data.startswith(b"PK") else _load_legacy(data, limits)
    except _RefusedError as error:
        raise ValueError(f"Refused {path.name}: {error}") from error
    except Exception as error:  # damaged data can break the readers in any way
        raise ValueError(
            f"Got a damaged or truncated file {path.name} ({_first_line(error)}), expected saved tensors. "
            "Try copying or downloading it again."
        ) from error
    # the items as dict itself gives them: a hostile subclass may carry anything under the name "items"
    return dict(dict.items(loaded)) if isinstance(loaded, dict) else {"tensor": loaded}


class _RefusedError(Exception):
    """Why a pickle is not even tried."""


def _load_archive(data: bytes, limits: Limits) -> Any:
    """The archive's records, read within their declared sizes and written again, so that the pickle that is checked is
    the pickle that is loaded, however the two readers of archives understand this one."""
    if data.count(b"PK\x01\x02") > MAX_RECORDS:
        raise _RefusedError(f"it is an archive of more than {MAX_RECORDS} files, expected one tensor.")
    anew = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(anew, "w") as new:
        records = {record.filename: record for record in old.infolist()}
        if any(record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for record in records.values()):
            raise _RefusedError("it is compressed in another way than tensor files are. Try a .safetensors copy.")
        size = sum(record.file_size for record in records.values())
        if size > _most_bytes(limits):
            raise _RefusedError(f"it unpacks to {size:,} bytes, expected at most {_most_bytes(limits):,}.")
        for name in records:
            content = old.read(name)
            if name.endswith(".pkl"):
                _check(io.BytesIO(content[: limits.pickle]), pickles=1)
            new.writestr(name, content)
    anew.seek(0)
    return torch.load(anew, map_location="cpu", weights_only=True)


def _load_legacy(data: bytes, limits: Limits) -> Any:
    """The layout of before archives: a few pickles, then the numbers."""
    try:
        _check(io.BytesIO(data[: limits.pickle]), LEGACY_PICKLES)
    except ValueError as error:
        raise _RefusedError("it is no plain tensor file, or it is damaged. Try a .safetensors copy.") from error
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _check(source: io.BytesIO, pickles: int) -> None:
    """Refuse pickles that name anything but what plain tensors are made of; ValueError for what is no pickle."""
    for _ in range(pickles):
        for opcode, argument, _ in pickletools.genops(source):
            named = opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
            if named and not _is_plain(str(argument)):
                raise _RefusedError(
                    f"it is no plain tensor file, it asks for {str(argument)[:80]!r}, which could run code. "
                    "Expected tensors only; try a .safetensors copy."
                )


def _is_plain(name: str) -> bool:
    """Whether "module name" is a part of plain tensors; names that are only put together by running are not."""
    module, _, attribute = name.partition(" ")
    kind = attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
    return name in PLAIN or (module == "torch" and kind)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
