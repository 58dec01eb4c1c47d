"""Making the host's tensors and networks usable by autograd, and giving everything back as it was.

The host runs nodes in inference mode. Weights loaded or moved there are inference tensors, which autograd refuses to
save; assigning ``.data`` does not repair a parameter, replacing the ``Parameter`` does, and leaves what the host
computes bit-identical.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .feedback import Passing


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


class CloningCheckpoints:
    """Activation checkpointing of networks whose blocks may change their inputs in place.

    Every floating tensor argument is cloned before the block sees it, so that the recomputation starts from the same
    values; without that, some architectures give a wrong gradient silently. passing: a context around each block.
    """

    def __init__(self, passing: Passing = nullcontext) -> None:
        self._patched: list[nn.Module] = []
        self._passing = passing

    def wrap(self, module: nn.Module) -> None:
        """Recompute ``module`` in the backward pass until :meth:`restore`."""
        if "forward" in vars(module):
            return
        module.forward = _checkpointed(module.forward, self._passing)
        self._patched.append(module)

    def restore(self) -> None:
        """Undo every :meth:`wrap`."""
        while self._patched:
            del self._patched.pop().forward


def _checkpointed(forward: Callable[..., Any], passing: Passing) -> Callable[..., Any]:
    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with passing():
            return forward(*[_cloned(a) for a in args], **{k: _cloned(v) for k, v in kwargs.items()})

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(run, args, kwargs, use_reentrant=False)

    return wrapped


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The largest parts of ``network`` that are called as a whole: its children, and the members of its lists."""
    found = []
    for child in network.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += blocks_of(child)
        else:
            found.append(child)
    return found
