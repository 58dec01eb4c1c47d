"""Without a host: blocks computed again in the backward pass have the gradient of blocks that are not, whatever they
change in place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors, saved_tensors_hooks
from torch.nn.functional import dropout, gelu, rms_norm

from .fake_host import imported

WIDTH = 8


@pytest.fixture(scope="module")
def recompute() -> Iterator[Any]:
    with imported("host.recompute") as [module]:
        yield module


@dataclass
class Modulation:
    """As Chroma and Flux hand it to their blocks."""

    scale: Tensor
    gate: Tensor


class Double(nn.Module):
    """Two streams that are changed in place after they were saved, as in Flux, Chroma and HunyuanVideo."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, picture: Tensor, text: Tensor, modulations: Any, options: dict[str, Any]) -> tuple:
        first, second = modulations
        normed = rms_norm(text, (WIDTH,)) * (1 + first.scale)
        both = torch.tanh(torch.cat([normed, picture], 1))
        text += self.text(both[:, : text.shape[1]]) * first.gate
        text += gelu(self.text(rms_norm(text, (WIDTH,))))
        picture.addcmul_(second.gate, self.picture(both[:, text.shape[1] :]))
        picture.addcmul_(second.scale, torch.sigmoid(picture) * picture.mean(1, keepdim=True))
        options["block"] = options.get("block", 0) + 1
        return picture, text


class Single(nn.Module):
    """One stream, as in LTX-Video; a dictionary of tensors in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, *, context: dict[str, Tensor], chance: float = 0.0) -> dict[str, Tensor]:
        x += self.inner(rms_norm(x, (WIDTH,))) * x.exp().clamp(max=2)
        x += torch.softmax(x @ context["text"].transpose(1, 2), -1) @ context["text"]
        return {"x": dropout(x, chance, training=chance > 0), "count": torch.tensor(1)}


class Network(nn.Module):
    """Blocks in lists, as the host's networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.doubles = nn.ModuleList([Double(), Double()])
        self.singles = nn.ModuleList([Single(), Single()])
        self.last = nn.Linear(WIDTH, 1)

    def forward(self, picture: Tensor, text: Tensor, pooled: Tensor, chance: float = 0.0) -> Tensor:
        options: dict[str, Any] = {"block": 0, "sigmas": torch.ones(1)}
        modulations = (Modulation(pooled.sin(), pooled.cos()), Modulation(pooled, pooled**2))
        for number, block in enumerate(self.doubles):
            picture, text = block(picture, text, modulations, options=options)
            assert options["block"] == number + 1, "what a block writes into the options is seen by the next"
        x = torch.cat([text, picture], 1)
        for block in self.singles:
            x = block(x, context={"text": text}, chance=chance)["x"]
        return self.last(x).square().sum()


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().double().requires_grad_(False)


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 5, WIDTH), (2, 3, WIDTH), (2, 1, WIDTH))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def gradients(network: Network, around: Callable[[], Any] = nullcontext, **options: Any) -> list[Tensor]:
    """Of the text and the pooled vector, whose own values the network must leave as they are."""
    picture, text, pooled = inputs()
    leaves = [text.requires_grad_(), pooled.requires_grad_()]
    before = [leaf.detach().clone() for leaf in leaves]
    with around():
        value = network(picture.clone(), text.clone(), pooled.clone(), **options)
        found = list(torch.autograd.grad(value, leaves))
    assert all(map(torch.equal, leaves, before))
    return found


@contextmanager
def wrapped(recompute: Any, network: Network, **options: Any) -> Iterator[Any]:
    checkpoints = recompute.Checkpoints(**options)
    for block in recompute.blocks_of(network):
        checkpoints.wrap(block)
    try:
        yield checkpoints
    finally:
        checkpoints.restore()


