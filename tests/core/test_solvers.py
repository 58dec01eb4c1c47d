"""The solvers' steps and the guided pass by hand, on a model of a few numbers."""

import math
import re
from typing import Any

import pytest
import torch
from doubles import Recorder, Wrapped
from hypothesis import given
from hypothesis import strategies as st
from small import SmallModel
from torch import Tensor

from reneg_core.guidance import Guidance, cfg, rescale, strengthen
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import Sampling, State, advance, check_branches, guided_denoise, sample, solver_named
from reneg_core.seeds import derive_seed
from reneg_core.settings import Jitter, Size

ONE = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def moved(levels: list[float], index: int, x0: float, x: float, before: float | None, solver: str) -> float:
    state = State(x * ONE, index, None if before is None else before * ONE)
    found = advance(state, x0 * ONE, torch.tensor(levels, dtype=torch.float64), solver)
    assert found.index == index + 1 and torch.equal(found.previous, x0 * ONE)
    return found.x.item()


def test_an_euler_step_goes_its_share_of_the_way() -> None:
    """From sigma 4 to 1: a quarter of the noise stays."""
    assert moved([4.0, 1.0, 0.0], 0, 2.0, 10.0, None, "euler") == pytest.approx(2 + 8 / 4)
    assert moved([4.0, 1.0, 0.0], 1, 2.0, 10.0, 7.0, "euler") == 2.0
    assert moved([4.0, 1.0, 0.0], 0, 2.0, 10.0, None, "ddim") == pytest.approx(4.0)


@pytest.mark.parametrize(("levels", "ratio"), [([9.0, 3.0, 1.0, 0.5, 0.0], 1.0), ([8.0, 4.0, 1.0, 0.5, 0.0], 2.0)])
def test_a_multistep_step_extrapolates_by_half_the_ratio_of_the_steps(levels: list[float], ratio: float) -> None:
    """x0 moved from 1 to 2; up to twice as long a step (in log sigma) as the one before it is taken."""
    estimate, share = 2 + (2 - 1) * ratio / 2, levels[2] / levels[1]
    found = moved(levels, 1, 2.0, 10.0, 1.0, "dpmpp_2m")
    assert found == pytest.approx(estimate + (10 - estimate) * share) and found != moved(
        levels, 1, 2.0, 10.0, 1.0, "euler"
    )


@pytest.mark.parametrize(
    ("levels", "index"), [([8.0, 4.0, 0.9, 0.5, 0.0], 1), ([9.0, 3.0, 1.0, 0.5], 2), ([9.0, 3.0, 0.0], 1)]
)
def test_a_longer_step_and_the_last_are_of_first_order(levels: list[float], index: int) -> None:
    assert moved(levels, index, 2.0, 10.0, 1.0, "dpmpp_2m") == moved(levels, index, 2.0, 10.0, 1.0, "euler")


def test_the_first_step_has_nothing_to_extrapolate_from() -> None:
    levels = [9.0, 3.0, 1.0, 0.5, 0.0]
    assert moved(levels, 0, 2.0, 10.0, None, "dpmpp_2m") == moved(levels, 0, 2.0, 10.0, None, "euler")


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match=r"^Got solver 'heun', expected one of euler, ddim, dpmpp_2m\.$"):
        solver_named("heun")


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 20))
def test_guidance_moves_away_from_the_negative(positive: float, negative: float, scale: float) -> None:
    found = cfg(torch.tensor(positive, dtype=torch.float64), torch.tensor(negative, dtype=torch.float64), scale)
    assert found.item() == pytest.approx(negative + scale * (positive - negative))
    strong = strengthen(torch.tensor([negative]).double(), torch.tensor([positive]).double(), scale)
    assert strong.item() == pytest.approx(negative + scale * (positive - negative), abs=1e-5)


