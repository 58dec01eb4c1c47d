"""Activation checkpointing of networks whose blocks may change tensors in place.

A block of Flux, Chroma, LTX-Video or HunyuanVideo changes its inputs, and also tensors that it saved for its own
backward pass. Plain autograd refuses that; ``torch.utils.checkpoint`` recomputes with the changed values and says
nothing. Here the forward pass runs without a graph on copies of the inputs, and the backward pass runs the block again
where saved tensors may be changed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

Around = Callable[[], AbstractContextManager[None]]
SEEDED = ("cuda", "xpu")
"""Kinds of devices whose generators can be asked one by one."""


class Checkpoints:
    """Blocks that are computed again in the backward pass.

    The tensors of their inputs and answers may be nested in tuples, lists and dicts, or be fields of dataclasses.
    passing: a context around each block, in both passes.
    """

    def __init__(self, passing: Around = nullcontext) -> None:
        self._patched: list[nn.Module] = []
        self._passing = passing

    def wrap(self, module: nn.Module) -> None:
        """Recompute ``module`` until :meth:`restore`."""
        if "forward" in vars(module):
            return
        module.forward = _checkpointed(module.forward, self._passing)
        self._patched.append(module)

    def restore(self) -> None:
        """Undo every :meth:`wrap`."""
        while self._patched:
            del self._patched.pop().forward


def blocks_of(network: nn.Module, opened: tuple[type, ...] = ()) -> list[nn.Module]:
    """The largest parts of ``network`` that are called as a whole: its children, and in place of one that only holds
    others (a list, a module without a forward pass, one of the classes ``opened``) those."""
    found = []
    for child in network.children():
        holder = type(child).forward is nn.Module.forward or isinstance(child, opened)
        found += blocks_of(child, opened) if holder else [child]
    return found


def _checkpointed(forward: Callable[..., Any], passing: Around) -> Callable[..., Any]:
    def passed(*args: Any, **kwargs: Any) -> Any:
        with passing():
            return forward(*args, **kwargs)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        tensors = _tensors([args, kwargs])
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            return passed(*args, **kwargs)
        call = _Call(passed, args, kwargs, tensors)
        return call.answer(_Recomputed.apply(call, *tensors))

    return wrapped


class _Recomputed(torch.autograd.Function):
    """A call as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, call: "_Call", *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.surroundings = call, _Surroundings.now(tensors)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        outputs = call.first(tensors)
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        leaves = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        with ctx.surroundings.again(), torch.enable_grad(), allow_mutation_on_saved_tensors():
            outputs = ctx.call.again(leaves)
            _check_only(outputs, wanted)
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None and o.requires_grad]
            found = iter(
                torch.autograd.grad([o for o, _ in pairs], wanted, [g for _, g in pairs], allow_unused=True)
                if pairs
                else [None] * len(wanted)
            )
        return (None, *(next(found) if need else None for need in needed))


