"""Layout changes at the border between the host and the core; no mathematics.

Host: IMAGE ``[B,H,W,C]`` float32 in [0,1]; CONDITIONING a list of ``[tokens [B,L,D], dict]``.
"""

from dataclasses import replace
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from reneg_core.conventions import FAMILIES, encoder_of
from reneg_core.embedding import NegativeEmbedding
from reneg_core.model import Conditioning

HostConditioning = list[list[Any]]
CARRIED = {"pooled_output", "attention_mask"}
MASK_OF_PICTURES = {"flux", "chroma"}
"""Families whose architecture the host hands a mask as one of the picture."""
WITHOUT_POOLED = {
    name for name, known in FAMILIES.items() if not known.pooled and encoder_of(name) == encoder_of("t5-xxl")
}
"""Families whose encoder gives no pooled vector in the host either, which some architectures want to be told."""
ACTING = {
    *("area", "mask", "strength", "set_area_to_bounds", "default", "gligen", "hooks", "control"),
    *("start_percent", "end_percent", "clip_start_percent", "clip_end_percent"),
    *(
        "width",
        "height",
        "crop_w",
        "crop_h",
        "target_width",
        "target_height",
        "aesthetic_score",
        "guidance",
        "frame_rate",
    ),
}


def to_bchw(images: Tensor) -> Tensor:
    """BHWC of any channel count -> B3HW float32; an alpha channel is dropped."""
    return images[..., :3].movedim(-1, 1).float()


def to_bhwc(images: Tensor) -> Tensor:
    """B3HW, or the frames of clips BT3HW one after the other, -> BHWC float32 on the CPU."""
    images = images.flatten(0, 1) if images.ndim == 5 else images
    return images.detach().movedim(1, -1).float().cpu().contiguous()


def pil_to_image(picture: Image) -> Tensor:
    """A PIL picture -> IMAGE ``[1,H,W,3]``."""
    import numpy as np

    return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


def image_to_pil(image: Tensor) -> Image:
    """``[H,W,3]`` in [0,1] -> a PIL picture."""
    from PIL import Image as Pillow

    return Pillow.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def from_host(tokens: Tensor, extra: dict[str, Any]) -> Conditioning:
    """One CONDITIONING entry as the core has it: copies that autograd may save."""
    mask, pooled = extra.get("attention_mask"), extra.get("pooled_output")
    parts = (tokens.float(), mask, None if pooled is None else pooled.float())
    return Conditioning(*(None if part is None else part.clone() for part in parts))


def beside_text(extra: dict[str, Any]) -> list[str]:
    """Names of what changes pictures in a CONDITIONING entry and has no place in the core's conditioning: ControlNets,
    areas, hooks, sizes, parts of the schedule, and whatever else holds tensors."""
    return sorted(name for name, value in extra.items() if name not in CARRIED and (name in ACTING or _tensors(value)))


def only_text(conditioning: HostConditioning) -> Conditioning:
    """A CONDITIONING that is one encoded prompt and nothing else; ValueError names what would be lost."""
    if len(conditioning) != 1:
        raise ValueError(
            f"Got a conditioning of {len(conditioning)} entries (combined or scheduled prompts), expected one. "
            "Try the prompts one by one."
        )
    [[tokens, extra]] = conditioning
    lost = beside_text(extra)
    if lost:
        raise ValueError(
            f"Got a conditioning with {', '.join(lost)}, which cannot be carried here; expected an encoded prompt "
            "alone. Try the output of CLIP Text Encode."
        )
    return from_host(tokens, extra)[:1]


def _tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_tensors, value)))


def unmasked(embedding: NegativeEmbedding) -> NegativeEmbedding:
    """The embedding without its masked tokens and its mask, for architectures that have no place for one."""
    if embedding.mask is None:
        return embedding
    return replace(embedding, tokens=embedding.tokens[:, embedding.mask[0].bool()], mask=None)


def suited(embedding: NegativeEmbedding, null: Conditioning) -> NegativeEmbedding:
    """The embedding with the parts that a model reads, which are those of its encoded empty prompt ``null``.

    Masked tokens are cut where the model has no mask; a pooled vector that it does not read is left out, and one that
    the embedding lacks is the empty prompt's.
    """
    fitting = embedding if null.mask is not None else unmasked(embedding)
    pooled = None if null.pooled is None else embedding.pooled if embedding.pooled is not None else null.pooled
    return replace(fitting, pooled=pooled)


def to_host(embedding: NegativeEmbedding, like: dict[str, Any] | None = None) -> HostConditioning:
    """An embedding as CONDITIONING.

    like: the dict of another CONDITIONING of the same model (the empty prompt, or the negative it replaces): what is
    there besides text (ControlNet, areas, hooks, sizes) is kept, and a pooled vector the embedding lacks is taken from
    it. Masked tokens are cut, because some architectures have no place for a mask; one of ones is told where ``like``
    has one, or where nothing is known of the model but that the embedding has one and its family reads it as text's.
    """
    extra, tokens = dict(like or {}), unmasked(embedding).tokens
    masked = embedding.mask is not None and embedding.family not in MASK_OF_PICTURES
    if masked if like is None else "attention_mask" in like:
        extra["attention_mask"] = torch.ones(1, tokens.shape[1], dtype=torch.int64)
    if embedding.pooled is not None:
        extra["pooled_output"] = embedding.pooled
    elif embedding.family in WITHOUT_POOLED:
        extra.setdefault("pooled_output", None)
    return [[tokens.clone(), extra]]
