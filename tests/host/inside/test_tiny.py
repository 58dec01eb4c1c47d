"""The embedded world through the host's own classes: it is the core's, stock nodes work on it, and what is learned on
it is really better."""

import json
from typing import Any

import latent_preview
import numpy as np
import pytest
import torch
from reneg_pack.nodes.compare import CompareNegatives
from reneg_pack.nodes.host import rewards
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.host.text import embedding_from, encode
from reneg_pack.nodes.layout import to_bchw
from reneg_pack.nodes.older import TrainEmbedding
from reneg_pack.nodes.sampling import CFGSampler
from reneg_pack.nodes.tiny import LoadTinyWorld

import nodes
from reneg_core.guidance import Guidance
from reneg_core.sampling import Sampling, Size, sample
from reneg_core.tiny import HANDWRITTEN_NEGATIVE, measure, train_prompts, validation_prompts
from reneg_core.tiny import test_prompts as held_out_prompts

PROMPTS = held_out_prompts()[:4]
SAMPLING = Sampling("dpmpp_2m", 10, "karras", Guidance(3.0), Size(32, 32))


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    """What the node gives, by name."""
    with torch.inference_mode():
        return dict(zip(("model", "clip", "vae", "latent"), LoadTinyWorld.execute(len(PROMPTS)).args, strict=True))


@pytest.fixture(scope="module")
def core() -> Any:
    from reneg_core.backends import load_model

    with torch.inference_mode(False):
        return load_model("tiny", device="cpu", dtype="fp32")


