"""The core's loop on the host's MODEL against the stock KSampler: the same branches, schedules, solvers and noise."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfy.samplers import calculate_sigmas
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.layout import only_text, suited, to_host
from torch import Tensor

import nodes
from reneg_core import solvers
from reneg_core.backends import grids
from reneg_core.embedding import NegativeEmbedding
from reneg_core.guidance import Guidance
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import Sampling, Size, sample

SEED, SCALE, SIZE = 5, 7.5, Size(64, 64)
PROMPT, NEGATIVE = "a red house", "blurry, dark"
Pictures = tuple[Tensor, Tensor]


def rolled(checkpoint: tuple, sampling: Sampling, scheduler: str = "normal", kind: type = HostModel) -> Pictures:
    """Latents, as the host hands them on, and the picture, by the core's loop."""

    def work(model: HostModel) -> Pictures:
        positive, negative = model.encode([PROMPT]), model.encode([NEGATIVE])
        latents = sample(model, positive, negative, model.noise([SEED]), sampling)
        return checkpoint[0].model.process_latent_out(latents), model.decode(latents).movedim(1, -1)

    with torch.inference_mode(False):
        return kind(*checkpoint, scheduler=scheduler, size=SIZE).run(work)


def stock(checkpoint: tuple, solver: str = "euler", scheduler: str = "normal", steps: int = 4) -> Pictures:
    """The same by KSampler and VAEDecode."""
    positive, negative = (nodes.CLIPTextEncode().encode(checkpoint[1], text)[0] for text in (PROMPT, NEGATIVE))
    empty = {"samples": torch.zeros(1, 4, 8, 8)}
    latent = nodes.KSampler().sample(
        checkpoint[0], SEED, steps, SCALE, solver, scheduler, positive, negative, empty, denoise=1.0
    )[0]
    return latent["samples"], nodes.VAEDecode().decode(checkpoint[2], latent)[0]


def differences(ours: Pictures, theirs: Pictures) -> tuple[float, float]:
    """Largest difference of the latents, relative to their largest value, and of the pictures."""
    latents, pictures = (float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return latents / float(theirs[0].abs().max()), pictures


@pytest.mark.parametrize("steps", [10, 20, 30])
@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple"])
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_solvers_equal_the_hosts(checkpoint, solver: str, scheduler: str, steps: int, monkeypatch) -> None:
    if (solver, scheduler) == ("dpmpp_2m", "normal"):
        monkeypatch.setattr(solvers, "UNEVEN", math.inf)  # the host extrapolates on this grid, the core does not
    ours = rolled(checkpoint, Sampling(solver, steps, guidance=Guidance(SCALE)), scheduler)
    latents, pictures = differences(ours, stock(checkpoint, solver, scheduler, steps))
    print(f"{solver} {scheduler} {steps}: latents {latents:.1e}, pictures {pictures:.1e}")
    assert latents < 1e-5 and pictures < 1e-3


def test_where_the_grid_is_too_uneven_the_core_does_not_extrapolate(checkpoint) -> None:
    ours = rolled(checkpoint, Sampling("dpmpp_2m", 10, guidance=Guidance(SCALE)), "normal")
    assert differences(ours, stock(checkpoint, "dpmpp_2m", "normal", 10))[1] > 1e-2


def wrapped(checkpoint: tuple, branch: int) -> tuple:
    """The checkpoint with a model-function wrapper that changes one branch, as IP-Adapters and the like do."""

    def wrapper(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        parts = apply_model(args["input"], args["timestep"], **args["c"]).chunk(len(args["cond_or_uncond"]))
        return torch.cat([p * 0.9 if b == branch else p for b, p in zip(args["cond_or_uncond"], parts, strict=True)])

    model = checkpoint[0].clone()
    model.set_model_unet_function_wrapper(wrapper)
    return (model, *checkpoint[1:])


def patched(checkpoint: tuple, branch: int) -> tuple:
    """The checkpoint with an attention patch that reads the branches from the transformer options."""

    def patch(attended: Tensor, options: dict[str, Any]) -> Tensor:
        parts = attended.chunk(len(options["cond_or_uncond"]))
        return torch.cat([p * 0.5 if b == branch else p for b, p in zip(options["cond_or_uncond"], parts, strict=True)])

    model = checkpoint[0].clone()
    model.set_model_attn2_output_patch(patch)
    return (model, *checkpoint[1:])


class Swapped(HostModel):
    """Takes each branch for the other."""

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Any = (Branch.POSITIVE,)
    ) -> Tensor:
        return super().denoise(x, sigma, conditioning, [Branch(1 - branch) for branch in branches])


class Split(HostModel):
    """Runs each branch by itself, as the gradient's rollout does."""

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Any = (Branch.POSITIVE,)
    ) -> Tensor:
        rows = len(x) // len(branches)
        parts = [slice(i * rows, (i + 1) * rows) for i in range(len(branches))]
        found = [
            super(Split, self).denoise(x[p], sigma, conditioning[p], [b]) for p, b in zip(parts, branches, strict=True)
        ]
        return torch.cat(found)


