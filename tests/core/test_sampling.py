"""The ODE loop against diffusers' own pipelines, against a plainly written one, and against closed forms."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from doubles import Levels, Recorder

from reneg_core.backends import load_model
from reneg_core.guidance import Guidance, cfg
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import SOLVERS, Sampling, State, advance, guided_denoise, sample, solver_named
from reneg_core.settings import SOLVER_WORDS

PROMPTS, SCALE = ["a red circle", "blue"], 5.0
NEGATIVE = "ugly blur"


@pytest.fixture(scope="module")
def tiny_model():
    return load_model("tiny", device="cpu", dtype="fp32")


def ours(model, sampling: Sampling, negative: Conditioning | None = None) -> torch.Tensor:
    negative = model.encode([NEGATIVE]) if negative is None else negative
    return model.decode(sample(model, model.encode(PROMPTS), negative, model.noise([3, 4]), sampling))


def theirs(model, scheduler, steps: int, **negative: object) -> torch.Tensor:
    pipe = model.pipeline
    keep, pipe.scheduler = pipe.scheduler, scheduler
    pipe.set_progress_bar_config(disable=True)
    try:
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        options = negative or {"negative_prompt": [NEGATIVE] * 2}
        return pipe(
            PROMPTS, num_inference_steps=steps, guidance_scale=SCALE, generator=generators, output_type="pt", **options
        ).images
    finally:
        pipe.scheduler = keep


def ddim(model, **changes: object) -> DDIMScheduler:
    return DDIMScheduler(**{**published(model), **changes})


def published(model) -> dict:
    """The model's own noise schedule, without what diffusers notes beside it."""
    known = ("beta_start", "beta_end", "beta_schedule", "clip_sample", "prediction_type", "steps_offset")
    return {name: model.pipeline.scheduler.config[name] for name in (*known, "set_alpha_to_one", "timestep_spacing")}


def dpm(model, spacing: str) -> DPMSolverMultistepScheduler:
    options = {k: v for k, v in published(model).items() if k not in ("clip_sample", "set_alpha_to_one")}
    options |= {"timestep_spacing": "trailing", "use_karras_sigmas": spacing == "karras", "final_sigmas_type": "zero"}
    return DPMSolverMultistepScheduler(**options, algorithm_type="dpmsolver++", solver_order=2)


MODELS = ["model", "v_model", "tiny_model"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 10), ("leading", 30), ("trailing", 10), ("trailing", 20)])
def test_equals_the_pipeline_with_ddim(request, name: str, spacing: str, steps: int) -> None:
    """Trailing with step counts that divide 1000: for others diffusers' DDIM steps to levels beside its own grid."""
    model = request.getfixturevalue(name)
    scheduler = ddim(model, timestep_spacing=spacing, set_alpha_to_one=spacing == "trailing")
    found = ours(model, Sampling("ddim", steps, spacing).at_scale(SCALE))
    assert (found - theirs(model, scheduler, steps)).abs().max() <= 1e-3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("steps", [10, 20, 30])
def test_equals_the_pipeline_with_dpm_solver(request, name: str, spacing: str, steps: int) -> None:
    model = request.getfixturevalue(name)
    found = ours(model, Sampling("dpmpp_2m", steps, spacing).at_scale(SCALE))
    assert (found - theirs(model, dpm(model, spacing), steps)).abs().max() <= 1e-3


@pytest.mark.parametrize("kind", ["null", "text", "embedding"])
def test_equals_the_pipeline_with_any_negative(model, kind: str) -> None:
    embedding = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    negative, option = {
        "null": (model.encode([""]), {"negative_prompt": [""] * 2}),
        "text": (model.encode(["ugly"]), {"negative_prompt": ["ugly"] * 2}),
        "embedding": (Conditioning(embedding), {"negative_prompt_embeds": embedding.repeat(2, 1, 1)}),
    }[kind]
    found = ours(model, Sampling(steps=8).at_scale(SCALE), negative)
    assert (found - theirs(model, ddim(model), 8, **option)).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("solver", "spacing", "steps"),
    [("euler", "trailing", 10), ("dpmpp_2m", "karras", 10), ("dpmpp_2m", "trailing", 11), ("dpmpp_2m", "leading", 10)],
)
def test_the_comparison_with_diffusers_can_fail(tiny_model, solver: str, spacing: str, steps: int) -> None:
    expected = theirs(tiny_model, dpm(tiny_model, "trailing"), 10)
    assert (ours(tiny_model, Sampling(solver, steps, spacing).at_scale(SCALE)) - expected).abs().max() > 1e-2