def test_each_row_gets_back_its_own_spread() -> None:
    """Rows of spreads 1 and 3, stretched by 5 and 2 and shifted: all channels of a row count together."""
    source = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    source[:, 1] += 2
    positive = source * torch.tensor([1.0, 3.0])[:, None, None, None]
    guided = positive * torch.tensor([5.0, 2.0])[:, None, None, None] + 1
    factors = [1 / 5, 1 / 2]
    for amount in (0.25, 1.0):
        found = rescale(guided, positive, amount)
        for row, factor in enumerate(factors):
            assert torch.allclose(found[row], guided[row] * (1 - amount + amount * factor))
    combined = Guidance(3.0, rescale=0.25).combine(positive, guided)
    assert torch.allclose(combined, rescale(cfg(positive, guided, 3.0), positive, 0.25))
    flat = rescale(torch.full((1, 3, 2, 2), 0.5), torch.randn(1, 3, 2, 2), 1.0)
    assert flat.isfinite().all(), "a picture of one colour has no spread to divide by"
    tiny = rescale(1e-6 * source, source, 1.0)
    assert torch.allclose(tiny.std((1, 2, 3)), source.std((1, 2, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.5, "end": 0.5}, r"^Got the guidance interval 0\.5\.\.0\.5, expected 0 <= start < end <= 1\.$"),
        ({"start": -0.01}, "interval -0"), ({"end": 1.01}, "interval 0.0..1.01"),
        ({"rescale": -0.1}, r"^Got guidance rescale -0\.1, expected a number from 0 \(off\) to 1\.$"),
        ({"rescale": 1.1}, "rescale 1.1"),
    ],
)  # fmt: skip
def test_guidance_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(**options)


def test_guidance_at_its_ends() -> None:
    Guidance(start=0.0, end=1.0, rescale=1.0)
    assert (Guidance().scale, Guidance().start, Guidance().end, Guidance().rescale) == (7.5, 0.0, 1.0, 0.0)
    assert Guidance(0.5).active(0.0) and not Guidance(1.0).active(0.0) and not Guidance(3.0).active(1.0)
    assert Guidance(2.0).combine(torch.tensor(3.0), torch.tensor(1.0)) == 5.0


def test_the_loop_by_hand() -> None:
    """Guided estimates at each level, the positive alone outside the interval, Euler steps, start and finish."""

    class Ends(Wrapped):
        def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
            assert sigma == 0
            return 10 * x

    model = SmallModel()
    guidance = Guidance(3.0, start=0.25, end=0.75, rescale=0.5)
    sampling, noise = Sampling("euler", 4, "karras", guidance), model.noise([1, 2])
    positive, negative = model.encode(["a", "b"]), model.encode(["c"])
    x, sigmas, seen = noise * 4, 4 * torch.tensor([1, 0.75, 0.5, 0.25, 0]) ** 3, []
    for i in range(4):
        alone = x0 = model.denoise(x, sigmas[i], positive)
        if i in (1, 2):
            x0 = guidance.combine(alone, model.denoise(x, sigmas[i], negative.expand(2)))
        seen.append(x0)
        x = x0 + (x - x0) * sigmas[i + 1] / sigmas[i]
    steps: list[tuple[int, Tensor]] = []
    found = sample(Ends(model), positive, negative, noise, sampling, callback=lambda *step: steps.append(step))
    assert torch.allclose(found, 10 * x, atol=1e-5) and [index for index, _ in steps] == [0, 1, 2, 3]
    assert all(torch.allclose(x0, expected, atol=1e-5) for (_, x0), expected in zip(steps, seen, strict=True))


