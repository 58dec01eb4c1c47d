"""The published embeddings, where they are at hand, drive the host's samplers at their encoder's full width."""

import folder_paths
import pytest
import torch
from family_checks import LONG, built, encoded, run_node
from networks import empty_latent

import nodes

SD15, SD21 = "reneg-test-sd15.safetensors", "reneg-test-sd21.safetensors"
NAMES = folder_paths.get_filename_list("reneg")
FILES = {
    "sd1.4_reneg_emb.bin": (SD15, (1, 77, 768)),
    "sd1.5_reneg_emb.bin": (SD15, (1, 77, 768)),
    "sd2.1_reneg_emb.bin": (SD21, (1, 77, 1024)),
}
SETTINGS = {"seed": 5, "steps": 3, "cfg": 7.5, "sampler_name": "euler", "scheduler": "simple"}

if not set(FILES) <= set(NAMES):
    pytest.skip("THE PUBLISHED EMBEDDINGS ARE NOT AT HAND: their tests are skipped", allow_module_level=True)


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_the_negative_of_its_stable_diffusion(name: str) -> None:
    checkpoint, shape = FILES[name]
    model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint)[:3]
    loaded = run_node("ReNegLoadEmbedding", embedding_name=name, strength=1.0, clip=clip)
    assert loaded[0][0][0].shape == shape and loaded[1].length == 77
    positive, empty = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red house", ""))
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    parts = {"model": model, "positive": positive, "embedding": loaded[1], "latent_image": latent}
    ours = run_node("ReNegCFGSampler", **SETTINGS, **parts, denoise=1.0)[0]["samples"]
    stock, without = (
        nodes.KSampler().sample(model, *SETTINGS.values(), positive, negative, latent)[0]["samples"]
        for negative in (loaded[0], empty)
    )
    assert torch.equal(ours, stock) and not torch.allclose(stock, without, rtol=1e-3)
    assert nodes.VAEDecode().decode(vae, {"samples": stock})[0].isfinite().all()


@pytest.mark.parametrize("family", ["pixart", "pixart_sigma", "ltxv", "chroma"])
def test_pixarts_published_file_is_the_negative_of_what_reads_t5(family: str) -> None:
    one, latent = built(family), empty_latent(built(family))
    name = "pixart-alpha_reneg_emb.bin"
    loaded = run_node("ReNegLoadEmbedding", embedding_name=name, strength=1.0, clip=one.parts[1])
    assert loaded[0][0][0].shape == (1, 120, 4096) and loaded[1].pooled is None
    positive = encoded(family, LONG)
    parts = {"model": one.model, "positive": positive, "embedding": loaded[1], "latent_image": latent}
    ours = run_node("ReNegCFGSampler", **SETTINGS, **parts, denoise=1.0)[0]["samples"]
    stock, empty = (
        nodes.KSampler().sample(one.model, *SETTINGS.values(), positive, negative, latent)[0]["samples"]
        for negative in (loaded[0], encoded(family, ""))
    )
    assert torch.equal(ours, stock) and not torch.allclose(stock, empty, rtol=1e-4) and stock.isfinite().all()
