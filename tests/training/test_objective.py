"""The reward gradient against a plainly written full-graph version, finite differences and memory options."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from doubles import Curved, Levels, Recorder
from torch import Tensor

from reneg_core.guidance import Guidance
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import Jitter, Sampling, sample
from reneg_core.training import Batch, Reach, reward_gradient

PROMPTS = ["a red fox", "blue", "sun over sea"]
SCALE, STEPS = 4.0, 6
SAMPLING = Sampling(steps=STEPS).at_scale(SCALE)


@pytest.fixture(params=["model", "v_model"])
def any_model(request):
    return request.getfixturevalue(request.param)


def batch_of(model) -> Batch:
    return Batch(PROMPTS, model.encode(PROMPTS), model.noise([1, 2, 3]))


def negative_of(model, rows: int = 1) -> Conditioning:
    noise = torch.randn(rows, 16, 32, generator=torch.Generator().manual_seed(5))
    return Conditioning(model.encode([""]).tokens + 0.3 * noise)


def gradient(model, points: list[int], sampling: Sampling = SAMPLING, rows: int = 1, **reach: object):
    return reward_gradient(model, Curved(), batch_of(model), negative_of(model, rows), sampling, Reach(points, **reach))


def plain_gradient(model, negative: Tensor, point: int, through: int = 1) -> tuple[Tensor, Tensor]:
    """ReNeg as one would write it down: batched CFG in diffusers' own variables, the graph kept for both branches."""
    pipe, scheduler = model.pipeline, DDIMScheduler.from_config(model.parameterisation.scheduler.config)
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
    return scored_gradient(model, step.pred_original_sample, leaf)


def plain_dpm_gradient(model, negative: Tensor, sampling: Sampling, point: int) -> tuple[Tensor, Tensor]:
    """The gradient of the finished picture's reward through diffusers' DPM-Solver++(2M) from ``point`` on."""
    options = {k: v for k, v in model.parameterisation.scheduler.config.items() if k[0] != "_" and k not in NOT_DPM}
    karras = sampling.spacing == "karras"
    options |= {"timestep_spacing": "trailing", "use_karras_sigmas": karras, "final_sigmas_type": "zero"}
    scheduler = DPMSolverMultistepScheduler(**options)
    scheduler.set_timesteps(sampling.steps)
    leaf = negative.clone().requires_grad_()
    context = torch.cat([leaf.expand(3, -1, -1), model.encode(PROMPTS).tokens])
    y = model.noise([1, 2, 3])
    for index, t in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(index >= point):
            output = model.pipeline.unet(torch.cat([y, y]), t, encoder_hidden_states=context).sample
            negative_output, positive_output = output.chunk(2)
            guided = negative_output + sampling.guidance.scale * (positive_output - negative_output)
            y = scheduler.step(guided, t, y).prev_sample
    return scored_gradient(model, y, leaf)


NOT_DPM = ("clip_sample", "set_alpha_to_one", "clip_sample_range", "rescale_betas_zero_snr")


