"""The stochastic step: its Gaussian against DDIM's own, its density against torch's, how rewards become advantages."""

import math

import pytest
import torch
from builders import scheduler
from torch.distributions import Normal, kl_divergence

from reneg_core.backends.parameterisation import VariancePreserving
from reneg_core.sampling import Sampling
from reneg_core.texforce.advantages import PromptStatistics
from reneg_core.texforce.policy import divergence, log_prob, stochastic_steps, transition


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("sigma", "following"), [(14.6, 8.4), (1.0, 0.9), (0.1, 0.03)])
def test_a_step_is_that_of_ddim_with_eta_1(sigma: float, following: float) -> None:
    """The published formula, in the variance-preserving state."""
    x, x0 = sigma * normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    mean, std = transition(x, x0, torch.tensor(sigma), torch.tensor(following))
    a, b = (1 / (1 + level**2) for level in (sigma, following))
    spread = math.sqrt((1 - b) / (1 - a) * (1 - a / b))
    state, noise = x * math.sqrt(a), (x - x0) / sigma
    published = math.sqrt(b) * x0 + math.sqrt(1 - b - spread**2) * noise
    assert torch.allclose(mean * math.sqrt(b), published, atol=1e-5)
    assert std.item() * math.sqrt(b) == pytest.approx(spread, rel=1e-5)
    assert state.shape == mean.shape


@pytest.mark.parametrize("index", [0, 4, 8])
def test_a_step_is_that_of_diffusers(index: int) -> None:
    """With its own noise levels and its own noise."""
    own = scheduler(timestep_spacing="trailing", set_alpha_to_one=True)
    own.set_timesteps(10)
    sigmas = VariancePreserving(own).sigmas(Sampling(steps=10))
    x, eps, z = (normal(2, 4, 3, 3, seed=seed) for seed in range(3))
    shrink = [(1 + level**2).sqrt() for level in sigmas[index : index + 2]]
    theirs = own.step(eps, own.timesteps[index], x, eta=1.0, variance_noise=z).prev_sample
    state = x * shrink[0]
    mean, std = transition(state, state - sigmas[index] * eps, sigmas[index], sigmas[index + 1])
    assert torch.allclose((mean + std * z) / shrink[1], theirs, atol=2e-4)


def test_log_probabilities_are_those_of_a_gaussian() -> None:
    """Of whole latents of Stable Diffusion, to 1e-5, with one level for all rows and with one for each."""
    value, mean = normal(3, 4, 64, 64), normal(3, 4, 64, 64, seed=1)
    for std in (torch.tensor(0.37), torch.tensor([0.02, 0.7, 5.0])):
        spread = std.double().reshape(-1, 1, 1, 1)
        expected = Normal(mean.double(), spread).log_prob(value.double()).sum((1, 2, 3))
        found = log_prob(value, mean, std)
        assert found.shape == (3,) and (found - expected).abs().max() < 1e-5
        plain = Normal(mean.double(), spread), Normal(value.double(), spread)
        apart = kl_divergence(*plain).sum((1, 2, 3))
        assert torch.allclose(divergence(mean, value, std), apart, rtol=1e-10)


def test_rows_may_stand_at_levels_of_their_own() -> None:
    x, x0, levels = normal(3, 2, 2, 2), normal(3, 2, 2, 2, seed=1), torch.tensor([9.0, 3.0, 0.5])
    mean, std = transition(x, x0, levels, levels / 2)
    for row in range(3):
        one, spread = transition(x[row : row + 1], x0[row : row + 1], levels[row], levels[row] / 2)
        assert torch.equal(mean[row : row + 1], one) and std[row] == spread


def test_the_step_to_level_0_draws_nothing() -> None:
    assert stochastic_steps(torch.tensor([4.0, 2.0, 1.0, 0.0])) == 2
    assert stochastic_steps(torch.tensor([4.0, 2.0, 1.0])) == 2


# advantages


def test_until_there_are_enough_the_whole_batch_stands_in() -> None:
    statistics = PromptStatistics(3, buffer=4, minimum=3)
    found = statistics.advantages([0, 1, 0], torch.tensor([1.0, 2.0, 6.0]))
    std = (14 / 3) ** 0.5
    assert found.tolist() == pytest.approx([-2 / std, -1 / std, 3 / std], rel=1e-5)
    found = statistics.advantages([0, 2], torch.tensor([2.0, 10.0]))
    own = (14 / 3) ** 0.5  # of 1, 6 and 2
    assert found.tolist() == pytest.approx([(2 - 3) / own, (10 - 6) / 4], rel=1e-5)


def test_a_prompts_oldest_rewards_are_forgotten() -> None:
    statistics = PromptStatistics(1, buffer=2, minimum=2)
    statistics.advantages([0] * 3, torch.tensor([100.0, 1.0, 3.0]))
    assert statistics.advantages([0], torch.tensor([7.0])).item() == pytest.approx((7 - 5) / 2, rel=1e-5)


def test_equal_rewards_have_no_advantage() -> None:
    assert PromptStatistics(1, 4, 1).advantages([0, 0], torch.ones(2)).tolist() == [0, 0]
    nearly = PromptStatistics(1, 4, 2).advantages([0, 0], torch.tensor([0.0, 2e-6], dtype=torch.float64))
    assert nearly.tolist() == pytest.approx([-0.5, 0.5]), "a spread of rounding errors is not blown up"


def test_statistics_go_on_from_what_they_gave() -> None:
    one = PromptStatistics(2, 3, 2)
    one.advantages([0, 1, 0], torch.tensor([0.1, 0.2, 0.7]))
    other = PromptStatistics(2, 3, 2, one.tensors)
    new = torch.tensor([0.3, 0.4])
    assert torch.equal(one.advantages([0, 1], new), other.advantages([0, 1], new))
