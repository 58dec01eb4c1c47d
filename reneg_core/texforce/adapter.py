"""LoRA on CLIP text encoders while they are tuned (Hu et al. 2022, arXiv 2106.09685); the layers are PEFT's."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..seeds import derive_seed
from .lora import PARTS, TextLora, canonical

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""What is adapted: the attention's four projections (TexForce)."""
ADAPTER = "texforce"


@dataclass(frozen=True)
class Adapter:
    """The LoRA's parameters inside the encoders, float32, by canonical name (:func:`.lora.canonical`) and ``.lora_A``
    (``[r,in]``) or ``.lora_B`` (``[out,r]``); scale: the factor ``alpha / r`` with which a layer's ``B A`` acts."""

    parameters: dict[str, nn.Parameter]
    scale: float

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy ``tensors`` into the parameters of the same names."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def lora(self, tensors: Mapping[str, Tensor]) -> TextLora:
        """``tensors`` by the names of the parameters as a LoRA."""
        layers = sorted({name.rpartition(".")[0] for name in self.parameters})
        return TextLora({layer: _pair(tensors, layer, self.scale) for layer in layers})

    def tensors_of(self, lora: TextLora) -> dict[str, Tensor]:
        """``lora`` by the names of the parameters. Errors: ValueError for another rank or other layers than these."""
        found = {}
        for layer, (down, up) in lora.layers.items():
            found |= {f"{layer}.lora_A": down, f"{layer}.lora_B": up / self.scale}
        shapes = {name: list(tensor.shape) for name, tensor in found.items()}
        expected = {name: list(parameter.shape) for name, parameter in self.parameters.items()}
        if shapes != expected:
            raise ValueError(f"Got a LoRA {_unlike(shapes, expected)}. Try the rank that it was trained with, or none.")
        return found


def _pair(tensors: Mapping[str, Tensor], layer: str, scale: float) -> tuple[Tensor, Tensor]:
    down, up = (tensors[f"{layer}.{part}"].detach().float().cpu() for part in PARTS)
    return down, up * scale


def _unlike(got: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> str:
    for name, shape in expected.items():
        if got.get(name) != shape:
            return f"with {name} {'of shape ' + str(got[name]) if name in got else 'missing'}, expected {shape}"
    return f"for {sorted(set(got) - set(expected))[0]}, which the model's text encoders do not have"


@contextmanager
def attached(encoders: Mapping[str, nn.Module], rank: int, alpha: float, seed: int) -> Iterator[Adapter]:
    """A LoRA on ``encoders`` (by diffusers' names), which are as before afterwards.

    A is Gaussian with standard deviation ``1 / rank`` from ``seed`` and B is 0: nothing changes before it is learned.
    The encoders' own weights stay frozen and as they are. Errors: ImportError without PEFT; ValueError for an encoder
    without the projections of :data:`TARGETS`.
    """
    with ExitStack() as stack:
        parameters: dict[str, nn.Parameter] = {}
        for encoder, module in encoders.items():
            parameters |= stack.enter_context(_injected(encoder, module, rank, alpha))
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(_initial(name, parameter, rank, seed))
        yield Adapter(parameters, alpha / rank)


def _initial(name: str, parameter: Tensor, rank: int, seed: int) -> Tensor:
    if name.endswith("lora_B"):
        return torch.zeros(parameter.shape)
    generator = torch.Generator().manual_seed(derive_seed("lora", seed, name))
    return torch.randn(parameter.shape, generator=generator) / rank


@contextmanager
def _injected(encoder: str, module: nn.Module, rank: int, alpha: float) -> Iterator[dict[str, nn.Parameter]]:
    peft = require_peft()
    if not any(name.endswith(TARGETS) for name, _ in module.named_modules()):
        raise ValueError(
            f"Got {encoder} of class {type(module).__name__} without the projections {', '.join(TARGETS)}, expected a "
            "CLIP text encoder."
        )
    options = {"r": rank, "lora_alpha": alpha, "target_modules": list(TARGETS), "lora_dropout": 0.0}
    state = torch.random.get_rng_state()
    peft.inject_adapter_in_model(peft.LoraConfig(**options), module, ADAPTER)
    torch.random.set_rng_state(state)
    try:
        yield dict(_parameters(encoder, module))
    finally:
        _removed(module)


def _parameters(encoder: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, layer in _layers(module):
        for part in PARTS:
            inner = getattr(layer, part)[ADAPTER].float().requires_grad_()
            yield f"{canonical(encoder, name)}.{part}", inner.weight


def _layers(module: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]


def _removed(module: nn.Module) -> None:
    for name, layer in _layers(module):
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config


def require_peft() -> Any:
    """The package; ImportError that says how to get it."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "Tuning a text encoder and applying a LoRA need the package peft. Try: pip install peft"
        ) from error
    return peft
