"""fp16 networks: what the loss scale is there for."""

import importlib

import pytest
import torch
from builders import pipeline
from doubles import Curved

from reneg_core import NegativeEmbedding
from reneg_core.backends import wrap
from reneg_core.sampling import Sampling
from reneg_core.training import AdaptConfig, adapt
from reneg_core.training.loss_scale import LossScale

CONFIG = AdaptConfig(
    steps=3, sampling=Sampling(steps=3).at_scale(4.0), learning_rate=0.05, window=(0, 3), points=1, micro_batch=2
)


class Small(Curved):
    """A reward in units of a ten-thousandth."""

    name = "small"

    def _score(self, images, prompts):
        return super()._score(images, prompts) * 1e-4


def gain(dtype: torch.dtype) -> torch.Tensor:
    parts = pipeline()
    for network in (parts.unet, parts.vae, parts.text_encoder):
        network.to(dtype)
    model = wrap(parts, "random")
    start = NegativeEmbedding(model.encode([""]).tokens, model.family)
    result = adapt(model, Small(), ["a red fox", "blue"], [1, 2], start, CONFIG)
    return result.rewards - result.start_rewards


def test_adaptation_gains_in_fp16_what_it_gains_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward of such small numbers has gradients below fp16's smallest; without the scale nothing is learned."""
    whole, half = gain(torch.float32), gain(torch.float16)
    assert (whole > 1e-6).all() and torch.allclose(half, whole, rtol=0.05)
    adapting = importlib.import_module("reneg_core.training.adapt")  # the package has a function of that name
    monkeypatch.setattr(adapting, "loss_scale_for", lambda model: LossScale())
    assert gain(torch.float16).tolist() == [0.0, 0.0]