def scored_gradient(model, x0: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    images = model.pipeline.vae.decode(x0 / model.pipeline.vae.config.scaling_factor).sample
    rewards = Curved().score((images / 2 + 0.5).clamp(0, 1), PROMPTS)
    rewards.sum().backward()
    return leaf.grad, rewards.detach()


def close(got: Tensor, expected: Tensor) -> None:
    cosine = torch.nn.functional.cosine_similarity(got.flatten().double(), expected.flatten().double(), dim=0)
    assert cosine >= 0.99999
    assert (got - expected).norm() / expected.norm() <= 1e-4


@pytest.mark.parametrize("point", [0, 3, 5])
def test_equals_the_plain_version(any_model, point: int) -> None:
    expected, rewards = plain_gradient(any_model, negative_of(any_model).tokens, point)
    found = gradient(any_model, [point])
    close(found.tokens, expected)
    assert torch.allclose(found.rewards[0], rewards, atol=1e-5)


@pytest.mark.parametrize(("point", "through"), [(0, 6), (2, 3), (4, 9), (3, 0)])
def test_the_gradient_through_several_steps_equals_the_plain_version(any_model, point: int, through: int) -> None:
    """(4, 9) and (3, 0) end with the schedule; in a rollout with further points each is as it is alone."""
    expected, rewards = plain_gradient(any_model, negative_of(any_model).tokens, point, through or STEPS)
    found = gradient(any_model, [point], through=through)
    close(found.tokens, expected)
    assert torch.allclose(found.rewards[0], rewards, atol=1e-5)
    both = gradient(any_model, [point, 5], through=through)
    close(2 * both.tokens, found.tokens + gradient(any_model, [5]).tokens)
    with pytest.raises(AssertionError):
        close(gradient(any_model, [point]).tokens, expected)


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("point", [0, 2])
def test_the_gradient_through_dpm_solver_equals_the_plain_version(any_model, spacing: str, point: int) -> None:
    """The steps remember the estimate before them, which is recorded or not as the point says."""
    sampling = Sampling("dpmpp_2m", 5, spacing).at_scale(SCALE)
    expected, rewards = plain_dpm_gradient(any_model, negative_of(any_model).tokens, sampling, point)
    found = gradient(any_model, [point], sampling, through=0)
    close(found.tokens, expected)
    assert torch.allclose(found.rewards[0], rewards, atol=1e-5)
    with pytest.raises(AssertionError):
        close(gradient(any_model, [point], sampling.changed(solver="euler"), through=0).tokens, expected)


JITTER = Jitter(("euler", "dpmpp_2m"), (3, 5), ("trailing", "karras"), (2.0, 5.0))


@pytest.mark.parametrize("step", range(6))
def test_every_drawn_sampling_has_the_gradient_of_its_own_pictures(model, step: int) -> None:
    """Against automatic differentiation through the sampler itself, from the first step to the finished picture."""
    sampling, batch = JITTER.draw(SAMPLING, 0, step), batch_of(model)
    leaf = negative_of(model).tokens.requires_grad_()
    latents = sample(model, batch.positive, Conditioning(leaf), batch.noise, sampling, gradient=True)
    (expected,) = torch.autograd.grad(Curved().score(model.decode(latents), PROMPTS).sum(), leaf)
    close(gradient(model, [0], sampling, through=0).tokens, expected)


def test_comparison_can_fail(model) -> None:
    expected, _ = plain_gradient(model, negative_of(model).tokens, 3)
    with pytest.raises(AssertionError):
        close(gradient(model, [4]).tokens, expected)


def test_points_are_averaged_in_one_rollout(model) -> None:
    together = gradient(model, [1, 3, 5])
    alone = [gradient(model, [point]) for point in (1, 3, 5)]
    close(together.tokens, sum(part.tokens for part in alone) / 3)
    assert together.rewards.shape == (3, 3)


def test_rows_of_their_own_get_their_own_gradient(model) -> None:
    batch, negative = batch_of(model), negative_of(model, rows=3)
    found = gradient(model, [4], rows=3)
    for row in range(3):
        alone = Batch([PROMPTS[row]], batch.positive[[row]], batch.noise[[row]])
        single = reward_gradient(model, Curved(), alone, negative[[row]], SAMPLING, Reach([4]))
        close(found.tokens[row], single.tokens[0])


def test_finite_differences(model) -> None:
    """The first step of a schedule that begins late: no earlier state depends on the negative."""
    late, batch = Levels(model, model.sigmas(SAMPLING)[3:]), batch_of(model)
    direction = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(9))

    def value(step: float) -> float:
        negative = Conditioning(negative_of(model).tokens + step * direction)
        found = reward_gradient(late, Curved(), batch, negative, SAMPLING, Reach([0]))
        return found.rewards.double().sum().item()

    step = 3e-2
    analytic = (
        reward_gradient(late, Curved(), batch, negative_of(model), SAMPLING, Reach([0])).tokens * direction
    ).sum()
    assert analytic.item() == pytest.approx((value(step) - value(-step)) / (2 * step), rel=0.03)


def test_the_loss_scale_is_divided_out(model) -> None:
    close(gradient(model, [4], loss_scale=64.0).tokens, gradient(model, [4]).tokens)
    seen = []

    class Watched(Curved):
        def score(self, images: Tensor, prompts: list[str]) -> Tensor:
            scores = super().score(images, prompts)
            if scores.requires_grad:
                scores.register_hook(lambda gradient: seen.append(gradient.unique().tolist()))
            return scores

    reward_gradient(model, Watched(), batch_of(model), negative_of(model), SAMPLING, Reach([4], loss_scale=64.0))
    assert seen == [[64.0]]


def test_each_pass_is_of_its_branch(model) -> None:
    """Before the point joint passes, at the point one of each, behind it joint ones again."""
    recorder, negative = Recorder(model), negative_of(model)
    reward_gradient(recorder, Curved(), batch_of(model), negative, SAMPLING, Reach([1], through=2))
    both = (Branch.NEGATIVE, Branch.POSITIVE)
    branches, conditionings = zip(*recorder.passes, strict=True)
    assert branches == (both, (Branch.POSITIVE,), (Branch.NEGATIVE,), both)
    assert torch.equal(conditionings[1].tokens, model.encode(PROMPTS).tokens)
    assert all(torch.equal(part.tokens[:1], negative.tokens) for part in conditionings if part is not conditionings[1])