@pytest.mark.parametrize("change", [wrapped, patched])
@pytest.mark.parametrize("branch", [Branch.POSITIVE, Branch.NEGATIVE])
def test_what_acts_on_one_branch_acts_as_in_ksampler(checkpoint, change: Any, branch: int) -> None:
    changed, sampling = change(checkpoint, branch), Sampling(steps=4, guidance=Guidance(SCALE))
    theirs = stock(changed)
    for kind in (HostModel, Split):
        latents, pictures = differences(rolled(changed, sampling, kind=kind), theirs)
        print(f"{change.__name__} {branch.name} {kind.__name__}: latents {latents:.1e}, pictures {pictures:.1e}")
        assert latents < 1e-5 and pictures < 1e-3
    assert differences(rolled(changed, sampling, kind=Swapped), theirs)[1] > 1e-2
    assert differences(stock(checkpoint), theirs)[1] > 1e-2, "the change is seen at all"


def told(checkpoint: tuple, work: Callable[[tuple], Any]) -> list[dict[str, Any]]:
    """What the transformer options say in each pass of ``work``."""
    seen = []

    def wrapper(apply_model: Callable[..., Tensor], args: dict[str, Any]) -> Tensor:
        options = args["c"]["transformer_options"]
        seen.append({name: options[name] for name in ("cond_or_uncond", "sigmas", "sample_sigmas", "uuids")})
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = checkpoint[0].clone()
    model.set_model_unet_function_wrapper(wrapper)
    work((model, *checkpoint[1:]))
    return seen


def test_patches_are_told_what_ksampler_tells_them(checkpoint) -> None:
    theirs = told(checkpoint, stock)
    ours = told(checkpoint, lambda changed: rolled(changed, Sampling(steps=4, guidance=Guidance(SCALE))))
    assert [one["cond_or_uncond"] for one in ours] == [one["cond_or_uncond"] for one in theirs] == [[1, 0]] * 4
    for name in ("sigmas", "sample_sigmas"):
        assert all(torch.equal(a[name].cpu(), b[name].cpu()) for a, b in zip(ours, theirs, strict=True)), name
    assert all(len(set(one["uuids"])) == 2 for one in ours)
    alone = told(checkpoint, lambda changed: rolled(changed, Sampling(steps=2, guidance=Guidance(SCALE)), kind=Split))
    assert [one["cond_or_uncond"] for one in alone] == [[1], [0]] * 2


def test_the_architecture_is_told_the_branch(checkpoint, monkeypatch) -> None:
    original, seen = checkpoint[0].model.extra_conds, []

    def noting(**given: Any) -> Any:
        seen.append(given["prompt_type"])
        return original(**given)

    monkeypatch.setattr(checkpoint[0].model, "extra_conds", noting)
    rolled(checkpoint, Sampling(steps=1, guidance=Guidance(SCALE)))
    assert seen[-2:] == ["negative", "positive"]


def inside(checkpoint: tuple, work: Callable[[HostModel], Any], **options: Any) -> Any:
    with torch.inference_mode(False), torch.no_grad():
        return HostModel(*checkpoint, size=SIZE, **options).run(work)


