"""The learned negative embedding: what it is, and every file format it is read from and written to.

A ReNeg embedding is a text encoder's *output* for the negative branch of classifier-free guidance
(arXiv 2412.19637, section 3.2), not a textual-inversion vector at the encoder's input.
"""

import io
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .conventions import FAMILIES, describe_family, encoder_of, family_of_width
from .model import Conditioning
from .settings import SAMPLING_HINTS, Sampling

FORMAT = "reneg-embedding"
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Provenance:
    """Where an embedding came from; every field may be empty for files that do not say.

    sampling: what it was learned for, as :meth:`reneg_core.sampling.Sampling.to_mapping` gives it.
    """

    base_model: str = ""
    base_digest: str = ""
    rewards: str = ""
    steps: int = 0
    guidance_scale: float = 0.0
    seed: int | None = None
    prompts_digest: str = ""
    version: str = ""
    source: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NegativeEmbedding:
    """tokens ``[1,L,D]`` float32, mask ``[1,L]`` int64 or None, pooled ``[1,P]`` float32 or None.

    Construction refuses wrong shapes, a family that contradicts the width, and NaN or infinite values (ValueError).
    """

    tokens: Tensor
    family: str = ""
    mask: Tensor | None = None
    pooled: Tensor | None = None
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        tokens = self.tokens
        if tokens.ndim == 2:
            tokens = tokens.unsqueeze(0)
        if tokens.ndim != 3 or tokens.shape[0] != 1 or tokens.shape[1] < 1 or not tokens.is_floating_point():
            raise ValueError(
                f"Got tokens of shape {list(self.tokens.shape)} and {self.tokens.dtype}, expected [1, tokens, width] "
                "floating point. Try one embedding per file."
            )
        object.__setattr__(self, "tokens", tokens.detach().float().cpu().contiguous())
        object.__setattr__(self, "family", self.family or family_of_width(self.width))
        if self.mask is not None:
            object.__setattr__(self, "mask", self.mask.detach().reshape(1, -1).to("cpu", torch.int64))
        if self.pooled is not None:
            object.__setattr__(self, "pooled", self.pooled.detach().reshape(1, -1).float().cpu())
        self._validate()

    def _validate(self) -> None:
        known = FAMILIES.get(self.family)
        if known and known.width != self.width:
            raise ValueError(
                f"Got width {self.width} for the text encoder {describe_family(self.family)}, expected {known.width}. "
                f"A width of {self.width} belongs to {describe_family(family_of_width(self.width))}."
            )
        if self.mask is not None and self.mask.shape[1] != self.length:
            raise ValueError(f"Got a mask for {self.mask.shape[1]} tokens, expected {self.length}, one per token.")
        for name, tensor in (("tokens", self.tokens), ("pooled", self.pooled)):
            if tensor is not None and not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                raise ValueError(
                    f"Got {bad} NaN or infinite values in the embedding's {name}, expected finite numbers. "
                    "The training that made it diverged or the file is damaged: try an earlier checkpoint."
                )

    @property
    def length(self) -> int:
        """Number of tokens L."""
        return self.tokens.shape[1]

    @property
    def width(self) -> int:
        """Text width D."""
        return self.tokens.shape[2]

    @property
    def sampling(self) -> Sampling | None:
        """What the embedding was learned for; None where its file does not say.

        Settings that this version does not know are left out. Errors: ValueError for values that cannot be.
        """
        recorded = self.provenance.sampling
        if not recorded:
            return None
        try:
            return Sampling.from_mapping({name: v for name, v in recorded.items() if name in SAMPLING_HINTS})
        except ValueError as error:
            raise ValueError(f"Got an embedding with unreadable sampling settings ({error}).") from error

    def conditioning(self) -> Conditioning:
        """The embedding as the denoiser takes it, one row."""
        return Conditioning(self.tokens, self.mask, self.pooled)

    def require(self, family: str, width: int, max_tokens: int | None = None) -> None:
        """Refuse a model this embedding was not made for (ValueError naming both sides and the file that fits)."""
        self._require_encoder(family, width)
        if max_tokens and self.length > max_tokens:
            raise ValueError(
                f"Got an embedding of {self.length} tokens, this model takes at most {max_tokens}. "
                "Try an embedding trained with this model."
            )

    def _require_encoder(self, family: str, width: int) -> None:
        if self.width != width or encoder_of(self.family) != encoder_of(family):
            fit = FAMILIES[family].published if family in FAMILIES else "one trained for this model"
            raise ValueError(
                f"Got an embedding for the text encoder {describe_family(self.family)}, width {self.width}; this model "
                f"uses {describe_family(family)}, width {width}. Try an embedding of that family (published: {fit})."
            )

    def blend(self, other: "NegativeEmbedding", weight: float) -> "NegativeEmbedding":
        """``(1 - weight) * self + weight * other``; weight 0 is this one, 1 the other. Shapes and family must agree."""
        other._require_encoder(self.family, self.width)
        if other.length != self.length:
            raise ValueError(f"Got embeddings of {self.length} and {other.length} tokens, expected equal lengths.")
        if not _same_mask(self.mask, other.mask):
            raise ValueError("Got embeddings with different attention masks; they cannot be blended token by token.")
        if (self.pooled is None) != (other.pooled is None):
            raise ValueError("Got one embedding with a pooled vector and one without; expected both or neither.")
        pooled = None if self.pooled is None else torch.lerp(self.pooled, other.pooled, weight)
        notes = {"operation": f"blend {weight:g}", "of": [asdict(self.provenance), asdict(other.provenance)]}
        ours, theirs = self.provenance.sampling, other.provenance.sampling
        provenance = Provenance(
            base_model=self.provenance.base_model, notes=notes, sampling=ours if ours == theirs else {}
        )
        return replace(self, tokens=torch.lerp(self.tokens, other.tokens, weight), pooled=pooled, provenance=provenance)

    def toward_null(self, null: Conditioning, strength: float) -> "NegativeEmbedding":
        """``null + strength * (self - null)``: 0 is the empty prompt, 1 this embedding, above 1 exaggerates.

        null: the model's encoding of the empty prompt, tokens ``[1,L,D]``. Where this embedding attends to all of its
        tokens, so does the empty prompt, padding included: that is where training began.
        Errors: ValueError where the two differ in length, in what they attend to, or in having a pooled vector.
        """
        everywhere = null.mask is None or (self.mask is not None and bool(self.mask.all()))
        mask = torch.ones(null.tokens.shape[:2]) if everywhere else null.mask
        base = NegativeEmbedding(null.tokens, self.family, None if self.mask is None else mask, null.pooled)
        blended = base.blend(self, strength)
        notes = {**self.provenance.notes, "strength": strength}
        return replace(blended, provenance=replace(self.provenance, notes=notes))

    def compare(self, other: "NegativeEmbedding") -> dict[str, Any]:
        """Norms of both, distance, overall cosine and cosine per token (list of L numbers in [-1,1])."""
        other._require_encoder(self.family, self.width)
        if other.length != self.length:
            raise ValueError(f"Got embeddings of {self.length} and {other.length} tokens, expected equal lengths.")
        a, b = self.tokens[0].double(), other.tokens[0].double()
        return {
            "norm": a.norm().item(),
            "norm_other": b.norm().item(),
            "distance": (a - b).norm().item(),
            "cosine": cosine_similarity(a.flatten(), b.flatten(), dim=0).item(),
            "cosine_per_token": cosine_similarity(a, b, dim=1).tolist(),
        }

    def save(self, path: str | os.PathLike, *, overwrite: bool = False, layout: str = "reneg") -> Path:
        """Write one safetensors file atomically; returns its path.

        layout: ``"reneg"`` (keys tokens, mask, pooled, with metadata) or ``"ltx"`` (conditioning_data_0 and
        attention_mask_0, which LTX conditioning loaders read; it has no place for a pooled vector).
        Errors: FileExistsError unless ``overwrite``; ValueError for a wrong suffix or layout; OSError when the disk is
        full or the folder cannot be written, leaving any earlier file as it was.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"Got the file name {path.name!r}, expected one that ends in .safetensors.")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already. Try another name, or ask to overwrite it.")
        atomic_save(self._tensors(layout), path, self._metadata())
        return path

    def _tensors(self, layout: str) -> dict[str, Tensor]:
        if layout == "reneg":
            parts = {"tokens": self.tokens, "mask": self.mask, "pooled": self.pooled}
            return {k: v for k, v in parts.items() if v is not None}
        if layout != "ltx":
            raise ValueError(f"Got layout {layout!r}, expected 'reneg' or 'ltx'.")
        if self.pooled is not None:
            raise ValueError("The ltx layout has no place for a pooled vector; try the layout 'reneg'.")
        mask = torch.ones(1, self.length, dtype=torch.int64) if self.mask is None else self.mask
        return {"conditioning_data_0": self.tokens, "attention_mask_0": mask}

    def _metadata(self) -> dict[str, str]:
        provenance = json.dumps(asdict(self.provenance), sort_keys=True)
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "family": self.family,
            "provenance": provenance,
        }


def _same_mask(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def atomic_save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors beside ``path`` and move it there, so that a crash never leaves half a file."""
    from safetensors.torch import save

    data = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata or {}))
    atomic_write(path, data)


