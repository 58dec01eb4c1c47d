"""The memory of a training step, computed without running a network: tensors on the meta device have a shape and no
numbers, and what would be allocated is counted as it comes and goes."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..backends.diffusers import DiffusersModel
from ..clips import FRAMES
from ..model import Conditioning
from ..rewards import Reward
from ..sampling import Sampling, State, guided_denoise
from .decoding import FULL, Decoder
from .objective import Way

META = torch.device("meta")
CARDS = (8, 12, 16, 24)
"""Sizes of graphics cards in GiB."""
SPARE = 3 << 28
"""Bytes of a card that are left for the driver, workspaces and fragments: three quarters of a GiB."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step at its heaviest moment.

    weights: all networks but the text encoders, which are there (text) only while prompts are encoded, before the
    steps; rollout: a guided pass without gradient; gradient: a gradient point, to the pictures and
    back; judging: what it holds when the reward looks at the pictures, and the reward's own passes.
    """

    weights: int
    rollout: int
    gradient: int
    judging: int
    text: int = 0

    @property
    def step(self) -> int:
        """Beside the weights, once the prompts are encoded."""
        return max(self.rollout, self.gradient, self.judging)

    @property
    def peak(self) -> int:
        return self.weights + max(self.text, self.step)


@dataclass(frozen=True)
class Step:
    """What decides a step's memory: pictures at once, the sampling with its size, what a gradient passes through (see
    :class:`.objective.Reach`), whether activations are recomputed, how many frames of a video are judged, pictures at
    once where no gradient is needed (0: as many), and what decodes (:mod:`.decoding`)."""

    micro_batch: int
    sampling: Sampling
    through: int | str = 1
    recompute: bool = False
    frames: int = FRAMES
    rollout: int = 0
    decoder: str = FULL


def footprint(
    model: DiffusersModel, reward: Reward | None, step: Step, conditioning: Conditioning | None = None
) -> Footprint:
    """Bytes that ``step`` takes, by its tensors' sizes.

    conditioning: one row of any numbers, by default the empty prompt. A fused attention is assumed, which keeps no
    table of weights; workspaces of convolutions and what an allocator wastes are not counted (:data:`SPARE`).
    Errors: ValueError for a size that the model refuses.
    """
    sigmas, one = model.sigmas(step.sampling), model.noise([0], step.sampling.size)
    conditioning = _on_meta(model.encode([""]) if conditioning is None else conditioning)
    shadow, decoder = _shadow(model), Decoder.read(step.decoder)
    pixels = step.micro_batch * model.pixels(step.sampling.size, step.frames)
    shadow.checkpointing(step.recompute, step.recompute or decoder.recomputes(pixels))
    decoding = decoder.load(shadow)
    decode = decoding.of(shadow, range(step.micro_batch))
    x = one.to(META).expand(step.micro_batch, *one.shape[1:])
    images: list[Tensor] = []

    def rollout(_: Callable[[], int]) -> None:
        together = one.to(META).expand(max(step.rollout, step.micro_batch), *one.shape[1:])
        with torch.no_grad():
            guided_denoise(shadow, together, sigmas[0], conditioning, conditioning, step.sampling.guidance, 0.5)

    def gradient(live: Callable[[], int]) -> int:
        leaves = _leaves(conditioning)
        index = 0 if step.through != 1 else len(sigmas) - 2
        way, state = Way(shadow, sigmas, conditioning, leaves, step.sampling), State(x, index)
        x0 = way.recorded(state, way.positive_x0(state))
        images.append(decode(way.ahead(state, x0, step.through), step.frames, range(step.micro_batch)))
        held = live()
        wanted = [part for part in (leaves.tokens, leaves.pooled) if part is not None]
        torch.autograd.grad(images[0], wanted, torch.empty_like(images[0]))
        return held

    owned = [*shadow.network.parameters(), *shadow.network.buffers()]
    owned += [*shadow.pipeline.vae.parameters(), *shadow.pipeline.vae.buffers(), *decoding.parameters()]
    with _fused_attention():
        forward, _ = _counted(owned, rollout)
        both, held = _counted(owned, gradient)
    parts = {name: part for name, part in model.pipeline.components.items() if isinstance(part, nn.Module)}
    text = sum(_weights(part) for name, part in parts.items() if name.startswith("text_encoder"))
    weights = sum(map(_weights, parts.values())) - text + (0 if reward is None else _weights(reward))
    weights += sum(tensor.nbytes for tensor in decoding.parameters())
    return Footprint(weights, forward, both, held + _of_reward(reward, images[0]), text)


def fits(found: Callable[[int], Footprint], cards: tuple[int, ...] = CARDS) -> dict[int, int]:
    """For each card in GiB the largest micro-batch whose step fits, 0 for none; ``found`` computes one of a size.

    A step's memory is its share for every picture and what there is once, so two sizes tell all others.
    """
    one, more = found(1), max(found(2).step - found(1).step, 1)
    rooms = {card: (card << 30) - SPARE - one.weights for card in cards}
    return {
        card: 0 if room < max(one.text, one.step) else 1 + (room - one.step) // more for card, room in rooms.items()
    }


def _shadow(model: DiffusersModel) -> DiffusersModel:
    """The model with its denoiser and its VAE as shapes alone."""
    shadow, pipeline = copy.copy(model), copy.copy(model.pipeline)
    pipeline.vae, shadow.network = _as_shapes(pipeline.vae), _as_shapes(model.network)
    shadow.pipeline, shadow.device = pipeline, META
    return shadow


def _as_shapes(network: nn.Module) -> nn.Module:
    with META:
        made = type(network).from_config(network.config)
    return nn.Module.to(made, network.dtype).requires_grad_(False).eval()


def _on_meta(conditioning: Conditioning) -> Conditioning:
    """Without a mask that hides nothing, whose numbers nobody can look at there."""
    mask = conditioning.mask
    parts = conditioning.tokens, None if mask is None or mask.is_meta else torch.ones_like(mask), conditioning.pooled
    return Conditioning(*(None if part is None else part.to(META) for part in parts))


def _leaves(conditioning: Conditioning) -> Conditioning:
    tokens, pooled = (
        None if p is None else p.clone().requires_grad_() for p in (conditioning.tokens, conditioning.pooled)
    )
    return Conditioning(tokens, conditioning.mask, pooled)


def _weights(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in chain(network.parameters(), network.buffers()))


def _of_reward(reward: Reward | None, images: Tensor) -> int:
    """The pictures' derivative, and the working memory of one pass by the reward's own estimate."""
    rows, (height, width) = images.shape[:-3].numel(), images.shape[-2:]
    if reward is None:
        return images.nbytes
    return images.nbytes + reward.bytes_per_image(height, width, True) * min(
        rows, reward.images_per_pass(height, width, True)
    )


def _counted(owned: list[Tensor], work: Callable[[Callable[[], int]], Any]) -> tuple[int, Any]:
    """The most bytes that were live during ``work``, which may ask how many are, and what it returned."""
    count = _Count(owned)
    with count:
        found = work(lambda: count.live)
    return count.peak, found


class _Count(TorchDispatchMode):
    """Bytes of the storages that operations make, while they live; ``owned`` are there already."""

    def __init__(self, owned: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: tensor for tensor in owned}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, list | tuple) else [found]:
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known:
            return

        def gone(_: Any) -> None:
            self.live -= size
            del self._known[place]

        self._known[place] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel allocates: its output, and one number for every query for the way back."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextmanager
def _fused_attention() -> Iterator[None]:
    original = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        return _FusedAttention.apply(query, key, value)

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
