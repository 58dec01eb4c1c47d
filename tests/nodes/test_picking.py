"""Without a host: what Reward Score hands on, and values that are no numbers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from .fake_host import imported


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with imported("rewards", "sampling") as [module, sampling]:
        monkeypatch.setattr(module, "blocker", lambda: "blocked")
        module.guidance = sampling
        yield module


def test_one_mask_is_for_all_pictures_and_other_counts_are_named(rewards: Any) -> None:
    mask = torch.rand(1, 4, 4)
    assert torch.equal(rewards.pick_masks(mask, [2, 0], 3), mask.expand(2, 4, 4))
    masks = torch.rand(3, 4, 4)
    assert torch.equal(rewards.pick_masks(masks, [2, 0], 3), masks[[2, 0]])
    with pytest.raises(ValueError, match="masks: got 2 for 3 pictures, expected as many, or one for all"):
        rewards.pick_masks(masks[:2], [0], 3)


def test_what_was_not_given_is_not_handed_on(rewards: Any) -> None:
    """Nodes behind such an output do not run, instead of failing on nothing."""
    assert rewards.pick_latents(None, [0], 1) == "blocked" and rewards.pick_masks(None, [0], 1) == "blocked"
    assert rewards.pick(torch.rand(2, 1), []) == "blocked"


def test_numbers_that_are_none_are_refused(rewards: Any) -> None:
    inputs = {"images": torch.rand(1, 8, 8, 3), "reward": None, "prompt": "a", "one_prompt_per_line": False, "top_k": 0}
    with pytest.raises(ValueError, match="threshold: got nan, expected a finite number"):
        rewards.RewardScore.execute(**inputs, use_threshold=True, threshold=float("nan"))
    with pytest.raises(ValueError, match="cfg: got nan, expected a finite number"):
        rewards.guidance.prepare(None, None, [], None, float("nan"))
