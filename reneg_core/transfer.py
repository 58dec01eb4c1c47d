"""Which models an embedding serves beside the one that it was learned with, why not the others, and how well.

A negative belongs to a text encoder and not to a denoiser (ReNeg, arXiv 2412.19637): any model that reads the same
encoder's tokens takes it. That it fits says nothing about how much it helps there, which only pictures show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .backends.outline import Outline
from .clip_files import write_clip
from .conventions import FAMILIES, describe_family, encoder_of
from .embedding import NegativeEmbedding
from .evaluation import fitted
from .evaluation.modes import EMBEDDING, NONE
from .model import Conditioning, DiffusionModel
from .sampling import Sampling, sample

LAYERS = {"clip-l": 12, "openclip-h": 23, "t5-xxl": 24, "pixart-sigma": 24, "ltx-video": 24, "flux": 24, "chroma": 24}
"""Layers of the text encoder that a convention runs; Stable Diffusion 2.x leaves out the last of 24."""


@dataclass(frozen=True)
class Fit:
    """Whether an embedding fits a model: ``reasons`` why not, each beginning with what differs, and ``notes``."""

    model: Outline
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.reasons


def fit_of(embedding: NegativeEmbedding, model: Outline) -> Fit:
    """Compare convention, width, tokens, layer, mask and pooled vector."""
    faults = (_convention, _width, _tokens, _layer, _mask, _pooled)
    reasons = tuple(sentence for fault in faults if (sentence := fault(embedding, model)))
    return Fit(model, reasons, () if reasons else tuple(_notes(embedding, model)))


def _convention(embedding: NegativeEmbedding, model: Outline) -> str:
    ours, theirs = encoder_of(embedding.family), encoder_of(model.family)
    return "" if ours == theirs else f"convention: it is of {ours}, the model reads {theirs}"


def _width(embedding: NegativeEmbedding, model: Outline) -> str:
    if embedding.width == model.width:
        return ""
    fit = FAMILIES[model.family].published if model.family in FAMILIES else "none"
    return f"width: it has {embedding.width}, the model reads {model.width} (published for that: {fit})"


def _tokens(embedding: NegativeEmbedding, model: Outline) -> str:
    most = model.max_tokens
    return f"tokens: it has {embedding.length}, the model takes {most}" if most and embedding.length > most else ""


def _layer(embedding: NegativeEmbedding, model: Outline) -> str:
    due = LAYERS.get(model.family, model.layers)
    if not model.layers or model.layers == due:
        return ""
    return f"layer: {model.family} is layer {due} of its encoder, this model's encoder ends with layer {model.layers}"


def _mask(embedding: NegativeEmbedding, model: Outline) -> str:
    hidden = 0 if embedding.mask is None else int((embedding.mask == 0).sum())
    return f"mask: it hides {hidden} tokens, the model reads no mask" if hidden and not model.reads_mask else ""


def _pooled(embedding: NegativeEmbedding, model: Outline) -> str:
    found = 0 if embedding.pooled is None else embedding.pooled.shape[1]
    if found == model.pooled:
        return ""
    has = f"one of width {found}" if found else "none"
    needs = f"reads one of width {model.pooled}" if model.pooled else "reads none"
    return f"pooled vector: it has {has}, the model {needs}"


def _notes(embedding: NegativeEmbedding, model: Outline) -> list[str]:
    notes, known = [], FAMILIES.get(model.family)
    if embedding.family != model.family:
        notes.append(f"made for {describe_family(embedding.family)}")
    if known and embedding.length != known.length:
        notes.append(f"{embedding.length} tokens beside prompts of {known.length}: two passes of the denoiser")
    if model.reads_mask and embedding.mask is None and known and known.masked:
        notes.append("no mask: all tokens are attended to")
    return notes


def comparison_clip(
    model: DiffusionModel, embedding: NegativeEmbedding, prompt: str, seed: int, sampling: Sampling, path: str | Path
) -> Path:
    """Write the same prompt and noise with the empty prompt and with ``embedding``, side by side, frame by frame.

    path: ends in .gif or .mp4. Errors: as :func:`reneg_core.clip_files.write_clip`; ValueError for a model of pictures.
    """

    @torch.no_grad()
    def work(prepared: DiffusionModel) -> Mapping[str, torch.Tensor]:
        null, noise = prepared.encode([""]), prepared.noise([seed], sampling.size)
        negatives: dict[str, Conditioning] = {NONE: null, EMBEDDING: fitted(embedding.conditioning(), null.to("cpu"))}
        positive = prepared.encode([prompt])
        rows = {name: row.to(prepared.device) for name, row in negatives.items()}
        return {n: prepared.decode(sample(prepared, positive, row, noise, sampling)).cpu() for n, row in rows.items()}

    clips = model.run(work)
    if clips[NONE].ndim != 5:
        raise ValueError(f"Got {model.name}, which makes single pictures, expected a model of video.")
    return write_clip(path, torch.cat([clips[NONE][0], clips[EMBEDDING][0]], dim=3), model.frame_rate, prompt)