def k_diffusion(model, sigmas: torch.Tensor, second_order: bool) -> torch.Tensor:
    """Euler and DPM-Solver++(2M) as k-diffusion writes them: derivatives, and exponentials of log sigma."""
    positive, negative = model.encode(PROMPTS), model.encode([NEGATIVE]).expand(2)
    x, old = model.noise([3, 4]) * (1 + sigmas[0] ** 2).sqrt(), None
    t = -sigmas.log()
    for i in range(len(sigmas) - 1):
        x0 = cfg(model.denoise(x, sigmas[i], positive), model.denoise(x, sigmas[i], negative), SCALE)
        if not second_order:
            x = x + (x - x0) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
            continue
        h, estimate = t[i + 1] - t[i], x0
        if old is not None and sigmas[i + 1] > 0:
            r = (t[i] - t[i - 1]) / h
            estimate = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * old
        x, old = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * estimate, x0
    return model.decode(x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_equals_a_plain_loop_on_given_levels(request, name: str, solver: str) -> None:
    """Levels of no spacing of ours: a geometric series with one longer step, down to 0."""
    model = request.getfixturevalue(name)
    sigmas = torch.tensor([12.0, 6.0, 3.2, 1.1, 0.6, 0.35, 0.2, 0.0])
    found = ours(Levels(model, sigmas), Sampling(solver).at_scale(SCALE))
    assert (found - k_diffusion(model, sigmas, solver == "dpmpp_2m")).abs().max() <= 1e-3
    other = "euler" if solver == "dpmpp_2m" else "dpmpp_2m"
    assert (ours(Levels(model, sigmas), Sampling(other).at_scale(SCALE)) - found).abs().max() > 2e-3


def test_a_step_that_is_too_long_for_the_one_before_is_of_first_order() -> None:
    x, x0, previous = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.2)
    for levels, even in (([4.0, 2.0, 0.6, 0.1, 0.0], True), ([4.0, 2.0, 0.4, 0.1, 0.0], False)):
        sigmas = torch.tensor(levels)
        steps = [advance(State(x, 1, previous), x0, sigmas, solver).x for solver in ("euler", "dpmpp_2m")]
        assert torch.equal(*steps) is not even


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize("steps", [3, 10, 20, 30, 100])
def test_sound_grids_never_fall_back(tiny_model, spacing: str, steps: int) -> None:
    assert fallbacks(tiny_model.sigmas(Sampling("dpmpp_2m", steps, spacing))) == [0, steps - 1]


@pytest.mark.parametrize("steps", [4, 10, 30])
def test_leading_grids_fall_back_before_their_end(tiny_model, steps: int) -> None:
    assert fallbacks(tiny_model.sigmas(Sampling("dpmpp_2m", steps, "leading"))) == [0, steps - 2, steps - 1]


def fallbacks(sigmas: torch.Tensor) -> list[int]:
    """The steps at which DPM-Solver++(2M) is Euler."""
    x, x0, before = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), -torch.ones(1).double()
    states = [State(x, i, before if i else None) for i in range(len(sigmas) - 1)]
    return [s.index for s in states if torch.equal(*(advance(s, x0, sigmas, n).x for n in ("euler", "dpmpp_2m")))]


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
    arguments = (model, model.encode(["a"]), negative, model.noise([0]), Sampling(steps=2).at_scale(3.0))
    assert not sample(*arguments).requires_grad
    recorded = sample(*arguments, gradient=True)
    (gradient,) = torch.autograd.grad(recorded.sum(), negative.tokens)
    assert gradient.abs().sum() > 0


