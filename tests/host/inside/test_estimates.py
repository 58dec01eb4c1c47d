"""What adapting and comparing say before work that takes long."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reneg_pack.nodes import adapting, compare, estimates, watching
from reneg_pack.nodes.host import rewards

ADAPT = {
    "width": 64, "height": 64, "sampling_steps": 2, "cfg": 4.0, "learning_rate": 0.02, "micro_batch": 1,
    "scheduler": "normal", "solver": "euler", "points": 1, "checkpointing": False,
    "prompt": "a house", "seed": 4, "pictures": 2, "patience": 1,
}  # fmt: skip
COMPARE = {
    "prompts": "a red house", "first_seed": 0, "adapted": False, "width": 64, "height": 64, "sampling_steps": 5,
    "cfg": 4.0, "micro_batch": 1, "scheduler": "normal",
}  # fmt: skip


@pytest.fixture()
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for module in (adapting, compare, estimates, watching):
        monkeypatch.setattr(module, "say", lambda text, node_id: lines.append(text))
    return lines


@pytest.fixture()
def common(checkpoint: tuple, embedding) -> dict[str, Any]:
    parts = dict(zip(("model", "clip", "vae"), checkpoint, strict=True))
    return {**parts, "reward": rewards.load("brightness", None, torch.float32), "embedding": embedding}


def test_an_adaptation_says_what_it_takes_if_it_is_long(call: Callable[..., Any], common, told) -> None:
    call(adapting.AdaptEmbedding, **common, **ADAPT, steps=20)
    assert told[:2] == ["loading the model", "measuring what a step takes"]
    assert told[2].startswith("2 pictures, at most 20 steps each: about ") and told[2].endswith("GiB of memory")
    assert told[3].startswith("pictures 1 to 1 of 2: step 1 of at most 20")
    told.clear()
    call(adapting.AdaptEmbedding, **common, **ADAPT, steps=2)
    assert told[1].startswith("pictures 1 to 1 of 2: step 1 of at most 2")


def test_a_comparison_says_what_it_takes_if_it_is_long(call: Callable[..., Any], common, told) -> None:
    call(compare.CompareNegatives, **common, **COMPARE, seeds=4)
    assert told[:2] == ["loading the model", "measuring what a picture takes"]
    assert told[2].startswith("8 pictures: about ") and told[2].endswith("GiB of memory")
    told.clear()
    call(compare.CompareNegatives, **common, **COMPARE, seeds=1)
    assert told[1].startswith("judging: 1 of 2 pictures")


def test_an_adaptation_before_a_comparison_is_counted(call: Callable[..., Any], common, told, monkeypatch) -> None:
    monkeypatch.setattr(estimates, "rehearse_sampling", lambda *_: 1.0)
    monkeypatch.setattr(estimates, "rehearse_adaptation", lambda *_: (3600.0, 3 << 30))
    call(compare.CompareNegatives, **common, **{**COMPARE, "adapted": True, "sampling_steps": 2}, seeds=7)
    assert told[2].startswith("21 pictures: about 60 min, about 3."), told[2]
