"""Normalised attention guidance in the host's UNets, by its own patches of cross-attention.

Each row of a pass goes through a cross-attention a second time, with the negative's tokens, and what both give is
joined. What to do comes with each pass, so that activations that are computed again in the backward pass are the
same.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import Tensor

from reneg_core.guidance import attend

from .families import name_of

Options = dict[str, Any]
TOLD = "reneg_attention_guidance"
BRANCHES = ("cond_or_uncond", "uuids")


@dataclass(frozen=True)
class Away:
    """What a pass is guided away from: tokens ``[1 or B,L,D]`` for its B rows, and how strongly."""

    negative: Tensor
    strength: float


def require_cross_attention(model: Any) -> None:
    """Raise ValueError for a MODEL whose attention cannot be guided here."""
    settings = model.model.model_config.unet_config
    if not isinstance(model.model.diffusion_model, UNetModel) or settings.get("use_temporal_attention"):
        raise ValueError(
            f"Got attention guidance for a {name_of(model)}, whose attention cannot be guided here; expected a model "
            "with cross-attention (Stable Diffusion 1, 2, XL). Try a cfg above 1 and no attention guidance."
        )


def guided_away(options: Options, negative: Tensor, strength: float) -> Options:
    """A MODEL's options for a pass of the positive, guided away from ``negative``; see
    :func:`reneg_core.guidance.attend`.

    Patches that are there act on both: what changes the inputs comes after the second rows are there, as rows of the
    negative's branch, and what changes the outputs before they are joined.
    """
    told = options["transformer_options"]
    patches = told.get("patches", {})
    own = {
        "attn2_patch": [_twice, *patches.get("attn2_patch", [])],
        "attn2_output_patch": [*patches.get("attn2_output_patch", []), _joined],
    }
    told = {**told, "patches": {**patches, **own}, TOLD: Away(negative, strength)}
    return {**options, "transformer_options": told}


def _twice(queries: Tensor, context: Tensor, value: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Every row once more behind the others, attending to the negative. Tokens that are repeated change nothing."""
    negative = options[TOLD].negative.to(context)
    negative = negative.repeat(len(context) // len(negative), 1, 1)
    length = math.lcm(context.shape[1], negative.shape[1])
    tokens = torch.cat([part.repeat(1, length // part.shape[1], 1) for part in (context, negative)])
    for name in BRANCHES:
        told = options[name]
        options[name] = [*told, *(told if name == "uuids" else [1 - branch for branch in told])]
    return torch.cat([queries, queries]), tokens, tokens


def _joined(out: Tensor, options: Options) -> Tensor:
    """The guided rows alone."""
    for name in BRANCHES:
        options[name] = options[name][: len(options[name]) // 2]
    positive, negative = out.float().chunk(2)
    return attend(positive, negative, options[TOLD].strength).to(out)