def test_the_callback_sees_every_estimate(model) -> None:
    seen = []
    arguments = (model, model.encode(["a"]), model.encode([""]), model.noise([0]), Sampling(steps=3, spacing="karras"))
    last = sample(*arguments, callback=lambda index, x0: seen.append((index, x0)))
    assert [index for index, _ in seen] == [0, 1, 2] and torch.equal(seen[-1][1], last)


def test_guidance_off_ignores_the_negative(model) -> None:
    positive, x = model.encode(["a"]), model.noise([0])
    plain = model.denoise(x, torch.tensor(1.0), positive)
    off = [Guidance(1.0), Guidance(5.0, end=0.5)]
    for guidance, progress in zip(off, (0.0, 0.5), strict=True):
        got = guided_denoise(model, x, torch.tensor(1.0), positive, model.encode(["zzz"]), guidance, progress)
        assert torch.equal(got, plain)


def test_the_interval_of_guidance_decides_which_branches_run(model) -> None:
    recorder = Recorder(model)
    sampling = dataclasses.replace(Sampling(steps=4), guidance=Guidance(5.0, start=0.25, end=0.75))
    sample(recorder, model.encode(["a"]), model.encode(["b"]), model.noise([0]), sampling)
    both, alone = (Branch.NEGATIVE, Branch.POSITIVE), (Branch.POSITIVE,)
    assert [branches for branches, _ in recorder.passes] == [alone, both, both, alone]


def test_branches_of_unequal_length_are_two_passes(model) -> None:
    recorder, positive, x, sigma = Recorder(model), model.encode(["a"]), model.noise([0]), torch.tensor(1.0)
    long = Conditioning(torch.cat([positive.tokens] * 2, dim=1))
    got = guided_denoise(recorder, x, sigma, positive, long, Guidance(3.0))
    expected = Guidance(3.0).combine(model.denoise(x, sigma, positive), model.denoise(x, sigma, long))
    assert torch.equal(got, expected)
    assert [(branches, len(rows)) for branches, rows in recorder.passes] == [
        ((Branch.NEGATIVE,), 1),
        ((Branch.POSITIVE,), 1),
    ]


def test_every_pass_says_which_rows_are_the_negatives(model) -> None:
    """A network that treats the branches differently sees the negative's rows first, whatever their tokens."""
    recorder = Recorder(model)
    positive, negative = model.encode(["a", "b"]), model.encode(["c"])
    guided_denoise(recorder, model.noise([0, 1]), torch.tensor(1.0), positive, negative, Guidance(3.0))
    [(branches, conditioning)] = recorder.passes
    assert branches == (Branch.NEGATIVE, Branch.POSITIVE) == (1, 0)
    assert torch.equal(conditioning.tokens, torch.cat([negative.tokens.expand(2, -1, -1), positive.tokens]))


def test_levels_of_their_own_for_each_row(model) -> None:
    positive, negative, x = model.encode(["a", "b"]), model.encode([""]), model.noise([0, 1])
    both = guided_denoise(model, x, torch.tensor([2.0, 0.5]), positive, negative, Guidance(3.0))
    for row, sigma in enumerate((2.0, 0.5)):
        alone = guided_denoise(model, x[[row]], torch.tensor(sigma), positive[[row]], negative, Guidance(3.0))
        assert torch.allclose(both[[row]], alone, atol=1e-5)


def test_a_pooled_vector_of_one_branch_only_is_refused(model) -> None:
    positive, x, sigma = model.encode(["a"]), model.noise([0]), torch.tensor(1.0)
    pooled = Conditioning(positive.tokens, None, torch.ones(1, 4))
    for pair, words in (
        ((positive, pooled), "negative and none for the pos"),
        ((pooled, positive), "positive and non"),
    ):
        with pytest.raises(ValueError, match=f"Got a pooled vector for the {words}"):
            guided_denoise(model, x, sigma, *pair, Guidance(3.0))


def test_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match="Got solver 'heun', expected one of euler, ddim, dpmpp_2m"):
        solver_named("heun")
    assert set(SOLVERS) == set(SOLVER_WORDS)
