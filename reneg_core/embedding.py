"""The learned negative embedding: what it is, and every file format it is read from and written to.

A ReNeg embedding is a text encoder's *output* for the negative branch of classifier-free guidance
(arXiv 2412.19637, section 3.2), not a textual-inversion vector at the encoder's input.
"""

import json
import os
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from .conventions import FAMILIES, describe_family, encoder_of, family_of_width
from .files import write_tensors
from .model import Conditioning
from .settings import SAMPLING_HINTS, Sampling
from .tensor_file import read_tensors, require_plain
from .typed import read

FORMAT = "reneg-embedding"
FORMAT_VERSION = "1"
MAX_PROVENANCE = 2**20
"""Characters of a file's provenance."""
MAX_NESTING = 64
KEPT_NESTING = 16
"""How deep the notes may be that a blend takes over from the two that it is made of."""


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

    Construction refuses what is no plain tensor of a bounded size, wrong shapes, a family that contradicts the width,
    a mask of anything but 0 and 1, and NaN or infinite values (ValueError).
    """

    tokens: Tensor
    family: str = ""
    mask: Tensor | None = None
    pooled: Tensor | None = None
    provenance: Provenance = field(default_factory=Provenance)

    def __post_init__(self) -> None:
        for name in ("tokens", "mask", "pooled"):
            if name == "tokens" or getattr(self, name) is not None:
                require_plain(f"embedding's {name}", getattr(self, name))
        tokens = self.tokens
        if tokens.ndim == 2:
            tokens = tokens.unsqueeze(0)
        if tokens.ndim != 3 or tokens.shape[0] != 1 or not tokens.numel() or not tokens.is_floating_point():
            raise ValueError(
                f"Got tokens of shape {list(self.tokens.shape)} and {self.tokens.dtype}, expected [1, tokens, width] "
                "floating point. Try one embedding per file."
            )
        object.__setattr__(self, "tokens", tokens.detach().float().cpu().contiguous())
        object.__setattr__(self, "family", self.family or family_of_width(self.width))
        if self.mask is not None:
            object.__setattr__(self, "mask", _zeros_and_ones(self.mask).reshape(1, -1).to("cpu", torch.int64))
        if self.pooled is not None:
            if not self.pooled.numel() or not self.pooled.is_floating_point():
                got = f"{list(self.pooled.shape)} and {self.pooled.dtype}"
                raise ValueError(f"Got a pooled vector of shape {got}, expected [1, width] floating point.")
            object.__setattr__(self, "pooled", self.pooled.detach().reshape(1, -1).float().cpu())
        self._validate()

    def _validate(self) -> None:
        if not isinstance(self.family, str) or not self.family.isprintable() or len(self.family) > 100:
            raise ValueError(f"Got the text encoder {self.family!r:.100}, expected a short name, for example clip-l.")
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
        notes = {"operation": f"blend {weight:g}", "of": [_parent(self.provenance), _parent(other.provenance)]}
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
        return write_tensors(path, self._tensors(layout), self._metadata())

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


def _zeros_and_ones(mask: Tensor) -> Tensor:
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"Got a mask of {mask.dtype} with other values than 0 and 1, expected 1 where to attend, else 0."
        )
    return mask.detach()


def _parent(provenance: Provenance) -> dict[str, Any]:
    """What a blend keeps of one that it is made of: all, until blends of blends are too deep to be read back."""
    facts = asdict(provenance)
    return facts if nesting(facts) <= KEPT_NESTING else {**facts, "notes": {}}


def _same_mask(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def load_embedding(path: str | os.PathLike, family: str = "") -> NegativeEmbedding:
    """Read an embedding from any known layout.

    Layouts: our safetensors; the published ReNeg zip pickles; a plain tensor or a dict with one tensor in
    ``.pt``, ``.bin``, ``.pth`` or ``.safetensors``; LTX conditioning (``conditioning_data_0``, ``attention_mask_0``).
    family: overrides the family guessed from the width, for files that do not name one.
    Sizes are bounded before anything is materialised (:mod:`.tensor_file`), and no code of a file is run.
    Errors: FileNotFoundError; OSError for a file that cannot be read; ValueError for directories, truncated or too
    large files, pickles that ask for more than tensors, textual-inversion files and bad values.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"Got the directory {path}, expected an embedding file (.safetensors, .bin or .pt).")
    if not path.is_file():
        raise FileNotFoundError(f"No embedding file at {path}. Check the path, or train one with `reneg train`.")
    tensors, metadata = read_tensors(path)
    if metadata.get("format") == FORMAT:
        return _from_own_layout(path, tensors, metadata)
    tokens, mask, pooled = _pick_tensors(path, tensors)
    return NegativeEmbedding(tokens, family, mask, pooled, Provenance(source=path.name))


