"""What is measured of an architecture on a small network of the host's own class: by the tests, and by
benchmarks/host_families.py."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import comfy.samplers
import torch
from comfy_api.internal import make_locked_method_func
from networks import NETWORKS, build, empty_latent
from reneg_pack.nodes import load_nodes
from reneg_pack.nodes.host import rewards
from reneg_pack.nodes.host.model import HostModel
from reneg_pack.nodes.host.text import embedding_from, family_of
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


def estimates(name: str) -> list[tuple[float, float]]:
    """Of two rows of prompts of different lengths, each with its own negative, in one call: how far the estimates are
    from the host's own, and how far the host's two branches are apart."""
    pairs = [("blurry", SHORT), ("", LONG)]

    def work(model: HostModel) -> tuple[Tensor, Tensor, float]:
        level, x = level_of(model), model.noise([1, 2])
        both = model.encode([*(negative for negative, _ in pairs), *(positive for _, positive in pairs)])
        return x, model.denoise(torch.cat([x, x]), torch.tensor(level), both, BOTH), level

    with torch.inference_mode(False), torch.no_grad():
        x, found, level = host_model(name).run(work)
    rows = []
    for row, texts in enumerate(pairs):
        own = hosts_own(name, x[[row]].clone(), level, *texts)
        off = max(relative(found[[2 * place + row]], own[branch]) for place, branch in enumerate(BOTH))
        rows.append((off, relative(own[Branch.NEGATIVE], own[Branch.POSITIVE])))
    return rows


def samples(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of the CFG sampler node with an embedding, of KSampler with the conditioning that it was made from, and
    of KSampler with the empty prompt."""
    one, latent = built(name), empty_latent(built(name))
    many = " ".join(["word"] * 127)  # without padding, which an embedding's conditioning is cut of
    positive, negative = encoded(name, SHORT), encoded(name, many if name == "ltxv" else LONG)
    settings = {"seed": 3, "steps": 2, "cfg": SCALE, "sampler_name": "euler", "scheduler": "simple"}
    embedding = embedding_from(negative, family_of(one.parts[1]))
    parts = {"model": one.model, "positive": positive, "embedding": embedding, "latent_image": latent, "denoise": 1.0}
    ours = run_node("ReNegCFGSampler", **settings, **parts)[0]["samples"]
    stock = [
        nodes.KSampler().sample(one.model, *settings.values(), positive, text, latent)[0]["samples"]
        for text in (negative, encoded(name, ""))
    ]
    return ours, *stock


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


def rewarded(name: str, negative: Conditioning, through: int, kind: type = Direct) -> Any:
    def work(model: HostModel) -> Any:
        batch = Batch([LONG], model.encode([LONG]), model.noise([3]))
        sampling = Sampling(steps=3, guidance=Guidance(SCALE))
        return reward_gradient(Late(model), Pattern(), batch, negative, sampling, Reach([0], through))

    return host_model(name, kind).run(work)


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


def attended_start(name: str) -> Conditioning:
    """What training starts from."""
    start = host_model(name).encode([""])
    return start if start.mask is None else replace(start, mask=torch.ones_like(start.mask))


class Unwrapped(Direct):
    """Nothing is recomputed."""

    def checkpointing(self, enabled: bool, decoder: bool | None = None) -> None:
        """Left out."""


def reference_error(name: str, part: str) -> float:
    """Relative difference of the gradient from that of a network that may change what it saved and is not recomputed,
    through two steps."""
    with torch.inference_mode(False):
        start = attended_start(name)
        with allow_mutation_on_saved_tensors():
            wanted = getattr(rewarded(name, start, 2, Unwrapped), part)
        found = getattr(rewarded(name, start, 2), part)
    return float((found - wanted).norm() / wanted.norm())


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


def run_node(name: str, **inputs: Any) -> Any:
    """A node by its id, run as the host's executor does."""
    [node] = [node for node in load_nodes() if node.define_schema().node_id == name]
    return make_locked_method_func(node, "execute", node.PREPARE_CLASS_CLONE({}))(**inputs)


def mean_reward(one: SimpleNamespace, reward: Any, latent: dict, positive: list, negative: list) -> float:
    """Of pictures that the stock nodes make with a negative."""
    found = []
    for seed in range(4):
        drawn = nodes.KSampler().sample(one.model, seed, 3, SCALE, "euler", "simple", positive, negative, latent)[0]
        pictures = nodes.VAEDecode().decode(one.parts[2], drawn)[0]
        found.append(float(reward.score(pictures.movedim(-1, 1), [SHORT] * len(pictures)).mean()))
    return sum(found) / len(found)


PARTS = [(name, part) for name, one in NETWORKS.items() for part in ("tokens", "pooled")[: 1 + bool(one.text.pooled)]]
"""Every architecture with what its negative holds."""


def trained(name: str, run: str) -> tuple[dict[str, float], NegativeEmbedding]:
    """A short training by the node, of clips where there are any: the mean reward (brightness) before and after it,
    and of KSampler's pictures with the empty prompt and with the CONDITIONING that the node hands on."""
    one, brightness = built(name), rewards.load("brightness", None, torch.float32)
    side = {"width": one.network.side, "height": one.network.side}
    parts = dict(zip(("model", "clip", "vae"), one.parts, strict=True))
    out = run_node("ReNegTrainEmbedding", **parts, reward=brightness, run_name=run, **TRAIN | side)
    report = json.loads(out[4])
    latent, positive = empty_latent(one), encoded(name, SHORT)
    drawn = [mean_reward(one, brightness.reward, latent, positive, text) for text in (encoded(name, ""), out[0])]
    found = {
        "before": report["start_reward"],
        "after": report["best_reward"],
        "ksampler_empty": drawn[0],
        "ksampler_learned": drawn[1],
    }
    return found, out[1]
