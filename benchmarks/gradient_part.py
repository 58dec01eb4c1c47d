"""The UNet's part of the gradient, written plainly and as the core does it; shared by the benchmarks of a step."""

import torch
from torch import Tensor

from reneg_core.guidance import cfg
from reneg_core.model import Branch, Conditioning, DiffusionModel, concat


def plain_x0(
    model: DiffusionModel, x: Tensor, sigma: Tensor, positive: Conditioning, leaf: Tensor, scale: float
) -> Tensor:
    """Guided x0 ``[B,C,h,w]``: both branches in one batch, the graph kept for both. leaf: ``[1,L,D]``."""
    both = concat(Conditioning(leaf.expand(len(x), -1, -1)), positive)
    branches = (Branch.NEGATIVE, Branch.POSITIVE)
    x0_negative, x0_positive = model.denoise(torch.cat([x, x]), sigma, both, branches).chunk(2)
    return cfg(x0_positive, x0_negative, scale)


def our_x0(
    model: DiffusionModel, x: Tensor, sigma: Tensor, positive: Conditioning, leaf: Tensor, scale: float
) -> Tensor:
    """The same, the graph kept for the negative branch only."""
    with torch.no_grad():
        x0_positive = model.denoise(x, sigma, positive)
    negative = Conditioning(leaf.expand(len(x), -1, -1))
    return cfg(x0_positive, model.denoise(x, sigma, negative, (Branch.NEGATIVE,)), scale)


def backward(x0: Tensor, leaf: Tensor) -> None:
    """The gradient of the summed ``x0`` with respect to ``leaf``."""
    torch.autograd.grad(x0, leaf, torch.ones_like(x0))
