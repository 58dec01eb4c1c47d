"""The ODE loop against diffusers' own pipeline and against closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from reneg_core.guidance import Guidance
from reneg_core.model import Conditioning
from reneg_core.sampling import State, advance, guided_denoise, sample, solver_named

PROMPTS = ["a red fox", "blue"]


def ours(model, negative: Conditioning, solver: str = "euler", steps: int = 8) -> torch.Tensor:
    latents = sample(
        model, model.encode(PROMPTS), negative, model.noise([3, 4]), model.sigmas(steps), Guidance(5.0), solver=solver
    )
    return model.decode(latents)


def theirs(model, scheduler, steps: int = 8, **negative: object) -> torch.Tensor:
    pipe = model.pipeline
    keep, pipe.scheduler = pipe.scheduler, scheduler
    pipe.set_progress_bar_config(disable=True)
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        images = pipe(
            PROMPTS, num_inference_steps=steps, guidance_scale=5.0, generator=generators, output_type="pt", **negative
        )
        return images.images
    finally:
        pipe.scheduler = keep


@pytest.mark.parametrize("name", ["model", "v_model"])
@pytest.mark.parametrize("kind", ["null", "text", "embedding"])
def test_equals_the_pipeline_with_ddim(request, name: str, kind: str) -> None:
    model = request.getfixturevalue(name)
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    embedding = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    negative, option = {
        "null": (model.encode([""]), {}),
        "text": (model.encode(["ugly blur"]), {"negative_prompt": ["ugly blur"] * 2}),
        "embedding": (Conditioning(embedding), {"negative_prompt_embeds": embedding.repeat(2, 1, 1)}),
    }[kind]
    difference = (ours(model, negative) - theirs(model, scheduler, **option)).abs().max()
    assert difference <= 1e-4


def test_ddim_comparison_can_fail(model) -> None:
    scheduler = DDIMScheduler.from_config(model.pipeline.scheduler.config)
    other = ours(model, model.encode(["ugly blur"]))
    assert (other - theirs(model, scheduler)).abs().max() > 1e-3


def test_dpmpp_equals_the_pipeline(model) -> None:
    """diffusers' own DPM-Solver++(2M) on its own levels."""
    config = {**model.pipeline.scheduler.config, "final_sigmas_type": "zero"}
    scheduler = DPMSolverMultistepScheduler.from_config(config, lower_order_final=True, euler_at_final=True)
    scheduler.set_timesteps(8)
    positive, negative, guidance = model.encode(PROMPTS), model.encode([""]), Guidance(5.0)
    noise = model.noise([3, 4])
    latents = sample(model, positive, negative, noise, scheduler.sigmas, guidance, solver="dpmpp_2m")
    assert (model.decode(latents) - theirs(model, scheduler)).abs().max() <= 1e-3


def gaussian_error(solver: str, steps: int) -> float:
    """Data N(0,1) has x0 = x / (1 + sigma^2), so x shrinks by sqrt((1 + end^2) / (1 + begin^2)) exactly."""
    sigmas = torch.logspace(1, -2, steps + 1, dtype=torch.float64)
    state = State(torch.ones(1, 1, 1, 1, dtype=torch.float64))
    for i in range(steps):
        state = advance(state, state.x / (1 + sigmas[i] ** 2), sigmas, solver)
    return abs(state.x.item() - ((1 + sigmas[-1] ** 2) / (1 + sigmas[0] ** 2)).sqrt().item())


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("dpmpp_2m", 2)])
def test_solver_order_on_a_gaussian(solver: str, order: int) -> None:
    coarse, fine = gaussian_error(solver, 100), gaussian_error(solver, 200)
    assert coarse / fine == pytest.approx(2**order, rel=0.2)


def test_gradient_keyword(model) -> None:
    negative = Conditioning(model.encode([""]).tokens.clone().requires_grad_())
    arguments = (model, model.encode(["a"]), negative, model.noise([0]), model.sigmas(2), Guidance(3.0))
    assert not sample(*arguments).requires_grad
    recorded = sample(*arguments, gradient=True)
    (gradient,) = torch.autograd.grad(recorded.sum(), negative.tokens)
    assert gradient.abs().sum() > 0


def test_guidance_off_ignores_the_negative(model) -> None:
    positive, x = model.encode(["a"]), model.noise([0])
    plain = model.denoise(x, torch.tensor(1.0), positive)
    off = [Guidance(1.0), Guidance(5.0, end=0.5)]
    for guidance, progress in zip(off, (0.0, 0.5), strict=True):
        got = guided_denoise(model, x, torch.tensor(1.0), positive, model.encode(["zzz"]), guidance, progress)
        assert torch.equal(got, plain)


def test_branches_of_unequal_length_are_two_passes(model) -> None:
    positive, x, sigma = model.encode(["a"]), model.noise([0]), torch.tensor(1.0)
    long = Conditioning(torch.cat([positive.tokens] * 2, dim=1))
    got = guided_denoise(model, x, sigma, positive, long, Guidance(3.0))
    expected = Guidance(3.0).combine(model.denoise(x, sigma, positive), model.denoise(x, sigma, long))
    assert torch.equal(got, expected)


def test_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match="Got solver 'heun', expected one of euler, ddim, dpmpp_2m"):
        solver_named("heun")
