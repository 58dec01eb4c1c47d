"""Making the host's tensors and networks usable by autograd, and giving everything back as it was.

The host runs nodes in inference mode. Weights loaded or moved there are inference tensors, which autograd refuses to
save; assigning ``.data`` does not repair a parameter, replacing the ``Parameter`` does, and leaves what the host
computes bit-identical.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def unusable(tensor: Tensor) -> bool:
    """Whether autograd cannot save this tensor.

    ``is_inference`` alone misses tensors that were moved later: they have no version counter either.
    """
    if tensor.is_inference():
        return True
    try:
        _ = tensor._version
    except RuntimeError:
        return True
    return False


def repair(root: nn.Module, device: torch.device | None = None) -> int:
    """Replace unusable parameters, buffers and tensor attributes of ``root``; returns how many were replaced.

    device: only tensors there (the host may have pinned what it keeps elsewhere). Tensor subclasses (quantised
    weights) are left to the host's cast, which gives ordinary tensors. Tied weights stay tied.
    """
    done: dict[int, Tensor] = {}
    count = 0
    for module in root.modules():
        for holder in (module._parameters, module._buffers, vars(module)):
            for name, value in list(holder.items()):
                if _plain(value) and unusable(value) and (device is None or value.device.type == device.type):
                    count += id(value) not in done
                    holder[name] = done.setdefault(id(value), _fresh(value))
    return count


def _plain(value: object) -> bool:
    return type(value) in (Tensor, nn.Parameter)


def _fresh(value: Tensor) -> Tensor:
    copy = value.detach().clone()
    return nn.Parameter(copy, requires_grad=False) if isinstance(value, nn.Parameter) else copy


def repair_attributes(thing: object) -> None:
    """Replace unusable tensors among the attributes of a plain object, such as a latent format."""
    for name, value in list(vars(thing).items()):
        if _plain(value) and unusable(value):
            setattr(thing, name, value.clone())


@contextmanager
def frozen(*roots: nn.Module) -> Iterator[None]:
    """No parameter of ``roots`` collects a gradient meanwhile; each is as before afterwards."""
    wanted = [p for root in roots for p in root.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
