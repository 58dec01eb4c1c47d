"""The reward gradient against a plainly written full-graph version, finite differences and memory options."""

import pytest
import torch
from doubles import Curved
from torch import Tensor

from reneg_core.guidance import Guidance
from reneg_core.model import Conditioning
from reneg_core.training import Rollout, reward_gradient

PROMPTS = ["a red fox", "blue", "sun over sea"]
SCALE, STEPS = 4.0, 6


@pytest.fixture(params=["model", "v_model"])
def any_model(request):
    return request.getfixturevalue(request.param)


def setting(model, rows: int = 1):
    tokens = model.encode([""]).tokens + 0.3 * torch.randn(rows, 16, 32, generator=torch.Generator().manual_seed(5))
    noise = model.noise([1, 2, 3])
    return model.encode(PROMPTS), Conditioning(tokens), noise, Rollout(model.sigmas(STEPS), Guidance(SCALE))


def plain_gradient(model, reward, negative: Tensor, point: int, through: int = 1) -> tuple[Tensor, Tensor]:
    """ReNeg as one would write it down: batched CFG in diffusers' own variables, the graph kept for both branches."""
    pipe, scheduler = model.pipeline, model.scheduler
    scheduler.set_timesteps(STEPS)
    leaf = negative.clone().requires_grad_()
    context = torch.cat([leaf.expand(3, -1, -1), model.encode(PROMPTS).tokens])
    y = model.noise([1, 2, 3])
    for index, t in enumerate(scheduler.timesteps[: point + through]):
        with torch.set_grad_enabled(index >= point):
            output = pipe.unet(torch.cat([y, y]), t, encoder_hidden_states=context).sample
            negative_output, positive_output = output.chunk(2)
            guided = negative_output + SCALE * (positive_output - negative_output)
            step = scheduler.step(guided, t, y)
            y = step.prev_sample
    images = pipe.vae.decode(step.pred_original_sample / pipe.vae.config.scaling_factor).sample
    rewards = reward.score((images / 2 + 0.5).clamp(0, 1), PROMPTS)
    rewards.sum().backward()
    return leaf.grad, rewards.detach()


def close(got: Tensor, expected: Tensor) -> None:
    cosine = torch.nn.functional.cosine_similarity(got.flatten().double(), expected.flatten().double(), dim=0)
    assert cosine >= 0.99999
    assert (got - expected).norm() / expected.norm() <= 1e-4


@pytest.mark.parametrize("point", [0, 3, 5])
def test_equals_the_plain_version(any_model, point: int) -> None:
    positive, negative, noise, rollout = setting(any_model)
    expected, rewards = plain_gradient(any_model, Curved(), negative.tokens, point)
    found = reward_gradient(any_model, Curved(), PROMPTS, positive, negative, noise, rollout, [point])
    close(found.tokens, expected)
    assert torch.allclose(found.rewards[0], rewards, atol=1e-5)


@pytest.mark.parametrize(("point", "through"), [(0, 6), (2, 3), (4, 9)])
def test_the_gradient_through_several_steps_equals_the_plain_version(any_model, point: int, through: int) -> None:
    """(4, 9) ends with the schedule; in a rollout with further points each is as it is alone."""
    positive, negative, noise, rollout = setting(any_model)
    expected, rewards = plain_gradient(any_model, Curved(), negative.tokens, point, through)
    arguments = any_model, Curved(), PROMPTS, positive, negative, noise, rollout
    found = reward_gradient(*arguments, [point], through=through)
    close(found.tokens, expected)
    assert torch.allclose(found.rewards[0], rewards, atol=1e-5)
    both = reward_gradient(*arguments, [point, 5], through=through)
    close(2 * both.tokens, found.tokens + reward_gradient(*arguments, [5]).tokens)
    with pytest.raises(AssertionError):
        close(reward_gradient(*arguments, [point]).tokens, expected)


def test_comparison_can_fail(model) -> None:
    positive, negative, noise, rollout = setting(model)
    expected, _ = plain_gradient(model, Curved(), negative.tokens, 3)
    found = reward_gradient(model, Curved(), PROMPTS, positive, negative, noise, rollout, [4])
    with pytest.raises(AssertionError):
        close(found.tokens, expected)


def test_points_are_averaged_in_one_rollout(model) -> None:
    positive, negative, noise, rollout = setting(model)
    together = reward_gradient(model, Curved(), PROMPTS, positive, negative, noise, rollout, [1, 3, 5])
    alone = [reward_gradient(model, Curved(), PROMPTS, positive, negative, noise, rollout, [p]) for p in (1, 3, 5)]
    close(together.tokens, sum(part.tokens for part in alone) / 3)
    assert together.rewards.shape == (3, 3)


