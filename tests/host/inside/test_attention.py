"""Attention guidance inside the host's UNets: the core's numbers, its gradient, other patches beside it, and what a
training through it learns, drawn by the sampler node."""

import importlib
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import networks
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from reneg_pack.nodes.compare import CompareNegatives
from reneg_pack.nodes.host import rewards
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.host.text import embedding_from
from reneg_pack.nodes.sampling import CFGSampler, Guider
from reneg_pack.nodes.training import Train, TrainingSettings
from torch import Tensor

import nodes
from reneg_core.backends import load_model
from reneg_core.guidance import Guidance, attend
from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling, Size, sample
from reneg_core.tiny import train_prompts, validation_prompts
from reneg_core.training import Batch, Reach, reward_gradient

PROMPTS = ["a red circle on a blue background", "a green ring on a white background"]
WORDS = "watermark, border, lines, double"
SIGMA = torch.tensor(2.0)
NAG = Sampling("euler", 4, "trailing", Guidance(1.0, attention=4.0), Size(32, 32))
DRAWN = {"seed": 3, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def host(parts: tuple, **options: Any) -> HostModel:
    return HostModel(*parts[:3], scheduler="simple", size=Size(32, 32), **options)


def inside(parts: tuple, work: Callable[[HostModel], Any], kind: Callable[..., HostModel] = host) -> Any:
    with torch.inference_mode(False), torch.no_grad():
        return kind(parts).run(work)


def passed(model: Any, negative: Conditioning | None = None, strength: float = 4.0) -> Tensor:
    """One guided pass of two prompts."""
    positive = model.encode(PROMPTS)
    negative = model.encode([WORDS]) if negative is None else negative
    return model.attended(model.noise([1, 2], Size(32, 32)), SIGMA, positive, negative.expand(2), strength)


@pytest.fixture(scope="module")
def core() -> Any:
    with torch.inference_mode(False):
        return load_model("tiny", device="cpu", dtype="fp32")


@pytest.mark.parametrize("strength", [0.0, 4.0, 20.0])
def test_a_guided_pass_is_the_cores(world, core, strength: float) -> None:
    ours, theirs = inside(world, lambda m: passed(m, strength=strength)), passed(core, strength=strength).detach()
    assert (ours - theirs).abs().max() < 1e-4
    plain = inside(world, lambda m: m.denoise(m.noise([1, 2]), SIGMA, m.encode(PROMPTS)))
    assert ((ours - plain).abs().max() > 0.01) == (strength > 0)


def test_rows_may_have_negatives_of_their_own_and_of_other_lengths(world, core) -> None:
    words = core.encode([WORDS, ""])
    alone = [inside(world, lambda m, i=i: passed(m, words[[i]])) for i in (0, 1)]
    both = inside(world, lambda m: passed(m, words))
    assert torch.allclose(both, torch.stack([alone[0][0], alone[1][1]]), atol=1e-5)
    cut = Conditioning(words.tokens[:1, :5])
    assert (inside(world, lambda m: passed(m, cut)) - passed(core, cut).detach()).abs().max() < 1e-4
    masked = replace(words[:1], mask=(torch.arange(words.tokens.shape[1]) < 5).long()[None])
    assert torch.equal(inside(world, lambda m: passed(m, masked)), inside(world, lambda m: passed(m, cut)))


@pytest.mark.parametrize("through", [1, 0])
def test_the_gradient_is_the_cores_also_when_activations_are_computed_again(world, core, through: int) -> None:
    def gradient(model: Any, checkpointing: bool = False) -> Tensor:
        model.checkpointing(checkpointing)
        batch = Batch(PROMPTS, model.encode(PROMPTS), model.noise([3, 4], Size(32, 32)))
        words, points = model.encode([WORDS]), [3] if through else [0]
        return reward_gradient(model, reward, batch, words, NAG, Reach(points, through)).tokens

    with torch.inference_mode(False):
        reward = rewards.load("tiny", None, torch.float32).load()
        wanted = gradient(core)
        for checkpointing in (False, True):
            found = host(world).run(lambda m, again=checkpointing: gradient(m, again))
            assert (found - wanted).norm() / wanted.norm() < 1e-3
    assert wanted.norm() > 0


@contextmanager
def by_hand(model: Any, negative: Tensor, strength: float) -> Any:
    """Every cross-attention of a UNet guided without patches: what :mod:`nodes.host.attention` is to compute."""
    blocks = [module for module in model.model.diffusion_model.modules() if isinstance(module, BasicTransformerBlock)]

    def guided(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, context=None, **rest: attend(
            own(x, context=context, **rest), own(x, context=negative.expand(len(x), -1, -1), **rest), strength
        )

    for block in blocks:
        block.attn2.forward = guided(block.attn2.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.attn2.forward


@pytest.mark.parametrize("name", ["SD1.5", "SDXL"])
def test_it_guides_every_cross_attention_of_stable_diffusion(checkpoint, name: str) -> None:
    parts = checkpoint if name == "SD1.5" else networks.build("sdxl").parts
    made = lambda parts: HostModel(*parts, size=Size(64, 64))  # noqa: E731
    read = inside(parts, lambda m: (m.noise([1, 2]), m.encode(PROMPTS), m.encode([WORDS])), made)
    noise, positive, negative = read
    ours = inside(parts, lambda m: m.attended(noise, SIGMA, positive, negative, 4.0), made)
    with by_hand(parts[0], negative.tokens, 4.0):
        wanted = inside(parts, lambda m: m.denoise(noise, SIGMA, positive), made)
    assert (ours - wanted).abs().max() < 1e-4
    assert (ours - inside(parts, lambda m: m.denoise(noise, SIGMA, positive), made)).abs().max() > 1e-3


def patched(world: tuple, add: str, patch: Callable[..., Any]) -> tuple:
    model = world[0].clone()
    getattr(model, add)(patch)
    return (model, *world[1:])


def test_patches_that_are_there_act_on_both_as_branches(world, core) -> None:
    """A patch of the inputs and one of the outputs see the negative's rows as the other branch's."""
    seen = []

    def of_inputs(n: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple:
        seen.append((options["cond_or_uncond"], len(options["uuids"]), len(n), len(context)))
        return n, context, value * torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1)

    def of_outputs(out: Tensor, options: dict[str, Any]) -> Tensor:
        seen.append((options["cond_or_uncond"], len(options["uuids"]), len(out), len(out)))
        return out

    changed = patched(world, "set_model_attn2_patch", of_inputs)
    changed[0].set_model_attn2_output_patch(of_outputs)
    found = inside(changed, passed)
    assert seen and all(one == ([0, 1], 2, 4, 4) for one in seen)
    silent = inside(changed, lambda m: passed(m, m.encode([""])))
    assert torch.allclose(found, silent, atol=1e-5), "without values no negative says anything"
    assert not torch.allclose(found, inside(world, passed), atol=1e-2)
    assert torch.equal(inside(world, passed), inside(world, passed)), "the user's MODEL is left alone"


def stock_node() -> Any:
    try:
        return importlib.import_module("comfy_extras.nodes_nag").NAGuidance
    except ImportError:
        pytest.skip("THIS COMFYUI HAS NO NAGuidance: nothing to compare with")


def test_the_stock_nodes_formula_is_ours_at_alpha_half_and_tau_two_and_a_half(world) -> None:
    """The stock scale is one more than ours. Put on cross-attention in our place, it gives the same pass."""
    guided = stock_node().execute(world[0], 5.0, 0.5, 2.5).args[0]
    [formula] = guided.model_options["transformer_options"]["patches"]["attn1_output_patch"]
    there = patched(world, "set_model_attn2_output_patch", lambda out, options: formula(out.clone(), options))
    assert (inside(there, lambda m: passed(m, strength=0.0)) - inside(world, passed)).abs().max() < 1e-4
    other = stock_node().execute(world[0], 5.0, 0.5, 1.5).args[0]
    [formula] = other.model_options["transformer_options"]["patches"]["attn1_output_patch"]
    assert (inside(there, lambda m: passed(m, strength=0.0)) - inside(world, passed)).abs().max() > 1e-3


def test_where_the_stock_node_guides_is_another_place(call, world) -> None:
    """It guides self-attention, between two branches of their own: the same negative gives another picture."""
    guided = stock_node().execute(world[0], 5.0, 0.5, 2.5).args[0]
    positive, negative = (nodes.CLIPTextEncode().encode(world[1], text)[0] for text in (PROMPTS[0], WORDS))
    latent = {"samples": torch.zeros(2, 12, 8, 8)}
    theirs = nodes.KSampler().sample(guided, 3, 4, 1.0, "euler", "simple", positive, negative, latent)[0]
    ours = drawn(call, world, attention_guidance=4.0)
    assert (theirs["samples"] - ours).abs().mean() > 0.01


def drawn(call: Any, world: tuple, negative: list | None = None, **extras: Any) -> Tensor:
    """Latents of the sampler node at cfg 1."""
    positive, words = (nodes.CLIPTextEncode().encode(world[1], text)[0] for text in (PROMPTS[0], WORDS))
    embedding, latent = embedding_from(words, "width-128"), {"samples": torch.zeros(2, 12, 8, 8)}
    options = {**DRAWN, **extras, "negative": negative}
    given = {"model": world[0], "positive": positive, "embedding": embedding, "latent_image": latent}
    return call(CFGSampler, **given, **options)[0]["samples"]


def test_the_sampler_node_draws_what_training_saw(call, world) -> None:
    def rolled(model: HostModel) -> Tensor:
        noise = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(3))
        return sample(model, model.encode(PROMPTS[:1]), model.encode([WORDS]), noise, NAG)

    wanted = world[0].model.process_latent_out(inside(world, rolled))
    found = drawn(call, world, attention_guidance=4.0)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    plain = drawn(call, world)
    assert (found - plain).abs().mean() > 0.01 and not torch.equal(drawn(call, world, attention_guidance=2.0), found)
    empty = nodes.CLIPTextEncode().encode(world[1], "")[0]
    assert torch.equal(drawn(call, world, empty, attention_guidance=4.0, guidance_start=0.99), plain), (
        "no step begins inside the interval"
    )
    early = drawn(call, world, attention_guidance=4.0, guidance_end=0.5)
    assert not torch.equal(early, plain) and not torch.equal(early, found)


def test_the_guider_does_the_same(call, world) -> None:
    positive, words = (nodes.CLIPTextEncode().encode(world[1], text)[0] for text in (PROMPTS[0], WORDS))
    embedding = embedding_from(words, "width-128")
    given = {"model": world[0], "positive": positive, "embedding": embedding, "cfg": 1.0}
    made = call(Guider, **given, attention_guidance=4.0)[0]
    noise = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(3))
    sigmas = nodes.comfy.samplers.calculate_sigmas(world[0].get_model_object("model_sampling"), "simple", 4)
    found = made.sample(noise, torch.zeros_like(noise), nodes.comfy.samplers.sampler_object("euler"), sigmas, seed=3)
    assert torch.allclose(found, drawn(call, world, attention_guidance=4.0), atol=1e-5)


def test_what_cannot_be_guided_is_refused_before_any_work(call, world, checkpoint, positive) -> None:
    with pytest.raises(ValueError, match=r"attention guidance 4 with the guidance scale 7\.5, expected scale 1"):
        drawn(call, world, cfg=7.5, attention_guidance=4.0)
    with pytest.raises(ValueError, match=r"attention guidance 2 with the guidance scale 3, expected scale 1"):
        call(TrainingSettings, cfg=3.0, attention_guidance=2.0)
    words = nodes.CLIPTextEncode().encode(world[1], WORDS)[0]
    for wrong, said in (([*words, *words], "of 2 parts"), ([[words[0][0], {"area": (1, 1, 0, 0)}]], "with area")):
        with pytest.raises(ValueError, match=f"Got a negative {said} and attention guidance"):
            drawn(call, world, wrong, attention_guidance=4.0)
    other = networks.build("sd3")
    with pytest.raises(ValueError, match=r"attention guidance for a SD3.*Stable Diffusion 1, 2, XL"):
        trained(call, other.parts, "nag_refused", steps=2)
    with pytest.raises(ValueError, match="Got cfg 1, where no negative acts"):
        compared(call, world, 0.0)


SETTINGS = {
    **{"sampling_steps": 4, "cfg": 1.0, "learning_rate": 0.05, "micro_batch": 16, "batch_size": 16},
    **{"scheduler": "karras", "solver": "dpmpp_2m", "checkpointing": False, "points": 1, "last_steps": 4},
    **{"through": 0, "validate_every": 6, "validation_pairs": 24, "patience": 0, "norm_limit": 0.0, "vary": "off"},
    **{"prompt_file": "none", "width": 0, "height": 0, "attention_guidance": 4.0},
}


def trained(call: Any, parts: tuple, run: str, steps: int, **changes: Any) -> Any:
    settings = call(TrainingSettings, **{**SETTINGS, **changes}, validation_prompts="\n".join(validation_prompts()))[0]
    named = dict(zip(("model", "clip", "vae"), parts, strict=True))
    own = {"preset": "from settings", "size": 32, "seed": 0, "existing_run": "continue", "steps": steps}
    reward = rewards.load("tiny", None, torch.float32)
    prompts = "\n".join(train_prompts())
    return call(Train, **named, reward=reward, prompts=prompts, run_name=run, settings=settings, **own)


def compared(call: Any, world: tuple, attention: float, **given: Any) -> dict[str, Any]:
    options = {"width": 32, "height": 32, "sampling_steps": 4, "cfg": 1.0, "scheduler": "karras", "solver": "dpmpp_2m"}
    options |= {"prompts": "\n".join(PROMPTS), "seeds": 8, "first_seed": 0, "adapted": False, "micro_batch": 16}
    parts = dict(zip(("model", "clip", "vae"), world, strict=True))
    reward = rewards.load("tiny", None, torch.float32)
    return call(CompareNegatives, **parts, **options, **given, reward=reward, attention_guidance=attention)


def test_what_is_learned_through_it_is_better_and_says_how_it_is_sampled(call, world) -> None:
    out = trained(call, world, "nag_learned", 12)
    report = json.loads(out[4])
    assert report["best_reward"] > report["start_reward"] + 0.05, report
    assert report["sampling"]["guidance_attention"] == 4.0 and report["sampling"]["guidance_scale"] == 1.0
    shown = compared(call, world, 4.0, embedding=out[1])
    found = json.loads(shown[2])
    assert found["embedding"]["tiny_mean"] > found["none"]["tiny_mean"] + 0.05
    assert "learned for" not in shown.ui["text"][0], "the comparison samples as the training did"
    assert "attention guidance 4" in compared(call, world, 2.0, embedding=out[1]).ui["text"][0]


def test_a_varied_training_leaves_the_guidance_alone(call, world) -> None:
    report = json.loads(trained(call, world, "nag_varied", 2, vary="samplers and guidance")[4])
    assert report["steps"] == 2


def test_it_can_be_told_for_every_row_of_a_batch() -> None:
    """Without a UNet: what the patches make of rows, tokens and branches."""
    from reneg_pack.nodes.host import attention

    negative, context = torch.full((2, 3, 4), 2.0), torch.ones(4, 2, 4)
    options = {"cond_or_uncond": [0, 0], "uuids": ["a", "b"], attention.TOLD: attention.Away(negative, 1.0)}
    queries, tokens, value = attention._twice(torch.zeros(4, 5, 4), context, context, options)
    assert queries.shape == (8, 5, 4) and tokens.shape == (8, 6, 4) and value is tokens
    assert tokens[:4].eq(1).all() and tokens[4:].eq(2).all()
    assert options["cond_or_uncond"] == [0, 0, 1, 1] and options["uuids"] == ["a", "b", "a", "b"]
    out = attention._joined(torch.ones(8, 5, 4, dtype=torch.float16), options)
    assert out.shape == (4, 5, 4) and out.dtype == torch.float16 and options["cond_or_uncond"] == [0, 0]
