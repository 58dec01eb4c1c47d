"""Every architecture on a small network of the host's own class: the same predictions and pictures as the host's, the
right gradient, and a reward that rises."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import comfy.sd
import comfy.text_encoders.pixart_t5
import pytest
import torch
from networks import NETWORKS, Clip, Text, build, empty_latent, randomised
from reneg_pack.nodes import load_nodes
from reneg_pack.nodes.host import rewards
from reneg_pack.nodes.host.checks import check_trainable
from reneg_pack.nodes.host.families import facts_of, with_facts
from reneg_pack.nodes.host.latents import Latents
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.host.text import embedding_from, family_of
from reneg_pack.nodes.layout import suited, to_host
from reneg_pack.nodes.sampling import CFGSampler
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

import nodes
from reneg_core.embedding import NegativeEmbedding
from reneg_core.guidance import Guidance
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import Sampling, Size
from reneg_core.training import Batch, Reach, reward_gradient

SHORT, LONG = "a house", "a red house on a green hill under the blue sky"
BOTH = (Branch.NEGATIVE, Branch.POSITIVE)
SCALE = 3.0


@cache
def built(name: str) -> SimpleNamespace:
    """One network for all tests of the module."""
    with torch.inference_mode():
        return build(name)


def host_model(name: str, kind: type = HostModel, frames: int | None = None) -> HostModel:
    one = built(name)
    return kind(*one.parts, size=Size(one.network.side, one.network.side, frames))


def encoded(name: str, text: str) -> list:
    """A prompt as the stock node gives it."""
    return nodes.CLIPTextEncode().encode(built(name).parts[1], text)[0]


class Once(comfy.samplers.Sampler):
    """Asks the host for both branches at one level, in place of sampling."""

    def __init__(self, x: Tensor, level: float) -> None:
        self.x, self.level, self.found = x, level, {}

    def sample(self, wrapped: Any, sigmas: Tensor, extra_args: dict[str, Any], *rest: Any, **options: Any) -> Tensor:
        conds = [wrapped.conds[branch.name.lower()] for branch in Branch]
        level = torch.full((1,), self.level)
        found = comfy.samplers.calc_cond_batch(wrapped.inner_model, conds, self.x, level, extra_args["model_options"])
        self.found = dict(zip(Branch, found, strict=True))
        return torch.zeros_like(self.x)


def hosts_own(name: str, x: Tensor, level: float, negative: str, positive: str) -> dict[Branch, Tensor]:
    """Estimates of one state by the host's own processing of two prompts."""
    guider, once = comfy.samplers.CFGGuider(built(name).model), Once(x, level)
    guider.set_conds(encoded(name, positive), encoded(name, negative))
    guider.sample(torch.zeros_like(x), torch.zeros_like(x), once, torch.tensor([level, 0.0]), disable_pbar=True, seed=0)
    return once.found


def level_of(model: HostModel) -> float:
    return float(model.sigmas(Sampling(steps=4))[1])


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_estimates_are_the_hosts_own(name: str) -> None:
    """Two rows of prompts of different lengths, each branch with its own, in one call."""
    pairs = [("blurry", SHORT), ("", LONG)]

    def work(model: HostModel) -> tuple[Tensor, Tensor, float]:
        level, x = level_of(model), model.noise([1, 2])
        both = model.encode([*(negative for negative, _ in pairs), *(positive for _, positive in pairs)])
        return x, model.denoise(torch.cat([x, x]), torch.tensor(level), both, BOTH), level

    with torch.inference_mode(False), torch.no_grad():
        x, found, level = host_model(name).run(work)
    for row, (negative, positive) in enumerate(pairs):
        own = hosts_own(name, x[[row]].clone(), level, negative, positive)
        off = [relative(found[[2 * place + row]], own[branch]) for place, branch in enumerate(BOTH)]
        print(f"{name} {negative!r} {positive!r}: {max(off):.1e}")
        assert max(off) < 2e-6
        assert relative(own[Branch.NEGATIVE], own[Branch.POSITIVE]) > 1e-4, "prompts are seen at all"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_learned_negative_samples_as_the_hosts_own_conditioning(name: str, call: Callable[..., Any]) -> None:
    one, latent = built(name), empty_latent(built(name))
    many = " ".join(["word"] * 127)  # no padding to hide, which the embedding's conditioning is cut of
    positive, negative = encoded(name, SHORT), encoded(name, many if name == "ltxv" else LONG)
    embedding = embedding_from(negative, family_of(one.parts[1]))
    settings = (3, 2, SCALE, "euler", "simple")
    theirs = nodes.KSampler().sample(one.model, *settings, positive, negative, latent)[0]["samples"]
    ours = call(
        CFGSampler,
        **dict(zip(("seed", "steps", "cfg", "sampler_name", "scheduler"), settings, strict=True)),
        model=one.model,
        positive=positive,
        embedding=embedding,
        latent_image=latent,
        denoise=1.0,
    )[0]["samples"]
    assert torch.equal(ours, theirs)
    null = nodes.KSampler().sample(one.model, *settings, positive, encoded(name, ""), latent)[0]["samples"]
    assert not torch.equal(null, theirs)


class Direct(HostModel):
    """Latents as pictures, so that only the denoiser is measured."""

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        return torch.tanh(latents.flatten(2)[:, :3, None] / 4) / 2 + 0.5


class Pattern:
    """A reward: how much of a fixed pattern there is in the pictures."""

    name = "pattern"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        weights = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(4))
        return (images * weights).mean((1, 2, 3)) * 100


