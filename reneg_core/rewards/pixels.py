"""What rewards make of pictures before they look at them: a tensor [B,...], or for a mix one per part."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

Pixels = Tensor | dict[Hashable, "Pixels"]


def joined(batches: Sequence[Pixels]) -> Pixels:
    """Pixels of one form, one batch after the other."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(list(batches)) if len(batches) > 1 else first
    return {key: joined([batch[key] for batch in batches]) for key in first}


def form(pixels: Pixels) -> Hashable:
    """Equal for pixels that can be joined: the shapes without the batch."""
    if isinstance(pixels, Tensor):
        return tuple(pixels.shape[1:])
    return tuple((key, form(part)) for key, part in pixels.items())


def size_in_bytes(pixels: Pixels) -> int:
    """Memory of all tensors."""
    return pixels.nbytes if isinstance(pixels, Tensor) else sum(map(size_in_bytes, pixels.values()))
