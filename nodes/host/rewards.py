"""Reward networks under the host's memory management: loaded once, offloaded and brought back like any model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import comfy.model_management as memory
import comfy.model_patcher
import folder_paths
import torch

from reneg_core.rewards import Reward, RewardMix, available_rewards, load_reward
from reneg_core.rewards.weights import MissingFile

from .files import REWARDS

_loaded: "WeakValueDictionary[tuple[Any, ...], HostReward]" = WeakValueDictionary()


@dataclass(eq=False)
class HostReward:
    """A reward and the patchers that hold its networks."""

    reward: Reward
    patchers: tuple[Any, ...]

    @property
    def name(self) -> str:
        return self.reward.name

    def load(self, working_bytes: int = 0) -> Reward:
        """The reward with its networks on the host's device."""
        memory.load_models_gpu(list(self.patchers), memory_required=working_bytes, force_full_load=True)
        return self.reward


def load(name: str, weights: Path | None, dtype: torch.dtype) -> HostReward:
    """A registered reward by name; the same one again while any graph still holds it.

    weights: a file or folder, None to search the host's reward folders and the hub's cache. Nothing is downloaded.
    Errors: ValueError for an unknown name or the weights of something else, FileNotFoundError naming the missing file,
    its address and where to put it.
    """
    if name not in available_rewards():
        raise ValueError(f"Got reward {name!r}, expected one of {', '.join(sorted(available_rewards()))}.")
    key = (name, str(weights), _stamp(weights), dtype)
    found = _loaded.get(key)
    if found is None:
        try:
            reward = load_reward(name, weights=weights, dtype=dtype, search_dirs=folder_paths.get_folder_paths(REWARDS))
        except MissingFile as error:
            raise FileNotFoundError(f"{error.plain}, then run again.") from error
        found = _loaded[key] = _managed(reward)
    return found


def combine(parts: Sequence[HostReward], weights: Sequence[float], normalise: str) -> HostReward:
    """A weighted mix; ValueError if one reward is in it twice."""
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"Got {', '.join(names)}: a reward is there twice. Add the weights up in one input instead.")
    factors: Mapping[str, float] = dict(zip(names, weights, strict=True))
    mix = RewardMix({part.name: part.reward for part in parts}, factors, normalise=normalise).eval()
    return HostReward(mix, tuple(patcher for part in parts for patcher in part.patchers))


def _managed(reward: Reward) -> HostReward:
    device, rest = memory.get_torch_device(), memory.unet_offload_device()
    return HostReward(reward, (comfy.model_patcher.ModelPatcher(reward, load_device=device, offload_device=rest),))


def _stamp(path: Path | None) -> tuple[int, ...]:
    if path is None:
        return ()
    return (path.stat().st_mtime_ns, path.stat().st_size)