def test_a_mask_is_kept_at_the_point_and_behind_it(model) -> None:
    """The gradient of tokens that the mask hides is zero, that of the others is not."""
    mask = torch.ones(1, 16, dtype=torch.int64)
    mask[:, 5:] = 0
    masked = replace(negative_of(model), mask=mask)
    for sampling in (SAMPLING, Sampling("dpmpp_2m", 4, "karras").at_scale(SCALE)):
        found = reward_gradient(model, Curved(), batch_of(model), masked, sampling, Reach([1], through=0))
        assert found.tokens[:, 5:].abs().max() == 0 and found.tokens[:, :5].abs().min() > 0


def test_checkpointing_changes_memory_and_not_the_gradient(model) -> None:
    plain, saved_plain = saved_bytes(model)
    model.checkpointing(True)
    try:
        light, saved_light = saved_bytes(model)
    finally:
        model.checkpointing(False)
    close(light.tokens, plain.tokens)
    assert saved_light < 0.4 * saved_plain


def test_recomputing_the_decoder_alone_is_in_between_and_the_same_gradient(model) -> None:
    """To the bit: the same operations on the same numbers."""
    (plain, most), found = saved_bytes(model), {}
    for name, ways in (("decoder", (False, True)), ("all", (True,))):
        model.checkpointing(*ways)
        try:
            found[name] = saved_bytes(model)
        finally:
            model.checkpointing(False)
    assert torch.equal(found["decoder"][0].tokens, plain.tokens)
    assert found["all"][1] < 0.9 * found["decoder"][1] < 0.7 * most


def test_another_decoder_for_the_gradient_leaves_the_finished_picture_alone(model) -> None:
    halves = lambda latents, frames, rows: model.decode(latents[..., :4, :], frames)  # noqa: E731
    whole, half = (gradient(model, [3], complete=True, decode=decode) for decode in (None, halves))
    assert torch.equal(half.images, whole.images) and torch.equal(half.final_rewards, whole.final_rewards)
    assert not torch.equal(half.rewards, whole.rewards) and not torch.allclose(half.tokens, whole.tokens)


def saved_bytes(model):
    """The gradient and the bytes autograd kept for it."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes if not isinstance(tensor, torch.nn.Parameter) else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = gradient(model, [3])
    return found, total


def test_complete_scores_the_finished_picture(model) -> None:
    batch = batch_of(model)
    for sampling in (SAMPLING, Sampling("dpmpp_2m", 5, "karras").at_scale(SCALE)):
        found = gradient(model, [3], sampling, complete=True)
        images = model.decode(sample(model, batch.positive, negative_of(model), batch.noise, sampling))
        assert torch.allclose(found.images, images, atol=1e-5)
        assert torch.allclose(found.final_rewards, Curved().score(images, PROMPTS), atol=1e-4)


class Toy:
    """A branch's x0 is its pooled vector, so the guided picture is negative + scale * (positive - negative)."""

    device = torch.device("cpu")
    start = staticmethod(lambda noise, sigma: noise * sigma)
    decode = staticmethod(lambda x, frames: x)
    sigmas = staticmethod(lambda sampling: torch.tensor([2.0, 1.0, 0.0]))
    denoise = staticmethod(lambda x, sigma, c, branches: c.pooled[:, :3, None, None] + 0 * c.tokens.sum() + 0 * x)


def test_pooled_vector_gets_a_gradient() -> None:
    """A closed form: the guided picture is (1 - scale) * the negative's pooled vector + const."""
    reward = Curved()
    reward.score = lambda images, prompts: images.mean((1, 2, 3))
    negative = Conditioning(torch.zeros(1, 2, 4), None, torch.ones(1, 5))
    positive = Conditioning(torch.zeros(2, 2, 4), None, torch.ones(2, 5))
    batch, sampling = Batch(["a", "b"], positive, torch.zeros(2, 3, 2, 2)), Sampling(steps=2).at_scale(3.0)
    found = reward_gradient(Toy, reward, batch, negative, sampling, Reach([1]))
    assert torch.allclose(found.pooled, 2 * (1 - 3.0) / 3 * torch.tensor([[1.0, 1, 1, 0, 0]]))
    for pair in ((positive, replace(negative, pooled=None)), (replace(positive, pooled=None), negative)):
        with pytest.raises(ValueError, match="expected both or neither"):
            reward_gradient(Toy, reward, replace(batch, positive=pair[0]), pair[1], sampling, Reach([1]))


@pytest.mark.parametrize("points", [[], [6], [-1]])
def test_points_outside_the_schedule_are_refused(model, points: list[int]) -> None:
    with pytest.raises(ValueError, match="expected step indices from 0 to 5 where guidance acts"):
        gradient(model, points)


def test_points_where_guidance_is_off_are_refused(model) -> None:
    with pytest.raises(ValueError, match=r"interval 0\.5\.\.1"):
        gradient(model, [2], replace(SAMPLING, guidance=Guidance(SCALE, start=0.5)))
    gradient(model, [3], replace(SAMPLING, guidance=Guidance(SCALE, start=0.5)))
