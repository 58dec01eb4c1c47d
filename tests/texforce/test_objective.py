"""Both gradients: of a toy in closed form, against finite differences, through the encoder; what memory they hold."""

import weakref
from dataclasses import replace

import pytest
import torch
from doubles import Curved, Levels
from small import SmallModel
from torch import Tensor
from tunable import PROMPTS, TunableSmall

from reneg_core.guidance import Guidance
from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling, State, advance, guided_denoise
from reneg_core.texforce.adapter import attached
from reneg_core.texforce.objective import (
    Branches,
    direct_gradient,
    guided_rows,
    path_divergence,
    policy_gradient,
    through_encoder,
)
from reneg_core.texforce.policy import transition
from reneg_core.texforce.rollout import Kept, Rollout, roll_out

PLAIN = Sampling(steps=2).at_scale(1.0)
GUIDED = Sampling(steps=4).at_scale(3.0)


class Constant(SmallModel):
    """x0 is what the first token says, in every pixel: the sampler is a linear Gaussian chain."""

    def denoise(self, x, sigma, conditioning, branches=None):
        return conditioning.tokens[:, 0, :, None, None].expand_as(x)

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        return latents


def tokens_of(values: list[float], rows: int) -> Conditioning:
    return Conditioning(torch.tensor(values).reshape(1, 1, 3).repeat(rows, 2, 1).requires_grad_())


def rolled(model, branches: Branches, sampling: Sampling, rows: int, seed: int = 0) -> tuple[Rollout, Tensor]:
    noise = model.noise(range(seed, seed + rows))
    states, log_probs, images = roll_out(
        model, branches.positive, branches.negative, noise, sampling,
        lambda index: model.noise(range(10_000 * (index + 1), 10_000 * (index + 1) + rows)),
    )  # fmt: skip
    return Rollout(["a"] * rows, states, log_probs, torch.zeros(rows, dtype=torch.float64)), images


def test_the_policy_gradient_of_a_gaussian_chain_is_met_within_its_sampling_error() -> None:
    """Two steps 4 -> 2 -> 1 towards theta: E[x] = theta (1 - 1/16) + x0 / 16 in every pixel, so the gradient of the
    mean reward <a, x> is 15/16 of a's sum over a channel's pixels."""
    model, rows = Levels(Constant(), torch.tensor([4.0, 2.0, 1.0])), 4000
    branches = Branches(tokens_of([0.3, -0.2, 0.1], rows), tokens_of([0.0, 0.0, 0.0], 1))
    rollout, images = rolled(model, branches, PLAIN, rows)
    weights = torch.linspace(-1, 2, 12).reshape(3, 2, 2)
    rewards = (images * weights).sum((1, 2, 3)).double()
    indices = torch.stack([torch.zeros(rows, dtype=torch.int64), torch.ones(rows, dtype=torch.int64)])
    policy_gradient(model, branches, rollout, rewards - rewards.mean(), PLAIN, indices, clip=1e-4)
    each = branches.positive.tokens.grad[:, 0].double() * 12 * 2  # per latent, mean of two steps
    expected = 15 / 16 * weights.sum((1, 2)).double()
    error = each.std(0) / rows**0.5
    assert (error < 0.4 * expected.abs().max()).all()
    assert ((each.mean(0) - expected).abs() < 3.5 * error).all()
    assert expected.norm() > 8 * error.norm() / 3**0.5, "the test would see a wrong factor"


def test_ratios_are_exactly_1_where_nothing_has_moved() -> None:
    model = SmallModel()
    branches = Branches(model.encode(PROMPTS), model.encode([""]))
    rollout, _ = rolled(model, branches, GUIDED, 5)
    indices = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 0, 1, 0]])
    leaves = Branches(_leaf(branches.positive), _leaf(branches.negative))
    found = policy_gradient(model, leaves, rollout, torch.ones(5), GUIDED, indices, clip=1e-4)
    assert (found.ratio_change, found.clipped) == (0.0, 0.0)
    assert leaves.positive.tokens.grad.abs().max() > 0 and leaves.negative.tokens.grad.abs().max() > 0
    moved = Branches(_leaf(branches.positive.map(lambda t: t + 0.1)), leaves.negative)
    assert policy_gradient(model, moved, rollout, torch.ones(5), GUIDED, indices, clip=1e-4).ratio_change > 1e-3


def _leaf(conditioning: Conditioning) -> Conditioning:
    return conditioning.map(lambda t: t.detach().clone().requires_grad_())