def test_both_branches_go_in_one_pass_where_they_can_be_joined() -> None:
    model = SmallModel(pooled=True)
    positive, negative, x = model.encode(["a", "b"]), model.encode(["c"]), model.noise([1, 2])
    mask = torch.tensor([[1, 0]])
    masked = [Conditioning(c.tokens, mask.expand(len(c), 2), c.pooled) for c in (positive, negative)]
    kinds = [(positive, negative, 1), (*masked, 1), (masked[0], negative, 2), (positive, masked[1], 2)]
    for sigma in (torch.tensor(2.0), torch.tensor([2.0, 0.5])):
        for first, second, passes in kinds:
            recorder = Recorder(model)
            found = guided_denoise(recorder, x, sigma, first, second, Guidance(3.0, rescale=0.3))
            each = [model.denoise(x, sigma, part.expand(2)) for part in (first, second)]
            assert torch.allclose(found, Guidance(3.0, rescale=0.3).combine(*each), atol=1e-6)
            both = [(Branch.NEGATIVE, Branch.POSITIVE)] if passes == 1 else [(Branch.NEGATIVE,), (Branch.POSITIVE,)]
            assert [branches for branches, _ in recorder.passes] == both


def test_guidance_that_is_off_is_one_pass_of_the_positive() -> None:
    model, recorder = SmallModel(), Recorder(SmallModel())
    x, sigma, positive = model.noise([1, 2]), torch.tensor(1.0), model.encode(["a"])
    other = Conditioning(model.encode(["b"]).tokens, None, torch.ones(1, 3))
    for guidance, progress in ((Guidance(1.0), 0.0), (Guidance(3.0, start=0.1), 0.0), (Guidance(3.0, end=0.5), 0.5)):
        found = guided_denoise(recorder, x, sigma, positive, other, guidance, progress)
        assert torch.equal(found, model.denoise(x, sigma, positive.expand(2)))
    assert [branches for branches, _ in recorder.passes] == [(Branch.POSITIVE,)] * 3
    guided_denoise(recorder, x, sigma, positive, model.encode(["b"]), Guidance(3.0, end=0.5))
    assert recorder.passes[-1][0] == (Branch.NEGATIVE, Branch.POSITIVE), "progress counts from 0"


def test_a_pooled_vector_of_one_branch_only_is_refused_in_words() -> None:
    with_it, without = SmallModel(pooled=True).encode(["a"]), SmallModel().encode(["a"])
    check_branches(with_it, with_it)
    check_branches(without, without)
    for pair, having, lacking in (
        ((with_it, without), "positive", "negative"),
        ((without, with_it), "negative", "positive"),
    ):
        with pytest.raises(
            ValueError,
            match=f"^Got a pooled vector for the {having} and none for the {lacking}, expected both or neither. Try an "
            r"embedding that was made for this model\.$",
        ):
            check_branches(*pair)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_gradient_is_recorded_only_where_it_was_asked_for(gradient: bool) -> None:
    model = SmallModel()
    leaf = model.encode([""]).tokens.requires_grad_()
    arguments = (model, model.encode(["a"]), Conditioning(leaf), model.noise([1]), Sampling(steps=2))
    assert sample(*arguments, gradient=gradient).requires_grad is gradient
    assert not sample(*arguments).requires_grad


class TestConditioning:
    def whole(self, rows: int = 1) -> Conditioning:
        return Conditioning(torch.rand(rows, 2, 3), torch.ones(rows, 2, dtype=torch.int64), torch.rand(rows, 4))

    def test_moved_with_every_part_and_the_mask_in_its_own_dtype(self) -> None:
        moved = self.whole().to("meta", dtype=torch.float64)
        assert [part.device.type for part in (moved.tokens, moved.mask, moved.pooled)] == ["meta"] * 3
        assert (moved.tokens.dtype, moved.mask.dtype, moved.pooled.dtype) == (torch.float64, torch.int64, torch.float64)
        assert Conditioning(torch.rand(1, 2, 3)).to(torch.float16).mask is None

    def test_detached_and_expanded(self) -> None:
        one = self.whole()
        grown = Conditioning(one.tokens.requires_grad_(), one.mask, one.pooled.requires_grad_())
        assert not grown.detach().tokens.requires_grad and not grown.detach().pooled.requires_grad
        assert one.expand(1) is one and self.whole(3).expand(3).tokens.shape == (3, 2, 3)
        wide = one.expand(4)
        assert torch.equal(wide.pooled, one.pooled.repeat(4, 1)) and len(wide) == 4
        with pytest.raises(ValueError, match=r"^Got conditioning for 2 prompts, expected 1 or 3\.$"):
            self.whole(2).expand(3)