def atomic_write(path: Path, data: bytes) -> None:
    """Write bytes atomically, creating the folder; an OSError names the file and keeps the earlier one."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise OSError(
            error.errno, f"Could not write {len(data)} bytes ({error.strerror}). Try another folder", str(path)
        ) from error


def load_embedding(path: str | os.PathLike, family: str = "") -> NegativeEmbedding:
    """Read an embedding from any known layout.

    Layouts: our safetensors; the published ReNeg zip pickles; a plain tensor or a dict with one tensor in
    ``.pt``, ``.bin``, ``.pth`` or ``.safetensors``; LTX conditioning (``conditioning_data_0``, ``attention_mask_0``).
    family: overrides the family guessed from the width, for files that do not name one.
    Errors: FileNotFoundError; ValueError for directories, truncated files, pickles that need unsafe loading,
    textual-inversion files and bad values.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"Got the directory {path}, expected an embedding file (.safetensors, .bin or .pt).")
    if not path.is_file():
        raise FileNotFoundError(f"No embedding file at {path}. Check the path, or train one with `reneg train`.")
    tensors, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else (_read_pickle(path), {})
    if metadata.get("format") == FORMAT:
        return _from_own_layout(path, tensors, metadata)
    tokens, mask, pooled = _pick_tensors(path, tensors)
    return NegativeEmbedding(tokens, family, mask, pooled, Provenance(source=path.name))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"Got a damaged or truncated safetensors file {path.name} ({error}). Try copying or downloading it again."
        ) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged data can break the unpickler in any way
        if isinstance(error, pickle.UnpicklingError) or not data.startswith(b"PK"):
            raise ValueError(
                f"Refused {path.name}: it is no plain tensor file, loading it could run code or it is damaged. "
                "Expected tensors only; try a .safetensors copy."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"Got a damaged or truncated file {path.name} ({reason}). Try copying or downloading it again."
        ) from error
    return dict(loaded) if isinstance(loaded, Mapping) else {"tensor": loaded}