@pytest.mark.parametrize(("advantage", "grows"), [(1.0, True), (1.0, False), (-1.0, True), (-1.0, False)])
def test_the_clip_stops_what_has_gone_far_enough(advantage: float, grows: bool) -> None:
    """PPO: no gradient once a good step has become likelier, or a bad one less likely, by more than the clip."""
    model = Levels(Constant(), torch.tensor([4.0, 2.0, 1.0]))
    branches = Branches(tokens_of([0.3, -0.2, 0.1], 1), tokens_of([0.0] * 3, 1))
    rollout, _ = rolled(model, branches, PLAIN, 1)
    then = rollout.log_probs + (-1.2 if grows else 1.2)  # now 10 % likelier per latent, or less likely
    found = policy_gradient(
        model,
        branches,
        replace(rollout, log_probs=then),
        torch.tensor([advantage]),
        PLAIN,
        torch.tensor([[0]]),
        clip=0.05,
    )
    stopped = grows == (advantage > 0)
    assert found.clipped == float(stopped) and found.ratio_change == pytest.approx(0.1, abs=0.01)
    assert (branches.positive.tokens.grad.abs().max() == 0) == stopped


def test_rows_at_different_steps_are_guided_as_each_alone() -> None:
    """Also where the guidance interval ends between them."""
    model, guidance = SmallModel(), Guidance(3.0, end=0.5)
    branches = Branches(model.encode(PROMPTS), model.encode([""]))
    x, sigmas, steps = 2 * model.noise(range(5)), model.sigmas(GUIDED), torch.tensor([3, 0, 2, 1, 0])
    found = guided_rows(model, x, sigmas[steps], branches, guidance, (steps / 4).tolist())
    for row, step in enumerate(steps.tolist()):
        one = guided_denoise(
            model, x[row : row + 1], sigmas[step], branches.positive[[row]], branches.negative, guidance, step / 4
        )
        assert torch.allclose(found[row : row + 1], one, atol=1e-6)


def test_the_divergence_from_the_start_is_that_of_the_path() -> None:
    """A Gaussian chain: the sum over the steps of |mean - mean'|^2 / (2 std^2)."""
    model, one = Levels(Constant(), torch.tensor([4.0, 2.0, 1.0])), tokens_of([0.3, -0.2, 0.1], 2)
    now, start = Branches(one, one), Branches(tokens_of([0.0] * 3, 2), one)
    rollout, _ = rolled(model, now, PLAIN, 2)
    for index, (sigma, following) in enumerate([(4.0, 2.0), (2.0, 1.0)]):
        std = following * (1 - (following / sigma) ** 2) ** 0.5
        apart = (1 - (following / sigma) ** 2) * torch.tensor([0.3, -0.2, 0.1])
        expected = 2 * (4 * apart.square().sum() / (2 * std**2)).item()
        found = path_divergence(model, now, start, rollout, PLAIN, index)
        assert found.tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_the_states_between_are_kept_as_they_were_taken() -> None:
    model = SmallModel()
    branches = Branches(model.encode(PROMPTS), model.encode([""]))
    rollout, images = rolled(model, branches, GUIDED, 5)
    assert rollout.states.shape == (4, 5, 3, 2, 2) and rollout.log_probs.shape == (3, 5) and images.shape[0] == 5
    sigmas = model.sigmas(GUIDED)
    x0 = guided_denoise(model, rollout.states[1], sigmas[1], branches.positive, branches.negative, GUIDED.guidance)
    mean, std = transition(rollout.states[1], x0, sigmas[1], sigmas[2])
    assert torch.allclose(rollout.states[2], mean + std * model.noise(range(20_000, 20_005)), atol=1e-6)
    kept = Kept.of([(3, rollout[:2]), (5, rollout[2:])])
    assert torch.equal(kept.rows(range(4, 6)).states, rollout.states[:, 1:3])


# the direct route


class Exact(SmallModel):
    """In double precision."""

    def noise(self, seeds, size=None):
        return super().noise(seeds).double()

    def sigmas(self, sampling):
        return super().sigmas(sampling).double()

    def encode(self, prompts):
        return super().encode(prompts).map(lambda t: t.double())

    def denoise(self, x, sigma, conditioning, branches=None):
        return super().denoise(x, sigma, conditioning.map(lambda t: t.double()), branches)


def test_the_direct_gradient_agrees_with_finite_differences() -> None:
    model, reward, sampling = Exact(), Curved(), replace(GUIDED, solver="dpmpp_2m")
    start, noise = Branches(_leaf(model.encode(PROMPTS[:2])), _leaf(model.encode([""]))), model.noise([1, 2])

    def rewards(branches: Branches) -> float:
        with torch.no_grad():
            still = Branches(branches.positive.detach(), branches.negative.detach())
            state, sigmas = State(model.start(noise, model.sigmas(sampling)[0])), model.sigmas(sampling)
            for index in range(4):
                x0 = guided_denoise(
                    model, state.x, sigmas[index], still.positive, still.negative, sampling.guidance, index / 4
                )
                state = advance(state, x0, sigmas, sampling.solver)
            return reward.score(model.decode(state.x), PROMPTS[:2]).sum().item()

    direct_gradient(model, start, reward, PROMPTS[:2], noise, sampling, through=0)
    for leaf in (start.positive.tokens, start.negative.tokens):
        for place in ((0, 0, 0), (-1, 1, 2)):
            step = torch.zeros_like(leaf)
            step[place] = 1e-5
            ends = []
            for sign in (1, -1):
                moved = [
                    Conditioning(tokens + sign * step if tokens is leaf else tokens)
                    for tokens in (start.positive.tokens, start.negative.tokens)
                ]
                ends.append(rewards(Branches(*moved)))
            assert leaf.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("through", [1, 2, 4])
