"""Checkpoints of SDXL's family and of SD3 that the stock loader recognises: a negative is trained by the node, and the
stock KSampler draws better pictures with what it hands on."""

import json

import pytest
import torch
from built import build
from family_checks import TRAIN as QUICK
from family_checks import run_node
from reneg_pack.nodes.host import rewards

import nodes

TRAIN = {**QUICK, "width": 64, "height": 64, "steps": 4, "sampling_steps": 2, "last_steps": 2, "learning_rate": 0.2}


@pytest.mark.parametrize("name", ["KOALA_700M", "SD3"])
def test_a_negative_is_trained_end_to_end(name: str) -> None:
    model, clip, vae = build(name)
    assert type(model.model.model_config).__name__ == name
    brightness = rewards.load("brightness", None, torch.float32)
    parts = {"model": model, "clip": clip, "vae": vae, "reward": brightness, "run_name": f"checkpoint_{name}"}
    out = run_node("ReNegTrainEmbedding", **parts, **TRAIN)
    report = json.loads(out[4])
    assert report["best_reward"] > report["start_reward"]
    assert out[1].pooled is not None and out[1].family == ("sd3" if name == "SD3" else "sdxl")

    channels = model.model.latent_format.latent_channels
    [positive], [empty] = (nodes.CLIPTextEncode().encode(clip, text) for text in ("a red house", ""))
    found = {}
    for title, negative in (("empty", empty), ("learned", out[0])):
        latent = {"samples": torch.zeros(4, channels, 8, 8)}
        drawn = nodes.KSampler().sample(model, 11, 2, 3.0, "euler", "simple", positive, negative, latent)[0]
        pictures = nodes.VAEDecode().decode(vae, drawn)[0].movedim(-1, 1)
        found[title] = float(brightness.reward.score(pictures, ["a red house"] * 4).mean())
    print(f"{name}: {report['start_reward']:.4f} to {report['best_reward']:.4f}, KSampler {found}")
    assert found["learned"] > found["empty"]
