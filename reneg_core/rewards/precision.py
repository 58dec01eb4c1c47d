"""Half-precision networks: what stays in float32, and gradients that do not underflow."""

from collections.abc import Callable

import torch
from torch import Tensor

GRADIENT_SCALE = 256.0


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision widened to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def isolated_float16_gradient(network: Callable[[Tensor], Tensor], pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """network(pixels); for a float16 network its backward runs on gradients of a safe size.

    pixels [B,3,S,S] float32 or wider -> [B] or [B,D]. Each image's incoming gradient is brought to maximum
    GRADIENT_SCALE before it enters the network and scaled back, in float32, when it leaves: a loss weight of 1e-8
    then costs no precision. Images must not influence each other, which holds for every network here.
    """
    if dtype != torch.float16 or not (pixels.requires_grad and torch.is_grad_enabled()):
        return network(pixels)
    return _Rescaled.apply(pixels, network)


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, pixels: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.pixels = pixels.detach().requires_grad_()
            ctx.outputs = network(ctx.pixels)
        return at_least_float32(ctx.outputs.detach())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        size = gradient.flatten(1).abs().amax(1) if gradient.ndim > 1 else gradient.abs()
        size = torch.where(size > 0, size, torch.ones_like(size)) / GRADIENT_SCALE
        scaled = (gradient / size.view(-1, *[1] * (gradient.ndim - 1))).to(ctx.outputs.dtype)
        (inner,) = torch.autograd.grad(ctx.outputs, ctx.pixels, scaled)
        return inner * size.view(-1, 1, 1, 1).to(inner.dtype), None