def test_the_gradient_passes_through_the_last_steps_only(through: int) -> None:
    model, sampling, noise = SmallModel(), GUIDED, SmallModel().noise([1, 2])
    branches = Branches(_leaf(model.encode(PROMPTS[:2])), _leaf(model.encode([""])))
    direct_gradient(model, branches, Curved(), PROMPTS[:2], noise, sampling, through=through, loss_scale=8.0)
    plain = Branches(_leaf(branches.positive), _leaf(branches.negative))
    sigmas = model.sigmas(sampling)
    state = State(model.start(noise, sigmas[0]))
    for index in range(4):
        with torch.set_grad_enabled(index >= 4 - through):
            x0 = guided_denoise(
                model, state.x, sigmas[index], plain.positive, plain.negative, sampling.guidance, index / 4
            )
        state = advance(state, x0, sigmas, "euler")
    Curved().score(model.decode(state.x), PROMPTS[:2]).sum().backward()
    for got, expected in ((branches.positive, plain.positive), (branches.negative, plain.negative)):
        assert torch.allclose(got.tokens.grad / 8, expected.tokens.grad, atol=1e-6)


# the encoder


def test_one_pass_through_the_encoder_is_one_at_every_timestep() -> None:
    """As TexForce runs it: anew for each step, the gradients adding up."""
    model, indices = TunableSmall(), torch.tensor([[0, 1], [2, 0]])
    with attached(model.text_encoders(), 2, 2.0, 0) as adapter:
        parameters = list(adapter.parameters.values())
        torch.manual_seed(0)
        for parameter in parameters:
            parameter.data = 0.3 * torch.randn_like(parameter)

        def encode() -> Branches:
            return Branches(model.encode(PROMPTS[:2], gradient=True), model.encode([""], gradient=True))

        rollout, _ = rolled(model, Branches(encode().positive.detach(), encode().negative.detach()), GUIDED, 2)
        worth = torch.tensor([1.0, -0.5])
        _, once = through_encoder(
            encode, parameters, lambda b: policy_gradient(model, b, rollout, worth, GUIDED, indices, clip=1e-4)
        )
        for one in indices:
            policy_gradient(model, encode(), rollout, worth / 2, GUIDED, one[None], clip=1e-4)
        for parameter, gradient in zip(parameters, once, strict=True):
            assert torch.allclose(parameter.grad, gradient, atol=1e-7)
        assert max(gradient.abs().max() for gradient in once) > 1e-4


# memory


def most_held(work) -> int:
    """The most bytes that graphs hold at once."""
    now = most = 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: Tensor) -> Held:
        nonlocal now, most
        held, size = Held(tensor), tensor.nbytes
        now += size
        most = max(most, now)

        def gone() -> None:
            nonlocal now
            now -= size

        weakref.finalize(held, gone)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        work()
    return most


def stored(model, branches: Branches, prompts: list[str], noise: Tensor, sampling: Sampling) -> None:
    """The same without recomputing: the graph of every step is held."""
    sigmas = model.sigmas(sampling)
    state, steps = State(model.start(noise, sigmas[0])), sampling.steps
    for index in range(steps):
        x0 = guided_denoise(
            model, state.x, sigmas[index], branches.positive, branches.negative, sampling.guidance, index / steps
        )
        state = advance(state, x0, sigmas, sampling.solver)
    Curved().score(model.decode(state.x), prompts).sum().backward()


def test_both_routes_hold_less_than_half_of_every_steps_graph(model) -> None:
    """On the real architecture, eight steps."""
    sampling, prompts = Sampling(steps=8).at_scale(3.0), PROMPTS[:2]
    noise = model.noise([1, 2])

    def fresh() -> Branches:
        return Branches(_leaf(model.encode(prompts)), _leaf(model.encode([""])))

    whole = most_held(lambda: stored(model, fresh(), prompts, noise, sampling))
    direct = most_held(lambda: direct_gradient(model, fresh(), Curved(), prompts, noise, sampling, through=0))
    rollout, _ = rolled(model, fresh(), sampling, 2)
    indices = torch.arange(len(rollout.log_probs))[:, None].expand(-1, 2)
    policy = most_held(lambda: policy_gradient(model, fresh(), rollout, torch.ones(2), sampling, indices, clip=1e-4))
    assert direct < whole / 2 and policy < whole / 2, (direct, policy, whole)
