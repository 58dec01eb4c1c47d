"""Networks in their own precision: apart from a caller's autocast, in float16 with gradients that do not underflow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the networks of a reward may compute in, by the names that users give."""
GRADIENT_SCALE = 256.0  # a power of two: scaling back is exact


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Operations on `device` compute in the dtypes of their tensors, whatever autocast the caller is in."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def isolated_float16_gradient(network: Callable[[Tensor], Tensor], pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """network(pixels), at least float32; for a float16 network its backward runs on gradients of a safe size.

    pixels [B,3,S,S] float32 or wider -> [B,W]. Each image's incoming gradient is brought to maximum GRADIENT_SCALE
    before it enters the network and scaled back, in float32, when it leaves: a loss weight of 1e-8 then costs no
    precision. Images must not influence each other, which holds for every network here.
    """
    if dtype != torch.float16 or not (pixels.requires_grad and torch.is_grad_enabled()):
        return at_least_float32(network(pixels))
    size = torch.ones(len(pixels), device=pixels.device)

    def shrink(gradient: Tensor) -> Tensor:
        largest = gradient.flatten(1).abs().amax(1)
        size.copy_(torch.where(largest > 0, largest, torch.ones_like(largest)) / GRADIENT_SCALE)
        return gradient / _per_image(size, gradient)

    def restore(gradient: Tensor) -> Tensor:
        return gradient * _per_image(size, gradient)

    inside = pixels.view_as(pixels)
    inside.register_hook(restore)
    features = at_least_float32(network(inside))
    features.register_hook(shrink)
    return features


def _per_image(size: Tensor, like: Tensor) -> Tensor:
    return size.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