def test_rows_of_different_states_are_passed_by_themselves(checkpoint) -> None:
    def work(model: HostModel) -> None:
        both, x, order = model.encode([NEGATIVE, PROMPT]), model.noise([1, 2]) * 3, (Branch.NEGATIVE, Branch.POSITIVE)
        joint = model.denoise(x, torch.tensor(3.0), both, order)
        alone = [model.denoise(x[[i]], torch.tensor(3.0), both[[i]], (branch,)) for i, branch in enumerate(order)]
        torch.testing.assert_close(joint, torch.cat(alone), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(joint[:1], joint[1:], atol=1e-2)

    inside(checkpoint, work)


@pytest.mark.parametrize("steps", [10, 20, 25, 30])
def test_spacings_are_the_hosts_schedulers(checkpoint, steps: int) -> None:
    network = checkpoint[0].get_model_object("model_sampling")
    with torch.inference_mode(False):
        model = HostModel(*checkpoint, scheduler="exponential", size=SIZE)
    found = {
        spacing: model.sigmas(Sampling(steps=steps, spacing=spacing)) for spacing in ("model", "trailing", "karras")
    }
    for spacing, scheduler in (("model", "exponential"), ("trailing", "simple"), ("karras", "karras")):
        assert torch.equal(found[spacing], calculate_sigmas(network, scheduler, steps).float()), spacing
    places = torch.tensor(grids.trailing(1000, steps, 1))
    near = torch.stack([network.sigmas[(places + i).clamp(0, 999)] for i in (-1, 0, 1)])
    off = (near - found["trailing"][:-1]).abs()
    assert (off.min(0).values < 1e-6).all()
    assert 1000 % steps or (off[1] < 1e-6).all(), "steps that divide 1000 are taken at the same levels"
    karras = grids.karras(float(network.sigma_min), float(network.sigma_max), steps)
    torch.testing.assert_close(found["karras"][:-1].double(), torch.tensor(karras), rtol=1e-5, atol=1e-6)


def test_leading_is_ddim_uniform_where_it_has_as_many_steps(checkpoint) -> None:
    network = checkpoint[0].get_model_object("model_sampling")
    with torch.inference_mode(False):
        model = HostModel(*checkpoint, size=SIZE)
    found = model.sigmas(Sampling(steps=20, spacing="leading"))
    assert torch.equal(found[:-1], network.sigmas[torch.tensor(grids.leading(1000, 20, 1).copy())]) and found[-1] == 0
    with pytest.raises(ValueError, match=r"ddim_uniform gives 31 steps for 30.*divides 1000"):
        model.sigmas(Sampling(steps=30, spacing="leading"))


def test_noise_has_the_size_it_is_asked_for(checkpoint) -> None:
    with torch.inference_mode(False):
        model = HostModel(*checkpoint, size=Size(64, 128))
        assert model.noise([1, 2]).shape == (2, 4, 8, 16)
        assert model.noise([1], Size(width=64)).shape == (1, 4, 8, 8)
        assert torch.equal(model.noise([2]), model.noise([1, 2])[1:])
        with pytest.raises(ValueError, match="expected multiples of 8"):
            model.noise([1], Size(60, 64))


def test_nothing_of_a_conditioning_is_dropped(checkpoint, positive) -> None:
    tokens, extra = positive[0]
    with pytest.raises(ValueError, match="with control, strength, which cannot be carried"):
        only_text([[tokens, {**extra, "control": object(), "strength": 0.5}]])
    with pytest.raises(ValueError, match="with conditioning_mt5xl, which"):
        only_text([[tokens, {**extra, "conditioning_mt5xl": tokens}]])
    with pytest.raises(ValueError, match="2 entries"):
        only_text([positive[0], positive[0]])

    def work(model: HostModel) -> None:
        x, part = model.noise([1]), model.encode([PROMPT])
        with pytest.raises(ValueError, match=r"Got a pooled vector, which SD15 .* does not read"):
            model.denoise(x, torch.tensor(1.0), Conditioning(part.tokens, pooled=torch.ones(1, 768)))
        mask = torch.ones(1, 77, dtype=torch.int64)
        whole = model.denoise(x, torch.tensor(1.0), Conditioning(part.tokens, mask))
        assert torch.equal(whole, model.denoise(x, torch.tensor(1.0), part))
        mask[:, 50:] = 0
        hidden = model.denoise(x, torch.tensor(1.0), Conditioning(part.tokens, mask))
        assert torch.equal(hidden, model.denoise(x, torch.tensor(1.0), Conditioning(part.tokens[:, :50])))
        assert not torch.allclose(hidden, whole, atol=1e-2), "what is hidden is not attended to"
        mask[:, 60] = 1
        with pytest.raises(ValueError, match=r"26 tokens left out, which SD15 .* only the last ones"):
            model.denoise(x, torch.tensor(1.0), Conditioning(part.tokens, mask))

    inside(checkpoint, work)


def test_a_text_encoder_with_more_than_tokens_is_refused(checkpoint, monkeypatch) -> None:
    clip = checkpoint[1]
    with torch.inference_mode(False):
        model = HostModel(*checkpoint, size=SIZE)
    [[tokens, extra]] = clip.encode_from_tokens_scheduled(clip.tokenize("a"))
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda _: [[tokens, {**extra, "t5": tokens}]])
    with pytest.raises(ValueError, match="gives t5 beside its tokens"):
        model.encode(["a new prompt"])
    monkeypatch.setattr(clip, "encode_from_tokens_scheduled", lambda _: [[tokens, extra]] * 2)
    with pytest.raises(ValueError, match="2 scheduled parts"):
        model.encode(["a new prompt"])


def test_an_embedding_is_suited_to_what_the_model_reads() -> None:
    mask = torch.tensor([[1, 1, 0]])
    embedding = NegativeEmbedding(torch.randn(1, 3, 2048), mask=mask, pooled=torch.ones(1, 1280))
    null = Conditioning(torch.zeros(1, 3, 2048))
    cut = suited(embedding, null)
    assert cut.mask is None and cut.pooled is None and torch.equal(cut.tokens, embedding.tokens[:, :2])
    kept = suited(embedding, Conditioning(null.tokens, mask, torch.zeros(1, 1280)))
    assert torch.equal(kept.mask, mask) and torch.equal(kept.pooled, embedding.pooled)
    bare = NegativeEmbedding(embedding.tokens)
    assert torch.equal(
        suited(bare, Conditioning(null.tokens, None, torch.full((1, 1280), 2.0))).pooled[0, :1], torch.tensor([2.0])
    )
    assert "pooled_output" not in to_host(bare)[0][1]