def drawn(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of four seeds and the pictures made of it."""
    with torch.inference_mode(False), torch.no_grad():

        def work(inside: Any) -> tuple[torch.Tensor, torch.Tensor]:
            negative = inside.encode([HANDWRITTEN_NEGATIVE]).expand(len(PROMPTS))
            noise = inside.noise(range(len(PROMPTS)), SAMPLING.size)
            return noise, inside.decode(sample(inside, inside.encode(PROMPTS), negative, noise, SAMPLING))

        return model.run(work)


def test_its_pictures_are_those_of_the_core(world, core) -> None:
    host = HostModel(world["model"], world["clip"], world["vae"], scheduler="karras", size=SAMPLING.size)
    assert host.family == core.family and host.width == core.width
    for prompt in ("", *PROMPTS, HANDWRITTEN_NEGATIVE):
        assert (encode(world["clip"], prompt)[0].tokens - core.encode([prompt]).tokens).abs().max() < 1e-5
    (noise, pictures), (same, wanted) = drawn(host), drawn(core)
    assert torch.equal(noise, same)
    assert (pictures - wanted).abs().max() < 1e-4
    assert wanted.std() > 0.1


def rendered(world: dict[str, Any], prompt: str, negative: list, latent: dict, seed: int = 0) -> torch.Tensor:
    """IMAGE of the stock KSampler and VAE Decode."""
    positive = encoded(world, prompt)
    settings = (seed, SAMPLING.steps, SAMPLING.guidance.scale, "dpmpp_2m", "karras")
    found = nodes.KSampler().sample(world["model"], *settings, positive, negative, latent)[0]
    return nodes.VAEDecode().decode(world["vae"], found)[0]


def test_stock_nodes_work_on_it(world) -> None:
    pictures = rendered(world, PROMPTS[0], encoded(world, ""), world["latent"])
    assert pictures.shape == (len(PROMPTS), 32, 32, 3)
    assert measure(to_bchw(pictures), [PROMPTS[0]]).mean() > 0.7, "it shows what the prompt says"
    back = nodes.VAEEncode().encode(world["vae"], pictures)[0]["samples"]
    assert back.shape == world["latent"]["samples"].shape
    again = nodes.VAEDecode().decode(world["vae"], {"samples": back})[0]
    assert (again - pictures).abs().mean() < 0.03


def test_the_stock_empty_latent_fits_and_our_sampler_takes_it_as_ksampler_does(call, world) -> None:
    """Older hosts count eight pixels a latent, newer ones ask the model: the channels always fit."""
    empty = nodes.EmptyLatentImage().generate(64, 64, 1)[0]
    positive, negative = encoded(world, PROMPTS[0]), encoded(world, "")
    pictures = rendered(world, PROMPTS[0], negative, empty)
    assert pictures.shape[0] == 1 and pictures.shape[1] in (32, 64)
    neutral = {"strength": 1.0, "guidance_start": 0.0, "guidance_end": 1.0, "rescale": 0.0, "denoise": 1.0, "seed": 0}
    options = {"steps": SAMPLING.steps, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", **neutral}
    words = embedding_from(negative, "width-128")
    ours = call(CFGSampler, model=world["model"], positive=positive, embedding=words, latent_image=empty, **options)[0]
    assert torch.equal(nodes.VAEDecode().decode(world["vae"], ours)[0], pictures)
    assert "downscale_ratio_spacial" not in ours


def test_a_sampler_can_preview_it(world) -> None:
    pictures = rendered(world, PROMPTS[0], encoded(world, ""), world["latent"])
    latents = world["model"].model.process_latent_in(world["vae"].encode(pictures[:1]))
    colours = world["model"].model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(colours.latent_rgb_factors, colours.latent_rgb_factors_bias)
    shown = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latents))).movedim(-1, 0) / 255
    small = torch.nn.functional.interpolate(pictures[:1].movedim(-1, 1), (8, 8), mode="area")[0]
    assert (shown - small).abs().mean() < 0.15
    assert torch.corrcoef(torch.stack([shown.flatten(), small.flatten()]))[0, 1] > 0.8


def encoded(world: dict[str, Any], text: str) -> list:
    return nodes.CLIPTextEncode().encode(world["clip"], text)[0]


@pytest.fixture(scope="module")
def learned(call, world) -> Any:
    """A negative learned by the training node in seconds, from the empty prompt."""
    options = {
        **{"width": 32, "height": 32, "sampling_steps": 10, "cfg": 3.0, "scheduler": "karras", "solver": "dpmpp_2m"},
        **{"learning_rate": 0.03, "points": 1, "last_steps": 10, "through": 0, "checkpointing": False},
        **{"steps": 30, "batch_size": 16, "micro_batch": 16, "seed": 0, "validate_every": 10, "validation_pairs": 24},
        **{"patience": 0, "norm_limit": 0.0, "prompts": "\n".join(train_prompts()), "prompt_file": "none"},
        **{"validation_prompts": "\n".join(validation_prompts()), "run_name": "test_quality"},
    }
    parts = {name: world[name] for name in ("model", "clip", "vae")}
    with torch.inference_mode():
        return call(TrainEmbedding, **parts, reward=rewards.load("tiny", None, torch.float32), **options)


def test_what_is_learned_is_better_by_reward_and_by_the_independent_measure(world, learned) -> None:
    """On prompts that nothing was trained on, through the stock sampler: not only other pictures, but better ones."""
    report = json.loads(learned[4])
    assert report["reason"] == "done" and report["best_reward"] > report["start_reward"] + 0.1
    judge, found = rewards.load("tiny", None, torch.float32).load(), {}
    for name, negative in (("empty", encoded(world, "")), ("learned", learned[0])):
        batches = [
            (to_bchw(rendered(world, prompt, negative, {"samples": torch.zeros(8, 12, 8, 8)}, seed)), [prompt] * 8)
            for seed, prompt in enumerate(held_out_prompts()[::9])
        ]
        found[name] = [
            torch.cat([score(images, prompts) for images, prompts in batches]).mean().item()
            for score in (judge.score, measure)
        ]
    assert found["learned"][0] > found["empty"][0] + 0.1, found
    assert found["learned"][1] > found["empty"][1] + 0.01, found


def test_the_comparison_says_which_negative_is_better(call, world, learned) -> None:
    options = {"width": 32, "height": 32, "sampling_steps": 10, "cfg": 3.0, "scheduler": "karras", "solver": "dpmpp_2m"}
    options |= {"prompts": "\n".join(PROMPTS), "seeds": 6, "first_seed": 0, "adapted": False, "micro_batch": 24}
    parts = {name: world[name] for name in ("model", "clip", "vae")}
    tiny = rewards.load("tiny", None, torch.float32)
    out = call(CompareNegatives, **parts, **options, reward=tiny, embedding=learned[1])
    report = json.loads(out[2])
    assert report["embedding"]["tiny_mean"] > report["none"]["tiny_mean"] + 0.1
    assert out[0].shape[2] > 2 * 96, "small pictures are enlarged"
