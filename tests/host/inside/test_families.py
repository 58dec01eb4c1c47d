"""Every architecture on a small network of the host's own class: the same predictions and pictures as the host's, the
right gradient, and a reward that rises."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.sd
import comfy.text_encoders.pixart_t5
import pytest
import torch
from family_checks import (
    PARTS,
    SHORT,
    built,
    estimates,
    gradient_error,
    host_model,
    reference_error,
    samples,
    trained,
)
from networks import NETWORKS, Clip, Text, randomised
from reneg_pack.nodes.host.checks import check_trainable
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.layout import suited, to_host
from torch import Tensor

import nodes
from reneg_core.embedding import NegativeEmbedding
from reneg_core.sampling import Size

PADDED = {"pixart": 120, "pixart_sigma": 300, "chroma": 512}
"""Tokens that a training without a start has where the host pads nothing."""


@pytest.mark.parametrize("name", NETWORKS)
def test_estimates_are_the_hosts_own(name: str) -> None:
    for off, apart in estimates(name):
        print(f"{name}: {off:.1e}")
        assert off < 2e-6
        assert apart > 1e-4, "prompts are seen at all"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_learned_negative_samples_as_the_hosts_own_conditioning(name: str) -> None:
    ours, theirs, empty = samples(name)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, empty)


@pytest.mark.parametrize("through", [1, 2])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_gradients_are_those_of_finite_differences(name: str, part: str, through: int) -> None:
    error, slope = gradient_error(name, part, through)
    print(f"{name} {part} through {through}: slope {slope:.3e}, error {error:.1e}")
    assert slope > 1e-5 and error < 1e-2


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_gradients_are_those_of_a_network_that_may_change_what_it_saved(name: str, part: str) -> None:
    error = reference_error(name, part)
    print(f"{name} {part}: {error:.1e} of the reference")
    assert error < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_training_raises_the_reward_and_ksampler_shows_it(name: str) -> None:
    found, embedding = trained(name, f"family_{name}")
    print(name, found)
    assert found["after"] > found["before"] and found["ksampler_learned"] > found["ksampler_empty"]
    assert embedding.family == host_model(name).family
    assert (embedding.pooled is not None) == bool(built(name).network.text.pooled)
    assert embedding.length == PADDED.get(name, embedding.length)


def test_t5s_padding_is_what_the_empty_prompt_learns_in() -> None:
    """With the host's own tokenizer and a small T5: a prompt is the host's own up to its mask, then T5's padding."""
    target = SimpleNamespace(
        params={},
        tokenizer=comfy.text_encoders.pixart_t5.PixArtTokenizer,
        clip=comfy.text_encoders.pixart_t5.pixart_te(),
    )
    small = {"d_model": 4096, "d_ff": 8, "d_kv": 8, "num_heads": 1, "num_layers": 1, "vocab_size": 32128}
    clip = comfy.sd.CLIP(target, model_options={"t5xxl_model_config": small, "dtype": torch.float32})
    randomised(clip.cond_stage_model, 3)
    one = built("pixart")
    with torch.inference_mode(False):
        model = HostModel(one.model, clip, one.parts[2], size=Size(272, 272))
        null, red = (model.encode([text]) for text in ("", "a red house"))
    own = [nodes.CLIPTextEncode().encode(clip, text)[0][0][0] for text in ("", "a red house")]
    assert [tokens.shape[1] for tokens in own] == [1, 5]
    for found, tokens in zip((null, red), own, strict=True):
        count = tokens.shape[1]
        assert found.tokens.shape == (1, 120, 4096) and found.mask.sum() == count and found.mask[0, :count].all()
        assert torch.equal(found.tokens[:, :count], tokens)
    assert torch.equal(null.tokens[:, 5:], red.tokens[:, 5:])
    assert len(null.tokens[0].unique(dim=0)) == 120, "equal tokens would stay equal in training"


def test_prompts_longer_than_the_convention_are_whole() -> None:
    def work(model: HostModel) -> None:
        both = model.encode([" ".join(["word"] * 130), SHORT])
        assert both.tokens.shape[1] == 131 and both.mask.sum(1).tolist() == [131, 3]

    with torch.inference_mode(False), torch.no_grad():
        host_model("pixart").run(work)