class Late:
    """A model whose schedule begins a level late: no earlier step depends on the negative, so that differences of the
    whole measure what the gradient says."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def sigmas(self, sampling: Sampling) -> Tensor:
        return self._model.sigmas(sampling)[1:]


def rewarded(name: str, negative: Conditioning, through: int) -> Any:
    def work(model: HostModel) -> Any:
        batch = Batch([LONG], model.encode([LONG]), model.noise([3]))
        sampling = Sampling(steps=3, guidance=Guidance(SCALE))
        return reward_gradient(Late(model), Pattern(), batch, negative, sampling, Reach([0], through))

    return host_model(name, Direct).run(work)


def gradient_error(name: str, part: str, through: int) -> tuple[float, float]:
    """Relative error of autograd against central differences along the gradient, and the slope."""
    with torch.inference_mode(False):
        start = attended_start(name)
        gradient = getattr(rewarded(name, start, through), part)
        slope, value = gradient.norm(), getattr(start, part)
        direction, step = gradient / slope, 1e-3 * float(value.norm())
        sides = [
            rewarded(
                name, Conditioning(**{**vars(start), part: value + sign * step * direction}), through
            ).rewards.double()
            for sign in (1, -1)
        ]
    numeric = float((sides[0] - sides[1]).sum()) / (2 * step)
    return abs(float(slope) / numeric - 1), numeric


def reference_gradient(name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The gradient of a network that is not recomputed and may change what it saved."""
    with monkeypatch.context() as patch, allow_mutation_on_saved_tensors():
        patch.setattr(HostModel, "checkpointing", lambda self, enabled: None)
        return getattr(rewarded(name, attended_start(name), 2), part)


def attended_start(name: str) -> Conditioning:
    """What training starts from."""
    start = host_model(name).encode([""])
    return start if start.mask is None else replace(start, mask=torch.ones_like(start.mask))


PARTS = [(name, part) for name, one in NETWORKS.items() for part in ("tokens", "pooled")[: 1 + bool(one.text.pooled)]]


@pytest.mark.parametrize("through", [1, 2])
@pytest.mark.parametrize(("name", "part"), PARTS)
def test_gradients_are_those_of_finite_differences(name: str, part: str, through: int) -> None:
    error, slope = gradient_error(name, part, through)
    print(f"{name} {part} through {through}: slope {slope:.3e}, error {error:.1e}")
    assert slope > 1e-5 and error < 2e-2


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_gradients_are_those_of_a_network_that_may_change_what_it_saved(name: str, part: str, monkeypatch) -> None:
    with torch.inference_mode(False):
        wanted = reference_gradient(name, part, monkeypatch)
        found = getattr(rewarded(name, attended_start(name), 2), part)
    error = float((found - wanted).norm() / wanted.norm())
    print(f"{name} {part}: {error:.1e} of the reference")
    assert error < 1e-5


TRAIN = {
    "steps": 6,
    "batch_size": 2,
    "micro_batch": 2,
    "sampling_steps": 3,
    "cfg": SCALE,
    "scheduler": "simple",
    "solver": "euler",
    "learning_rate": 0.1,
    "points": 1,
    "last_steps": 3,
    "through": 0,
    "checkpointing": False,
    "seed": 0,
    "validate_every": 3,
    "validation_pairs": 2,
    "patience": 0,
    "norm_limit": 0.0,
    "prompts": f"{SHORT}\n{LONG}",
    "prompt_file": "none",
}


def node_of(name: str) -> type:
    return next(node for node in load_nodes() if node.define_schema().node_id == name)


def mean_reward(one: SimpleNamespace, reward: Any, latent: dict, positive: list, negative: list) -> float:
    """Of pictures that the stock nodes make with a negative."""
    found = []
    for seed in range(4):
        drawn = nodes.KSampler().sample(one.model, seed, 3, SCALE, "euler", "simple", positive, negative, latent)[0]
        pictures = nodes.VAEDecode().decode(one.parts[2], drawn)[0]
        found.append(float(reward.score(pictures.movedim(-1, 1), [SHORT] * len(pictures)).mean()))
    return sum(found) / len(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_raises_the_reward_and_ksampler_shows_it(name: str, call: Callable[..., Any]) -> None:
    one, brightness = built(name), rewards.load("brightness", None, torch.float32)
    side = {"width": one.network.side, "height": one.network.side}
    still = with_facts(one.model, replace(facts_of(one.model), frames=1))
    parts = dict(zip(("model", "clip", "vae"), (still, *one.parts[1:]), strict=True))
    out = call(node_of("ReNegTrainEmbedding"), **parts, reward=brightness, run_name=f"family_{name}", **TRAIN | side)
    report = json.loads(out[4])
    assert report["best_reward"] > report["start_reward"]
    embedding: NegativeEmbedding = out[1]
    assert embedding.family == host_model(name).family
    assert (embedding.pooled is not None) == bool(one.network.text.pooled)
    if name in PADDED:
        assert embedding.length == PADDED[name]
    shape = Latents(still, one.parts[2], Size(**side)).shape(Size())
    latent, positive = {"samples": torch.zeros(1, *shape)}, encoded(name, SHORT)
    before = mean_reward(one, brightness.reward, latent, positive, encoded(name, ""))
    after = mean_reward(one, brightness.reward, latent, positive, out[0])
    print(f"{name}: {report['start_reward']:.4f} to {report['best_reward']:.4f}, KSampler {before:.4f} to {after:.4f}")
    assert after > before


PADDED = {"pixart": 120, "pixart_sigma": 300, "chroma": 512}
"""Tokens that a training without a start has where the host pads nothing."""


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
        whole, chosen = host_model("ltxv").run(work)
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