def test_what_varies_is_said_with_every_fault() -> None:
    with pytest.raises(ValueError) as caught:
        Jitter(("heun",), (0, True), ("even",))
    assert str(caught.value) == (
        "Got solver 'heun', expected one of euler, ddim, dpmpp_2m. Got spacing 'even', expected one of model, leading, "
        "trailing, karras. Got 0 sampling steps, expected a whole number of 1 or more. Got True sampling steps, "
        "expected a whole number of 1 or more."
    )
    for nothing in (3, None, [("solver", "euler")]):
        told = f"Got {nothing!r}, expected a mapping with some of solver, steps, spacing, guidance_scale."
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            Jitter.from_mapping(nothing)


@pytest.mark.parametrize("scale", [math.inf, -math.inf, math.nan])
def test_a_scale_that_is_no_number(scale: float) -> None:
    with pytest.raises(ValueError, match=rf"^Got the guidance scale {scale}, expected a finite number\.$"):
        Sampling(guidance=Guidance(scale))


def test_a_sampling_in_words() -> None:
    plain = "30 Euler steps, model spacing, guidance scale 7.5"
    assert Sampling().describe() == plain and Sampling(guidance=Guidance(7.5, 0, 1, 0)).describe() == plain
    assert Sampling("ddim", 1).describe() == "1 DDIM step, model spacing, guidance scale 7.5"
    assert Sampling(size=Size(width=64)).describe() == f"{plain}, 64xnative pixels"
    assert Sampling(size=Size(height=64)).describe() == f"{plain}, nativex64 pixels"
    for guidance, words in ((Guidance(2, 0.25), "0.25 to 1"), (Guidance(2, 0, 0.5), "0 to 0.5")):
        assert Sampling(guidance=guidance).describe().endswith(f"guidance scale 2, guidance from {words}")


samplings = st.builds(
    Sampling,
    st.sampled_from(["euler", "ddim", "dpmpp_2m"]),
    st.integers(1, 100),
    st.sampled_from(["model", "leading", "trailing", "karras"]),
    st.builds(Guidance, st.floats(0, 20), st.floats(0, 0.4), st.floats(0.5, 1), st.floats(0, 1)),
    st.builds(Size, st.none() | st.integers(8, 2048), st.none() | st.integers(8, 2048)),
)


@given(samplings)
def test_a_sampling_survives_its_mapping(sampling: Sampling) -> None:
    assert Sampling.from_mapping(sampling.to_mapping()) == sampling == sampling.changed()
    assert sampling.at_scale(3.0).changed(guidance_scale=sampling.guidance.scale) == sampling


@given(samplings, samplings)
def test_samplings_are_equal_where_their_pictures_are(first: Sampling, second: Sampling) -> None:
    same = {"euler": "ddim", "ddim": "euler"}
    renamed = first.changed(solver=same.get(first.solver, first.solver))
    assert first.equals(renamed) and renamed.equals(first)
    assert first.equals(second) is (second in (first, renamed))


def test_equal_parts_of_a_mapping_and_draws() -> None:
    jitter, base = Jitter(steps=(5, 6, 7), guidance_scale=(2.0, 4.0)), Sampling("ddim", 30, "karras")
    drawn: list[Any] = [jitter.draw(base, "s", i) for i in range(60)]
    assert {(d.steps, d.guidance.scale) for d in drawn} == {(s, g) for s in (5, 6, 7) for g in (2.0, 4.0)}
    assert {(d.solver, d.spacing) for d in drawn} == {("ddim", "karras")}
    assert derive_seed("jitter", "s", 0) != derive_seed("jitter", "s", 1)
