"""Weights and tensors by their contents."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

DIGEST = "sha256:"
"""What a digest begins with among other values."""


def sha256_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and bytes in name order, 64 hexadecimal digits; the same on every device, per dtype."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """:func:`sha256_of`, marked as a digest."""
    return DIGEST + sha256_of(tensors)
