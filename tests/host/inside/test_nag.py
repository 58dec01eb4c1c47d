"""A negative at cfg 1, through the host's own node for normalised attention guidance, which newer versions have."""

from typing import Any

import pytest
import torch
from reneg_pack.nodes.embedding import LoadEmbedding, SaveEmbedding
from reneg_pack.nodes.host.text import embedding_from

import nodes

nag = pytest.importorskip("comfy_extras.nodes_nag", reason="THIS COMFYUI HAS NO NAGuidance: its test is skipped")
WORDS = "watermark, border, lines, double"


@pytest.fixture(scope="module")
def drawn(world: tuple) -> Any:
    """``drawn(negative, guided)``: latents of the stock KSampler at cfg 1."""
    model, clip, _ = world
    with torch.inference_mode():
        positive = nodes.CLIPTextEncode().encode(clip, "a red circle on a blue background")[0]
        patched = nag.NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]

    def sample(negative: list, guided: bool) -> torch.Tensor:
        used, latent = patched if guided else model, {"samples": torch.zeros(2, 12, 8, 8)}
        out = nodes.KSampler().sample(used, 3, 6, 1.0, "dpmpp_2m", "karras", positive, negative, latent)
        return out[0]["samples"]

    return sample


def test_a_negative_acts_at_cfg_1_and_strength_says_how_much(call, world, drawn) -> None:
    clip = world[1]
    words = embedding_from(nodes.CLIPTextEncode().encode(clip, WORDS)[0], "width-128")
    name = call(SaveEmbedding, embedding=words, filename="nag_words", layout="reneg")[0]
    loaded = {s: call(LoadEmbedding, embedding_name=name, strength=s, clip=clip)[0] for s in (0.0, 1.0, 2.0)}
    empty = nodes.CLIPTextEncode().encode(clip, "")[0]
    assert torch.equal(drawn(loaded[1.0], False), drawn(empty, False)), "at cfg 1 no negative acts by itself"
    none, plain, double = (drawn(loaded[s], True) for s in (0.0, 1.0, 2.0))
    assert torch.allclose(none, drawn(empty, True), atol=1e-4), "strength 0 is the empty prompt"
    assert (plain - none).abs().mean() > 0.01
    assert (double - none).abs().mean() > (plain - none).abs().mean(), "and more strength is further from it"
