"""Rewards that are no networks of ours: JPEG sizes, a function of the user's, pyiqa's metrics."""

import io
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from reneg_core.rewards import available_rewards, load_reward
from reneg_core.rewards.jpeg import jpeg_size

NOISE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
FLAT = torch.full((2, 3, 32, 32), 0.5)


def test_the_size_is_that_of_the_file() -> None:
    """At quality 95, as in DDPO."""
    levels = (NOISE[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=95)
    assert jpeg_size(NOISE[0]) == len(buffer.getvalue())
    large, small = (load_reward(f"jpeg_{name}") for name in ("incompressibility", "compressibility"))
    assert large.score(NOISE)[0].item() == pytest.approx(len(buffer.getvalue()) / 1000)
    assert torch.equal(large.score(NOISE), -small.score(NOISE)) and (large.score(NOISE) > large.score(FLAT)).all()


def test_the_size_has_no_gradient_and_says_so() -> None:
    reward = load_reward("jpeg_compressibility")
    assert not reward.differentiable and not reward.score(NOISE.clone().requires_grad_()).requires_grad
    assert {"jpeg_compressibility", "jpeg_incompressibility"} <= available_rewards().keys()
    assert not load_reward("jpeg_compressibility*0.5 + brightness").differentiable
    assert load_reward("sharpness + brightness").differentiable


def test_a_function_of_the_users_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_detector.py").write_text(
        "value = 3\n"
        "def hands(images, prompts):\n    return [len(p) + float(i.mean()) for i, p in zip(images, prompts)]\n"
        "def short(images, prompts):\n    return [1.0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reward = load_reward("my_detector:hands")
    assert reward.score(FLAT, ["a", "abc"]).tolist() == [1.5, 3.5]
    assert (reward.name, reward.differentiable) == ("my_detector:hands", False)
    mixed = load_reward("my_detector:hands*2 + brightness*0", normalise="none")
    assert mixed.score(FLAT, ["a", "abc"]).tolist() == [3, 7]
    with pytest.raises(ValueError, match=r"returned shape \(1,\); expected a tensor of shape \(2,\)"):
        load_reward("my_detector:short").score(FLAT, ["a", "b"])
    for name, words in (
        ("my_detector:feet", "Got the reward 'my_detector:feet', which cannot be imported"),
        ("no_such_module:hands", r"cannot be imported \(No module named 'no_such_module'\)"),
        ("my_detector:value", "Got int for the reward 'my_detector:value', expected a function"),
    ):
        with pytest.raises(ValueError, match=words):
            load_reward(name)


def test_without_pyiqa_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match=r"begin with pyiqa: need the package pyiqa\. Try: pip install pyiqa"):
        load_reward("pyiqa:topiq_nr-face")


def test_a_metric_of_pyiqa_is_a_reward_and_lower_is_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what pyiqa documents: names by list_models, metrics as modules of [B,3,H,W] to [B,1]."""

    class Metric(torch.nn.Module):
        def __init__(self, lower_better: bool) -> None:
            super().__init__()
            self.lower_better = lower_better

        def forward(self, images):
            return images.mean((1, 2, 3))[:, None]

    package = types.ModuleType("pyiqa")
    package.list_models = lambda metric_mode=None: ["brisque", "topiq_nr-face"] if metric_mode == "NR" else []
    package.create_metric = lambda name, device: Metric(name == "brisque").to(device)
    monkeypatch.setitem(sys.modules, "pyiqa", package)
    assert load_reward("pyiqa:topiq_nr-face").score(FLAT).tolist() == [0.5, 0.5]
    lower = load_reward("pyiqa:brisque")
    assert lower.score(FLAT).tolist() == [-0.5, -0.5] and (lower.name, lower.differentiable) == ("pyiqa:brisque", False)
    with pytest.raises(ValueError, match=r"Got the metric 'psnr', expected one of .*: brisque, topiq_nr-face"):
        load_reward("pyiqa:psnr")