def test_what_a_model_does_not_read_is_said_before_work() -> None:
    def work(model: HostModel) -> None:
        part, x = model.encode([""]), model.noise([1])
        with pytest.raises(ValueError, match=r"Got no pooled vector, which SDXL .* reads"):
            model.denoise(x, torch.tensor(1.0), replace(part, pooled=None))

    with torch.inference_mode(False), torch.no_grad():
        host_model("sdxl").run(work)
        null = host_model("sdxl").encode([""])
        bare = NegativeEmbedding(torch.zeros(1, 77, 2048), "sdxl")
        assert torch.equal(suited(bare, null).pooled, null.pooled), "a start without a pooled vector gets the null's"
        pixart = host_model("pixart").encode([""])
        mixed = NegativeEmbedding(torch.zeros(1, 20, 4096), "flux", pooled=torch.ones(1, 768))
        assert suited(mixed, pixart).pooled is None, "one that is not read is left out"


def test_sizes_that_an_architecture_cannot_make_are_said_before_work() -> None:
    with torch.inference_mode(False), torch.no_grad():
        pixart, video, stills = host_model("pixart"), host_model("ltxv"), host_model("qwen_image")
        for size, reason in ((Size(256, 256), "sides of 272 at least"), (Size(280, 280), "multiples of 16")):
            with pytest.raises(ValueError, match=reason):
                pixart.noise([1], size)
        assert pixart.noise([1], Size(512, 64)).shape == (1, 4, 64, 8)
        assert video.noise([1]).shape == (1, 128, 2, 2, 2)
        assert video.noise([1], Size(64, 96, 17)).shape == (1, 128, 3, 2, 3)
        with pytest.raises(ValueError, match="Got 10 frames for LTXV, expected 9 or"):
            video.noise([1], Size(64, 64, 10))
        with pytest.raises(ValueError, match="9 frames for QwenImage, which makes single pictures"):
            stills.noise([1], Size(64, 64, 9))


def test_clips_are_decoded_frame_by_frame() -> None:
    def work(model: HostModel) -> list[Tensor]:
        return [model.decode(model.noise([1, 2], Size(64, 64, 17)), frames) for frames in (0, 2)]

    with torch.inference_mode(False), torch.no_grad():
        model = host_model("ltxv")
        whole, chosen = model.run(work)
        assert model.contents()["frames"] == "9" and model.name.endswith(", 9 frames)")
    assert whole.shape == (2, 17, 3, 64, 64) and chosen.shape == (2, 2, 3, 64, 64)
    assert torch.equal(chosen, whole[:, [4, 12]]) and 0 <= whole.min() < whole.max() <= 1


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("ACEStep", {}, "Got a ACEStep, which training here does not support"),
        ("HunyuanDiT", {}, "Got a HunyuanDiT, which"),
        ("FluxInpaint", {}, "Got a FluxInpaint, which"),
        ("FluxSchnell", {}, "as published is guidance-distilled.*Model For Training"),
        ("Flux", {"in_channels": 96}, "needs more than text"),
        ("Chroma", {"in_channels": 96}, "needs more than text"),
    ],
)
def test_models_are_refused_by_name(kind: str, changes: dict[str, Any], reason: str) -> None:
    one = built("flux")
    config = type(kind, (), {"unet_config": {**one.network.config, **changes}})()
    network = SimpleNamespace(
        model_config=config, concat_keys=(), latent_format=one.model.model.latent_format, adm_channels=0
    )
    model = SimpleNamespace(model=network, model_options={})
    with pytest.raises(ValueError, match=reason):
        check_trainable(model, one.parts[2])


def test_an_encoder_of_another_family_is_refused() -> None:
    one = built("flux")
    with torch.inference_mode(False), pytest.raises(ValueError, match=r"Got a CLIP of sd3 .* for a FluxSchnell"):
        HostModel(one.model, Clip(NETWORKS["sd3"].text), one.parts[2])
    beside = Clip(Text("FluxClipModel", 4096, 768, 16, beside=("conditioning_llama3",)))
    with torch.inference_mode(False), pytest.raises(ValueError, match="gives conditioning_llama3 beside its tokens"):
        HostModel(one.model, beside, one.parts[2])


def test_an_embedding_is_told_what_its_family_has() -> None:
    tokens, mask = torch.zeros(1, 4, 4096), torch.tensor([[1, 1, 1, 0]])
    for family, keys in (("t5-xxl", {"attention_mask", "pooled_output"}), ("chroma", {"pooled_output"})):
        [[found, extra]] = to_host(NegativeEmbedding(tokens, family, mask))
        assert found.shape[1] == 3 and set(extra) == keys and extra["pooled_output"] is None
    [[_, extra]] = to_host(NegativeEmbedding(tokens, "t5-xxl", mask), {"pooled_output": None})
    assert set(extra) == {"pooled_output"}, "a model whose prompts have no mask is told none"
    assert set(to_host(NegativeEmbedding(torch.zeros(1, 77, 2048)))[0][1]) == set()
