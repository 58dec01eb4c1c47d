"""The published score heads: several linear layers with dropout and no activation, hence one vector and a bias."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reneg_core.rewards.checkpoint import Checkpoint, Placement, check_finite, check_keys

LAYERS = (0, 2, 4, 6, 7)  # Linear modules of the published nn.Sequential; dropouts stand between


class LinearHead(nn.Module):
    """weight [1,D] and bias [1] of the folded layers; evaluated in float32 or float64."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """features [B,D] -> [B]."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)[:, 0]


def head_keys(prefix: str) -> list[str]:
    """The published keys of a head whose layers are called `prefix`N."""
    return [f"{prefix}{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")]


def load_head(checkpoint: Checkpoint, prefix: str, placement: Placement, ignored: tuple[str, ...] = ()) -> LinearHead:
    """Fold the head in float64; raises ValueError naming missing or unexpected keys, values that are not finite, or
    layers that do not chain."""
    check_keys(checkpoint, head_keys(prefix), ignored)
    weight, bias = None, None
    for layer in LAYERS:
        step, shift = (
            check_finite(checkpoint, key, checkpoint.tensor(key).double())
            for key in (f"{prefix}{layer}.weight", f"{prefix}{layer}.bias")
        )
        if weight is not None and step.shape[1] != len(weight):
            raise ValueError(
                f"{checkpoint.path}: {prefix}{layer}.weight takes {step.shape[1]} inputs, "
                f"but the layer before it gives {len(weight)}"
            )
        weight, bias = (step, shift) if weight is None else (step @ weight, step @ bias + shift)
    if len(weight) != 1:
        raise ValueError(f"{checkpoint.path}: the head ends in {len(weight)} outputs, expected 1 score")
    dtype = torch.promote_types(placement.dtype, torch.float32)
    return LinearHead(*(tensor.to(device=placement.device, dtype=dtype) for tensor in (weight, bias)))
