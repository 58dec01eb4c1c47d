"""ReNeg CFG Sampler and Guider against the stock nodes."""

from typing import Any

import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from reneg_pack.nodes.host import sampling
from reneg_pack.nodes.layout import to_host
from reneg_pack.nodes.sampling import CFGSampler, Guider

import nodes

SETTINGS = {"seed": 7, "steps": 3, "cfg": 7.5, "scheduler": "normal", "denoise": 1.0}


def stock(model: Any, positive: list, negative: list, latent: dict, sampler: str, **changes: Any) -> torch.Tensor:
    s = {**SETTINGS, **changes}
    return nodes.KSampler().sample(
        model, s["seed"], s["steps"], s["cfg"], sampler, s["scheduler"], positive, negative, latent, s["denoise"]
    )[0]["samples"]


@pytest.mark.parametrize("sampler", ["euler", "dpm_2", "ddim", "dpmpp_2m_sde", "euler_ancestral", "uni_pc"])
def test_equals_stock_bit_for_bit(sampler, call, checkpoint, positive, embedding, latent) -> None:
    ours = call(
        CFGSampler,
        model=checkpoint[0],
        positive=positive,
        embedding=embedding,
        latent_image=latent,
        sampler_name=sampler,
        **SETTINGS,
    )[0]["samples"]
    theirs = stock(checkpoint[0], positive, to_host(embedding), latent, sampler)
    assert torch.equal(ours, theirs)
    other = stock(checkpoint[0], positive, positive, latent, sampler)
    assert not torch.equal(ours, other), "the comparison can fail: another negative gives other latents"


def test_masks_batches_and_denoise_as_stock(call, checkpoint, positive, embedding) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    generator = torch.Generator().manual_seed(3)
    latent = {"samples": torch.randn(2, 4, 8, 8, generator=generator), "noise_mask": mask, "batch_index": [4, 1]}
    settings = {**SETTINGS, "denoise": 0.6}
    ours = call(
        CFGSampler,
        model=checkpoint[0],
        positive=positive,
        embedding=embedding,
        latent_image=latent,
        sampler_name="euler",
        **settings,
    )[0]
    theirs = stock(checkpoint[0], positive, to_host(embedding), latent, "euler", denoise=0.6)
    assert torch.equal(ours["samples"], theirs)
    assert ours["batch_index"] == [4, 1]


def test_control_net_of_the_negative_is_kept(call, checkpoint, positive, embedding, latent) -> None:
    net = nodes.ControlNetLoader().load_controlnet("reneg-test-control.safetensors")[0]
    empty = nodes.CLIPTextEncode().encode(checkpoint[1], "")[0]
    hint = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    both = nodes.ControlNetApplyAdvanced().apply_controlnet(positive, empty, net, hint, 1.0, 0.0, 1.0)
    ours = call(
        CFGSampler,
        model=checkpoint[0],
        positive=both[0],
        negative=both[1],
        embedding=embedding,
        latent_image=latent,
        sampler_name="euler",
        **SETTINGS,
    )[0]["samples"]
    replaced = [[embedding.tokens, both[1][0][1]]]
    assert torch.equal(ours, stock(checkpoint[0], both[0], replaced, latent, "euler"))
    assert not torch.equal(ours, stock(checkpoint[0], positive, to_host(embedding), latent, "euler"))


def test_strength_goes_from_the_negative_to_the_embedding(call, checkpoint, positive, embedding, latent) -> None:
    base = nodes.CLIPTextEncode().encode(checkpoint[1], "ugly")[0]
    inputs = {
        "model": checkpoint[0],
        "positive": positive,
        "embedding": embedding,
        "latent_image": latent,
        "negative": base,
        "sampler_name": "euler",
        **SETTINGS,
    }
    at_zero = call(CFGSampler, **inputs, strength=0.0)[0]["samples"]
    assert torch.equal(at_zero, stock(checkpoint[0], positive, base, latent, "euler"))
    with pytest.raises(ValueError, match=r"strength 0.5 without a negative.*set the strength to 1"):
        call(CFGSampler, **{**inputs, "negative": None}, strength=0.5)