def _from_own_layout(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> NegativeEmbedding:
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"Got format version {metadata.get('format_version')} in {path.name}, expected {FORMAT_VERSION}. "
            "Try a newer version of this package."
        )
    try:
        stored = json.loads(metadata.get("provenance", "{}"))
        provenance = Provenance(**{k: v for k, v in stored.items() if k in Provenance.__dataclass_fields__})
        if not isinstance(provenance.sampling, Mapping):
            raise TypeError(f"sampling is {type(provenance.sampling).__name__}, no mapping")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"Got unreadable provenance in {path.name} ({error}); the file was altered.") from error
    layout = ("tokens", "mask", "pooled") if "tokens" in tensors else ("conditioning_data_0", "attention_mask_0", "")
    tokens, mask, pooled = (tensors.get(key) for key in layout)
    if tokens is None:
        raise ValueError(f"Got no tokens in {path.name}, found {sorted(tensors)}; the file was altered.")
    return NegativeEmbedding(tokens, metadata.get("family", ""), mask, pooled, provenance)


TEXTUAL_INVERSION_KEYS = {"string_to_param", "emb_params", "string_to_token", "clip_l", "clip_g"}


def _pick_tensors(path: Path, tensors: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if TEXTUAL_INVERSION_KEYS & set(tensors):
        raise ValueError(
            f"{path.name} is a textual-inversion embedding (vectors at the text encoder's input); a ReNeg embedding is "
            "the encoder's output. Use it in a prompt as embedding:name instead."
        )
    if "conditioning_data_0" in tensors:
        return tensors["conditioning_data_0"], tensors.get("attention_mask_0"), None
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if "tokens" in found:
        return found["tokens"], found.get("mask"), found.get("pooled")
    if len(found) != 1:
        raise ValueError(f"Got {len(found)} tensors {sorted(found)[:5]} in {path.name}, expected one embedding tensor.")
    return next(iter(found.values())), None, None