class _Call:
    """One call of a block: what it is given, in both passes, and how its answer is built.

    Containers are copied as they are now, for what others write into them later. In the first pass a dict or list
    without a gradient in it (the host's options) is the caller's own, so that others see what the block writes there.
    """

    def __init__(self, forward: Callable[..., Any], args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        places = {id(tensor): _Place(i) for i, tensor in enumerate(tensors)}
        self._forward, self._given = forward, (args, kwargs)
        self._inputs = _mapped((args, kwargs), lambda tensor: places[id(tensor)])
        self._answer: Any = None

    def first(self, tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
        """Run without a graph on copies of ``tensors``; returns the answer's tensors.

        Errors: RuntimeError for a block that leaves tensors in a container of its inputs: they would have no gradient.
        """
        (args, kwargs), self._given = self._given, ((), {})
        fresh = _filled(self._inputs, [_fresh(tensor) for tensor in tensors])
        args = [own if _plain(own) else new for own, new in zip(args, fresh[0], strict=True)]
        kwargs = {name: own if _plain(own) else fresh[1][name] for name, own in kwargs.items()}
        before = {id(tensor) for tensor in _tensors([args, kwargs])}
        answer = self._forward(*args, **kwargs)
        if any(id(t) not in before and t.is_floating_point() for t in _tensors([args, kwargs])):
            raise RuntimeError("Got a block that writes tensors into its inputs, which have no gradient there.")
        outputs = _tensors(answer)
        places = {id(output): _Place(i) for i, output in enumerate(outputs)}
        self._answer = _mapped(answer, lambda output: places[id(output)])
        return tuple(output.clone() if output._is_view() else output for output in outputs)

    def again(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Run with a graph on copies of ``tensors``; returns the answer's tensors."""
        args, kwargs = _filled(self._inputs, [_fresh(tensor) for tensor in tensors])
        return _tensors(self._forward(*args, **kwargs))

    def answer(self, outputs: tuple[Tensor, ...]) -> Any:
        """The answer with ``outputs`` in it."""
        return _filled(self._answer, outputs)


@dataclass(frozen=True)
class _Place:
    """Where a tensor belongs."""

    number: int


def _mapped(value: Any, change: Callable[[Any], Any], kind: type = Tensor) -> Any:
    """``value`` with what is of ``kind`` changed, in containers of its own; other objects are the same ones."""
    if isinstance(value, kind):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_mapped(part, change, kind) for part in value)
    if type(value) is dict:
        return {name: _mapped(part, change, kind) for name, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        changed = {name: change(part) for name, part in parts.items() if isinstance(part, kind)}
        return replace(value, **changed) if changed else value
    return value


def _filled(value: Any, tensors: Iterable[Tensor]) -> Any:
    """``value`` with the tensors in their places."""
    listed = list(tensors)
    return _mapped(value, lambda place: listed[place.number], _Place)


def _tensors(value: Any) -> list[Tensor]:
    """Every tensor in ``value``, each once."""
    found: dict[int, Tensor] = {}
    _mapped(value, lambda tensor: found.setdefault(id(tensor), tensor))
    return list(found.values())


def _plain(value: Any) -> bool:
    """Whether ``value`` is a container without a gradient."""
    return isinstance(value, dict | list) and not any(tensor.requires_grad for tensor in _tensors(value))


def _fresh(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_floating_point() else tensor


def _check_only(outputs: Iterable[Tensor], leaves: Iterable[Tensor]) -> None:
    """Refuse a block whose answer depends on more tensors with a gradient than it was given (RuntimeError)."""
    known, seen = {id(leaf) for leaf in leaves}, set()
    left = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if id(getattr(node, "variable", None)) not in known and hasattr(node, "variable"):
            raise RuntimeError("Got a block that reads a tensor with a gradient that is not among its inputs.")
        left += [following for following, _ in node.next_functions]


@dataclass(frozen=True)
class _Surroundings:
    """What a block's answer depends on beside its inputs: random states and automatic casts."""

    kind: str
    cpu: Tensor
    states: dict[int, Tensor]
    casts: dict[str, tuple[bool, torch.dtype]]

    @classmethod
    def now(cls, tensors: Iterable[Tensor]) -> "_Surroundings":
        places = {tensor.device for tensor in tensors if tensor.device.type in SEEDED}
        kind = next((place.type for place in places), "cpu")
        states = {place.index: torch.get_device_module(kind).get_rng_state(place.index) for place in places}
        kinds = filter(torch.amp.is_autocast_available, {"cpu", kind})
        casts = {name: (torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in kinds}
        return cls(kind, torch.get_rng_state(), states, casts)

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same once more; afterwards they are as before."""
        kind = "cuda" if self.kind == "cpu" else self.kind  # a name that the call wants; without devices it is not used
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(list(self.states), device_type=kind))
            torch.set_rng_state(self.cpu)
            for index, state in self.states.items():
                torch.get_device_module(kind).set_rng_state(state, index)
            for name, (enabled, dtype) in self.casts.items():
                stack.enter_context(torch.autocast(name, dtype, enabled=enabled))
            yield
