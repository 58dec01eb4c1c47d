"""The host's text encoder as the core sees it: which family it is, and what it encodes."""

import logging
from typing import Any

import torch

from reneg_core.embedding import NegativeEmbedding, Provenance
from reneg_core.model import Conditioning

from ..layout import beside_text, from_host

FAMILY_OF_CLASS = {
    "SD2ClipModel": "openclip-h",
    "SDXLClipModel": "sdxl",
    "SDXLRefinerClipModel": "openclip-g",
    "StableCascadeClipModel": "openclip-g",
    "SD3ClipModel": "sd3",
    "PixArtT5XXL": "t5-xxl",
    "FluxClipModel": "flux",
    "MochiT5XXL": "t5-xxl",
    "CosmosT5XXL": "t5-xxl-1.0",
    "WanT5Model": "umt5-xxl",
    "SD1ClipModel": "clip-l",
    "TinyWorldText": "width-128",
}


def family_of(clip: Any) -> str:
    """The text-encoder family of a CLIP, as embeddings name it; an unknown encoder is named by its class.

    Encoders derive from SD1ClipModel whatever they are, so that name alone counts only when the class is it.
    """
    lineage = [cls.__name__ for cls in type(clip.cond_stage_model).__mro__]
    known = next((FAMILY_OF_CLASS[name] for name in lineage if name in FAMILY_OF_CLASS), None)
    if known == "clip-l" and not hasattr(clip.cond_stage_model, "clip_l"):
        return lineage[0]
    return known or lineage[0]


def encode(clip: Any, text: str, length: int = 0, *, gradient: bool = False) -> tuple[Conditioning, dict[str, Any]]:
    """One prompt as conditioning and as the dict that the host carries with it; ordinary tensors.

    length: tokens that T5 pads the prompt to, where it is not the host's own choice (0); gradient: record the graph.

    Errors: ValueError for a text encoder whose hooks change over the schedule, which gives several conditionings.
    """
    with torch.inference_mode(False), torch.set_grad_enabled(gradient):
        options = {"tokenizer_options": {"t5xxl_min_length": length}} if length else {}
        found = clip.encode_from_tokens_scheduled(clip.tokenize(text, **options))
        if len(found) != 1:
            raise ValueError(
                f"Got a CLIP that encodes a prompt in {len(found)} scheduled parts, expected one. "
                "Try the CLIP before its hooks were set."
            )
        [[tokens, extra]] = found
        return from_host(tokens, extra), extra


def encode_alone(clip: Any, text: str, length: int = 0, *, gradient: bool = False) -> Conditioning:
    """One prompt as conditioning, for models that read nothing beside it; ValueError names what would be lost."""
    tokens, extra = encode(clip, text, length, gradient=gradient)
    lost = beside_text(extra)
    if lost:
        raise ValueError(
            f"This text encoder gives {', '.join(lost)} beside its tokens, which training cannot carry; expected "
            "tokens, a mask and a pooled vector at most. Try another architecture, or the CLIP before its hooks."
        )
    return tokens


def embedding_from(conditioning: list[list[Any]], family: str = "") -> NegativeEmbedding:
    """A CONDITIONING of one prompt as an embedding, which holds text only: what else there is, is named in the log.

    Errors: ValueError for several entries, which cannot be one embedding.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"Got a conditioning of {len(conditioning)} entries (combined or scheduled prompts), expected one. "
            "Try the prompts one by one and blend the embeddings."
        )
    [[tokens, extra]] = conditioning
    if beside_text(extra):
        logging.warning("ReNeg: an embedding holds text only; left out: %s", ", ".join(beside_text(extra)))
    part = from_host(tokens, extra)
    needs_pooled = part.pooled if part.tokens.shape[2] not in (768, 1024) else None
    return NegativeEmbedding(part.tokens[:1], family, part.mask, needs_pooled, Provenance(source="conditioning"))


def require_fit(embedding: NegativeEmbedding, clip: Any, null: Conditioning) -> None:
    """Refuse an embedding of another text encoder, saying which file would fit."""
    embedding.require(family_of(clip), null.tokens.shape[2])