def test_rows_of_their_own_get_their_own_gradient(model) -> None:
    positive, negative, noise, rollout = setting(model, rows=3)
    found = reward_gradient(model, Curved(), PROMPTS, positive, negative, noise, rollout, [4])
    for row in range(3):
        single = reward_gradient(
            model, Curved(), [PROMPTS[row]], positive[[row]], negative[[row]], noise[[row]], rollout, [4]
        )
        close(found.tokens[[row]], single.tokens)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_finite_difference_of_a_first_step_point(model, solver: str) -> None:
    """At point 0 nothing precedes the recorded pass, so the gradient is the whole derivative."""
    positive, negative, noise, rollout = setting(model)
    rollout = Rollout(rollout.sigmas, rollout.guidance, solver)
    found = reward_gradient(model, Curved(), PROMPTS, positive, negative, noise, rollout, [0])
    direction = found.tokens / found.tokens.norm()

    def value(step: float) -> float:
        moved = Conditioning(negative.tokens + step * direction)
        return reward_gradient(model, Curved(), PROMPTS, positive, moved, noise, rollout, [0]).rewards.double().sum()

    numeric = (value(0.05) - value(-0.05)) / 0.1
    assert numeric == pytest.approx(found.tokens.norm().item(), rel=0.02)


def test_checkpointing_gives_the_same_gradient_and_saves_memory(model) -> None:
    positive, negative, noise, rollout = setting(model)
    plain, saved_plain = saved_bytes(model, positive, negative, noise, rollout, False)
    model.checkpointing(True)
    try:
        light, saved_light = saved_bytes(model, positive, negative, noise, rollout, True)
    finally:
        model.checkpointing(False)
    close(light.tokens, plain.tokens)
    assert saved_light < 0.4 * saved_plain


def saved_bytes(model, positive, negative, noise, rollout, checkpoint_reward: bool):
    """The gradient and the bytes autograd kept for it."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes if not isinstance(tensor, torch.nn.Parameter) else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = reward_gradient(
            model, Curved(), PROMPTS, positive, negative, noise, rollout, [3], checkpoint_reward=checkpoint_reward
        )
    return found, total


def test_complete_scores_the_finished_picture(model) -> None:
    from reneg_core.sampling import sample

    positive, negative, noise, rollout = setting(model)
    found = reward_gradient(model, Curved(), PROMPTS, positive, negative, noise, rollout, [3], complete=True)
    images = model.decode(sample(model, positive, negative, noise, rollout.sigmas, rollout.guidance))
    assert torch.allclose(found.images, images, atol=1e-5)
    assert torch.allclose(found.final_rewards, Curved().score(images, PROMPTS), atol=1e-4)


def test_pooled_vector_gets_a_gradient() -> None:
    """A closed form: the negative's x0 is its pooled vector, so the guided picture is (1 - scale) * pooled + const."""

    class Toy:
        device = torch.device("cpu")
        start = staticmethod(lambda noise, sigma: noise * sigma)
        decode = staticmethod(lambda x: x)
        denoise = staticmethod(lambda x, sigma, c: c.pooled[:, :3, None, None] + 0 * c.tokens.sum() + 0 * x)

    reward = Curved()
    reward.score = lambda images, prompts: images.mean((1, 2, 3))
    negative = Conditioning(torch.zeros(1, 2, 4), None, torch.ones(1, 5))
    positive = Conditioning(torch.zeros(2, 2, 4), None, torch.ones(2, 5))
    rollout = Rollout(torch.tensor([2.0, 1.0, 0.0]), Guidance(3.0))
    found = reward_gradient(Toy, reward, ["a", "b"], positive, negative, torch.zeros(2, 3, 2, 2), rollout, [1])
    assert torch.allclose(found.pooled, 2 * (1 - 3.0) / 3 * torch.tensor([[1.0, 1, 1, 0, 0]]))


@pytest.mark.parametrize("points", [[], [6], [-1]])
def test_points_outside_the_schedule_are_refused(model, points: list[int]) -> None:
    positive, negative, noise, rollout = setting(model)
    with pytest.raises(ValueError, match="expected step indices from 0 to 5 where guidance acts"):
        reward_gradient(model, Curved(), PROMPTS, positive, negative, noise, rollout, points)