def test_interval_runs_the_positive_alone_outside(call, checkpoint, positive, embedding, latent, monkeypatch) -> None:
    passes = []
    original = comfy.samplers.calc_cond_batch

    def counting(model: Any, conds: list, *rest: Any) -> Any:
        passes.append(len(conds))
        return original(model, conds, *rest)

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", counting)
    inputs = {
        "model": checkpoint[0],
        "positive": positive,
        "embedding": embedding,
        "latent_image": latent,
        "sampler_name": "euler",
        **SETTINGS,
        "steps": 4,
    }
    before = dict(checkpoint[0].model_options)
    call(CFGSampler, **inputs, guidance_start=0.3, guidance_end=0.7)
    assert passes[0] == 1 and passes[-1] == 1 and 2 in passes
    assert checkpoint[0].model_options == before


def test_interval_that_excludes_all_equals_cfg_one(call, checkpoint, positive, embedding, latent) -> None:
    inputs = {
        "model": checkpoint[0],
        "positive": positive,
        "embedding": embedding,
        "latent_image": latent,
        "sampler_name": "euler",
        **SETTINGS,
    }
    off = call(CFGSampler, **inputs, guidance_start=0.3, guidance_end=0.30001)[0]["samples"]
    assert torch.equal(off, stock(checkpoint[0], positive, positive, latent, "euler", cfg=1.0))


def test_rescale_equals_the_core(checkpoint) -> None:
    from reneg_core.guidance import Guidance, rescale

    model = sampling.guided(checkpoint[0], Guidance(7.5, rescale=0.7))
    [function] = model.model_options["sampler_post_cfg_function"]
    a, b = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.equal(function({"denoised": a, "cond_denoised": b}), rescale(a, b, 0.7))
    assert sampling.guided(checkpoint[0], Guidance(7.5)) is checkpoint[0]


def test_cfg_one_warns(call, checkpoint, positive, embedding, latent, caplog) -> None:
    call(
        CFGSampler,
        model=checkpoint[0],
        positive=positive,
        embedding=embedding,
        latent_image=latent,
        sampler_name="euler",
        **{**SETTINGS, "cfg": 1.0, "steps": 1},
    )
    assert "cfg is 1: the negative has no effect" in caplog.text


@pytest.mark.parametrize("tokens", [77, 154, 120])
def test_any_token_count_samples(tokens, call, checkpoint, positive, latent) -> None:
    from reneg_core import NegativeEmbedding

    long = NegativeEmbedding(torch.randn(1, tokens, 768, generator=torch.Generator().manual_seed(tokens)))
    ours = call(
        CFGSampler,
        model=checkpoint[0],
        positive=positive,
        embedding=long,
        latent_image=latent,
        sampler_name="euler",
        **SETTINGS,
    )[0]["samples"]
    assert torch.equal(ours, stock(checkpoint[0], positive, [[long.tokens, {}]], latent, "euler"))
    assert torch.isfinite(ours).all()


def test_wrong_family_is_refused_by_name(call, checkpoint, positive, latent) -> None:
    from reneg_core import NegativeEmbedding

    wrong = NegativeEmbedding(torch.zeros(1, 77, 1024))
    with pytest.raises(ValueError, match=r"openclip-h.*this model uses clip-l.*sd1\.5_reneg_emb\.bin"):
        call(
            CFGSampler,
            model=checkpoint[0],
            positive=positive,
            embedding=wrong,
            latent_image=latent,
            sampler_name="euler",
            **SETTINGS,
        )


def test_guider_equals_stock_guider(call, checkpoint, positive, embedding, latent) -> None:
    noise = custom.Noise_RandomNoise(7)
    sigmas = comfy.samplers.calculate_sigmas(checkpoint[0].get_model_object("model_sampling"), "normal", 3)
    stock_guider = comfy.samplers.CFGGuider(checkpoint[0])
    stock_guider.set_conds(positive, to_host(embedding))
    stock_guider.set_cfg(7.5)
    ours = call(Guider, model=checkpoint[0], positive=positive, embedding=embedding, cfg=7.5)[0]
    sampler = comfy.samplers.sampler_object("euler")
    results = [
        g.sample(noise.generate_noise(latent), latent["samples"], sampler, sigmas, seed=7) for g in (ours, stock_guider)
    ]
    assert torch.equal(*results)
