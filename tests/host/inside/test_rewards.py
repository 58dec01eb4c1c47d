"""Reward Score and Combine Rewards: numbers, order, selection, labels."""

import json
from typing import Any

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from reneg_pack.nodes.host import rewards
from reneg_pack.nodes.rewards import CombineRewards, LoadReward, RewardScore

LEVELS = [0.2, 0.9, 0.5, 0.7]
SCORE = {"prompt": "", "one_prompt_per_line": False, "top_k": 0, "use_threshold": False, "threshold": 0.0}


@pytest.fixture()
def brightness() -> Any:
    return rewards.load("brightness", None, torch.float32)


@pytest.fixture()
def images() -> torch.Tensor:
    return torch.stack([torch.full((32, 48, 3), level) for level in LEVELS])


def test_scores_follow_the_pictures_and_sorting_the_scores(call, brightness, images) -> None:
    numbers = torch.arange(4.0).reshape(4, 1, 1)
    latents = {"samples": numbers[:, None].expand(4, 4, 6, 4), "batch_index": [9, 8, 7, 6]}
    out = call(RewardScore, images=images, reward=brightness, **SCORE, latents=latents, masks=numbers.expand(4, 32, 48))
    selected, latents, masks, ordered, labelled, scores, best, report = out.args
    assert scores == pytest.approx(LEVELS, abs=1e-5) and best == pytest.approx(0.9, abs=1e-5)
    assert ordered[:, 0, 0, 0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.2])
    assert latents["samples"][:, 0, 0, 0].tolist() == [1, 3, 2, 0] == masks[:, 0, 0].tolist()
    assert latents["batch_index"] == [8, 6, 7, 9]
    assert labelled.shape == (4, 2 * 32 + 15, 2 * 48, 3), "small pictures are enlarged"
    assert json.loads(report)["order"] == [1, 3, 2, 0] and selected.shape == ordered.shape


def test_top_k_and_threshold_select(call, brightness, images) -> None:
    def select(**changes: Any) -> list[float]:
        picked = call(RewardScore, images=images, reward=brightness, **{**SCORE, **changes})[0]
        return [round(v, 4) for v in picked[:, 0, 0, 0].tolist()]

    assert select(top_k=1) == [0.9]
    assert select(use_threshold=True, threshold=0.6) == [0.9, 0.7]
    assert select(use_threshold=True, threshold=0.6, top_k=1) == [0.9]


def test_an_empty_selection_blocks_what_follows(call, brightness, images) -> None:
    out = call(
        RewardScore,
        images=images,
        reward=brightness,
        **{**SCORE, "use_threshold": True, "threshold": 2.0},
        latents={"samples": torch.zeros(4, 4, 6, 4)},
    )
    assert all(isinstance(out[place], ExecutionBlocker) for place in (0, 1, 2))
    assert out[3].shape[0] == 4 and "selected 0 of 4" in out.ui["text"][0]


def test_one_picture_with_alpha(call, brightness) -> None:
    out = call(RewardScore, images=torch.full((1, 8, 8, 4), 0.25), reward=brightness, **SCORE)
    assert out[5] == pytest.approx([0.25])


def test_prompt_lines_are_counted(call, brightness, images) -> None:
    with pytest.raises(ValueError, match="Got 2 prompt lines for 4 pictures"):
        call(RewardScore, images=images, reward=brightness, **{**SCORE, "prompt": "a\nb", "one_prompt_per_line": True})


def test_mix_is_the_weighted_sum(call, brightness, images) -> None:
    sharp = rewards.load("sharpness", None, torch.float32)
    mix = call(CombineRewards, reward_1=brightness, weight_1=2.0, reward_2=sharp, weight_2=1.0, normalise="none")[0]
    out = call(RewardScore, images=images, reward=mix, **SCORE)
    assert out[5] == pytest.approx([2 * level for level in LEVELS], abs=1e-5)
    assert set(json.loads(out[7])["parts"]) == {"brightness", "sharpness"}
    with pytest.raises(ValueError, match="a reward is there twice"):
        call(CombineRewards, reward_1=brightness, weight_1=1.0, reward_2=brightness, weight_2=1.0, normalise="none")


def test_choices_are_checked(call) -> None:
    assert LoadReward.validate_inputs("automatic") is True
    assert "Got the file name" in LoadReward.validate_inputs("../x")
    for wrong in ({"reward_name": "nothing"}, {"precision": "fp8"}):
        with pytest.raises(ValueError, match="expected one of"):
            call(LoadReward, **{"reward_name": "brightness", "weights": "automatic", "precision": "fp32", **wrong})
