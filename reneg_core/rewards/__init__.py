"""Differentiable rewards: one contract (`Reward`), one door (`load_reward`)."""

from reneg_core.rewards.base import Reward, ScoreDetails, Statistics
from reneg_core.rewards.mix import RewardMix, measure_statistics
from reneg_core.rewards.registry import available_rewards, load_reward

__all__ = [
    "Reward",
    "RewardMix",
    "ScoreDetails",
    "Statistics",
    "available_rewards",
    "load_reward",
    "measure_statistics",
]