def test_the_gradient_is_that_of_a_network_that_may_change_what_it_saved(recompute: Any, network: Network) -> None:
    reference = gradients(network, allow_mutation_on_saved_tensors)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(network)
    with wrapped(recompute, network):
        found = gradients(network)
    for a, b in zip(found, reference, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-12


def test_the_gradient_is_that_of_finite_differences(recompute: Any, network: Network) -> None:
    with wrapped(recompute, network):
        found = gradients(network)
    direction, step = [part / part.norm() for part in found], 1e-5
    picture, *rest = inputs()
    sides = [
        network(picture.clone(), *(part + sign * step * way for part, way in zip(rest, direction, strict=True)))
        for sign in (1, -1)
    ]
    assert float((sides[0] - sides[1]) / (2 * step)) == pytest.approx(float(sum(p.norm() for p in found)), rel=1e-6)


def test_cloning_the_inputs_alone_is_wrong(network: Network) -> None:
    """What torch's own checkpoints give for such blocks: the comparison above can fail."""

    def forward(block: nn.Module) -> Callable[..., Any]:
        original = block.forward
        return lambda *args, **kwargs: torch.utils.checkpoint.checkpoint(
            lambda *a, **k: original(*[_copy(v) for v in a], **{n: _copy(v) for n, v in k.items()}),
            *args,
            use_reentrant=False,
            **kwargs,
        )

    reference = gradients(network, allow_mutation_on_saved_tensors)
    for block in network.doubles:
        block.forward = forward(block)
    try:
        found = gradients(network, allow_mutation_on_saved_tensors)
    finally:
        for block in network.doubles:
            del block.forward
    assert float((found[0] - reference[0]).norm() / reference[0].norm()) > 1e-2


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def test_less_is_kept_until_the_backward_pass(recompute: Any, network: Network) -> None:
    def kept() -> int:
        sizes = []

        def note(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            picture, text, _ = inputs()
            network.singles[0](torch.cat([text, picture], 1).requires_grad_().clone(), context={"text": text})
        return sum(sizes)

    plain = kept()
    with wrapped(recompute, network):
        assert kept() < 0.4 * plain


def test_random_numbers_and_casts_are_those_of_the_first_pass(recompute: Any, network: Network) -> None:
    def seeded() -> list[Tensor]:
        torch.manual_seed(5)
        return gradients(network, allow_mutation_on_saved_tensors, chance=0.5)

    reference = seeded()
    after = torch.rand(1)
    with wrapped(recompute, network):
        torch.manual_seed(5)
        found = gradients(network, chance=0.5)
        assert torch.equal(torch.rand(1), after), "the recomputation leaves the generator where it was"
    assert all(map(torch.allclose, found, reference))

    half = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
    seen = []
    half.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    checkpoints, outer = recompute.Checkpoints(), nn.Sequential(half, nn.Tanh())
    checkpoints.wrap(outer)
    x = torch.ones(2, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = outer(x)
    torch.autograd.grad(y.sum(), x)
    assert seen == [torch.bfloat16] * 2


def test_the_context_surrounds_both_passes_and_may_stop_either(recompute: Any, network: Network) -> None:
    class Stop(Exception):
        pass

    passes, last = [], [None]

    @contextmanager
    def passing() -> Iterator[None]:
        passes.append(1)
        if len(passes) == last[0]:
            raise Stop
        yield

    with wrapped(recompute, network, passing=passing):
        gradients(network)
        total = len(passes)
        assert total == 2 * 5, "five blocks, each twice"
        for last[0] in (2, 7):
            passes.clear()
            with pytest.raises(Stop):
                gradients(network)
    assert all("forward" not in vars(module) for module in network.modules())


class Caching(nn.Module):
    def forward(self, x: Tensor, cache: dict[str, Tensor]) -> Tensor:
        cache["seen"] = x * 2
        return x * 3


class Reading(nn.Module):
    hidden: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.hidden


def test_a_gradient_that_would_be_lost_is_an_error(recompute: Any) -> None:
    checkpoints, caching, reading = recompute.Checkpoints(), Caching(), Reading()
    checkpoints.wrap(caching)
    checkpoints.wrap(reading)
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="writes tensors into its inputs"):
        caching(x, {})
    object.__setattr__(reading, "hidden", x * 2)
    with pytest.raises(RuntimeError, match="gradient that is not among its inputs"):
        torch.autograd.grad(reading(x).sum(), x)
    reading.hidden = (x * 2).detach()
    assert torch.equal(torch.autograd.grad(reading(x).sum(), x)[0], torch.full((2,), 2.0))


class Views(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (x * x).chunk(2)
        return first, second


def test_the_caller_may_change_an_answer_in_place(recompute: Any) -> None:
    checkpoints, views = recompute.Checkpoints(), Views()
    checkpoints.wrap(views)
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    first, second = views(x)
    first += second
    assert torch.equal(torch.autograd.grad((first * 2).sum(), x)[0], torch.tensor([8.0, 12.0]))


class Holder(nn.Module):
    """A module without a forward pass, as the levels of the host's decoders are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.row = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))


def test_blocks_are_what_is_called_as_a_whole(recompute: Any) -> None:
    network = nn.Module()
    network.held, network.list = Holder(), nn.ModuleList([nn.Sequential(nn.Linear(1, 1)), Holder()])
    found = recompute.blocks_of(network)
    rows = [network.held.inner, network.held.row, network.list[0], network.list[1].inner, network.list[1].row]
    assert found == rows
    opened = recompute.blocks_of(network, (nn.Sequential,))
    assert opened == [rows[0], rows[1][0], rows[2][0], rows[3], rows[4][0]]
