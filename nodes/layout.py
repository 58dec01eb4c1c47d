"""Layout changes at the border between the host and the core; no mathematics.

Host: IMAGE ``[B,H,W,C]`` float32 in [0,1]; CONDITIONING a list of ``[tokens [B,L,D], dict]``.
"""

from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from reneg_core.embedding import NegativeEmbedding
from reneg_core.model import Conditioning

HostConditioning = list[list[Any]]


def to_bchw(images: Tensor) -> Tensor:
    """BHWC of any channel count -> B3HW float32; an alpha channel is dropped."""
    return images[..., :3].movedim(-1, 1).float()


def to_bhwc(images: Tensor) -> Tensor:
    """B3HW -> BHWC float32 on the CPU."""
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


def to_host(embedding: NegativeEmbedding, like: dict[str, Any] | None = None) -> HostConditioning:
    """An embedding as CONDITIONING.

    like: the dict of another CONDITIONING of the same model (the empty prompt, or the negative it replaces): what is
    there besides text (ControlNet, areas, hooks, sizes) is kept, and a pooled vector the embedding lacks is taken from
    it. Masked tokens are cut, because some architectures have no place for a mask.
    """
    extra, tokens = dict(like or {}), embedding.tokens
    if embedding.mask is not None:
        tokens = tokens[:, embedding.mask[0].bool()]
    if embedding.mask is not None or "attention_mask" in extra:
        extra["attention_mask"] = torch.ones(1, tokens.shape[1], dtype=torch.int64)
    if embedding.pooled is not None:
        extra["pooled_output"] = embedding.pooled
    return [[tokens.clone(), extra]]