def _from_own_layout(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> NegativeEmbedding:
    if metadata.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"Got format version {metadata.get('format_version')} in {path.name}, expected {FORMAT_VERSION}. "
            "Try a newer version of this package."
        )
    try:
        provenance = _read_provenance(metadata.get("provenance", "{}"))
    except ValueError as error:
        raise ValueError(f"Got unreadable provenance in {path.name} ({error}). Try the file's original.") from error
    layout = ("tokens", "mask", "pooled") if "tokens" in tensors else ("conditioning_data_0", "attention_mask_0", "")
    tokens, mask, pooled = (tensors.get(key) for key in layout)
    if tokens is None:
        names = ", ".join(repr(key)[:40] for key in sorted(tensors)[:5])
        raise ValueError(f"Got no tokens in {path.name}, found {names}; the file was altered.")
    return NegativeEmbedding(tokens, metadata.get("family", ""), mask, pooled, provenance)


def _read_provenance(text: str) -> Provenance:
    """Errors: ValueError for what is no JSON, too large or nested too deeply, and for values of another type."""
    if len(text) > MAX_PROVENANCE:
        raise ValueError(f"{len(text):,} characters, expected at most {MAX_PROVENANCE:,}")
    try:
        stored = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_NESTING} deep") from error
    if not isinstance(stored, dict):
        raise ValueError(f"got {type(stored).__name__}, expected names and values")
    if nesting(stored) > MAX_NESTING:
        raise ValueError(f"nested more than {MAX_NESTING} deep")
    hints = typing.get_type_hints(Provenance)
    plain = {name: hint for name, hint in hints.items() if name not in ("notes", "sampling")}
    accepted, faults = read({name: value for name, value in stored.items() if name in plain}, plain)
    for name in ("notes", "sampling"):
        if isinstance(stored.get(name, {}), dict):
            accepted[name] = stored.get(name, {})
        else:
            faults.append(f"{name} is {type(stored[name]).__name__}, no mapping.")
    if faults:
        raise ValueError(" ".join(faults))
    return Provenance(**accepted)


def nesting(value: Any) -> int:
    """How many levels of mappings and lists ``value`` has, itself included; no recursion, so any depth is counted."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


TEXTUAL_INVERSION_KEYS = {"string_to_param", "emb_params", "string_to_token", "clip_l", "clip_g"}


def _pick_tensors(path: Path, tensors: Mapping[Any, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if TEXTUAL_INVERSION_KEYS & set(tensors):
        raise ValueError(
            f"{path.name} is a textual-inversion embedding (vectors at the text encoder's input); a ReNeg embedding is "
            "the encoder's output. Try it in a prompt, as embedding:name."
        )
    if "conditioning_data_0" in tensors:
        return tensors["conditioning_data_0"], tensors.get("attention_mask_0"), None
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if "tokens" in found:
        return found["tokens"], found.get("mask"), found.get("pooled")
    if len(found) != 1:
        names = ", ".join(sorted(repr(key)[:40] for key in found)[:5]) or "none"
        raise ValueError(f"Got {len(found)} tensors ({names}) in {path.name}, expected one embedding tensor.")
    return next(iter(found.values())), None, None
