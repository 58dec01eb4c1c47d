"""LTX-Video by its own nodes: PixArt-alpha's embedding, in the layout of the published file, is its negative."""

from pathlib import Path
from typing import Any

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_extras import nodes_lt
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from family_checks import LONG, built, encoded, run_node
from torch import Tensor

import nodes

RATE, CFG = 30.0, 3.0
SHIFTS = {"max_shift": 2.05, "base_shift": 0.95}


@pytest.fixture(scope="module")
def negative() -> Any:
    """What the loader gives for a file of 120 tokens and nothing else."""
    folder = Path(folder_paths.get_folder_paths("reneg")[0])
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(False):
        tokens = torch.randn(1, 120, 4096, generator=torch.Generator().manual_seed(8))
        torch.save(tokens, folder / "pixart-alpha_reneg_emb.bin")
    clip = built("ltxv").parts[1]
    return run_node("ReNegLoadEmbedding", embedding_name="pixart-alpha_reneg_emb.bin", strength=1.0, clip=clip)


def sampled(guider: Any, latent: dict[str, Tensor], sigmas: Tensor) -> Tensor:
    noise = Noise_RandomNoise(7).generate_noise(latent)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, latent["samples"], sampler, sigmas, disable_pbar=True, seed=7)


def stock(model: Any, positive: list, negative: list) -> Any:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    return guider


def test_pixarts_embedding_drives_ltx_video(negative: Any) -> None:
    conditioning, embedding = negative[0], negative[1]
    [[tokens, extra]] = conditioning
    assert tokens.shape == (1, 120, 4096) and extra["attention_mask"].tolist() == [[1] * 120]

    one = built("ltxv")
    latent = nodes_lt.EmptyLTXVLatentVideo.execute(64, 64, 17)[0]
    assert latent["samples"].shape == (1, 128, 3, 2, 2)
    model = nodes_lt.ModelSamplingLTXV.execute(one.model, **SHIFTS, latent=latent)[0]
    sigmas = nodes_lt.LTXVScheduler.execute(3, **SHIFTS, stretch=True, terminal=0.1, latent=latent)[0]
    positive, prepared = nodes_lt.LTXVConditioning.execute(encoded("ltxv", LONG), conditioning, RATE).args
    _, empty = nodes_lt.LTXVConditioning.execute(positive, encoded("ltxv", ""), RATE).args

    found = {
        "ours": run_node("ReNegGuider", model=model, positive=positive, embedding=embedding, cfg=CFG)[0],
        "stock": stock(model, positive, prepared),
        "without a rate": stock(model, positive, conditioning),
        "empty": stock(model, positive, empty),
    }
    latents = {name: sampled(guider, latent, sigmas) for name, guider in found.items()}
    assert torch.equal(latents["ours"], latents["stock"])
    for other in ("without a rate", "empty"):
        assert not torch.allclose(latents["ours"], latents[other], rtol=1e-3), other
    clip = nodes.VAEDecode().decode(one.parts[2], {"samples": latents["ours"]})[0]
    assert clip.shape == (17, 64, 64, 3) and clip.isfinite().all()
