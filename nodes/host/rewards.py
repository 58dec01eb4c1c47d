"""Reward networks under the host's memory management: loaded once, offloaded and brought back like any model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import comfy.model_management as memory
import comfy.model_patcher
import folder_paths
import torch

from reneg_core.fetching import Told
from reneg_core.rewards import Reward, RewardMix, available_rewards, load_reward
from reneg_core.rewards.published import WEIGHTS, PublishedFile
from reneg_core.rewards.registry import reward_class_of
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


def load(name: str, weights: Path | None, dtype: torch.dtype, told: Told | None = None) -> HostReward:
    """A registered reward by name; the same one again while any graph still holds it.

    weights: a file or folder, None to search the host's reward folders and the hub's cache; told: told of downloads of
    what is missing, None allows none.
    Errors: ValueError for an unknown name or the weights of something else, FileNotFoundError naming the missing file,
    its address and where to put it.
    """
    if name not in available_rewards():
        raise ValueError(f"Got reward {name!r}, expected one of {', '.join(sorted(available_rewards()))}.")
    key = (name, str(weights), _stamp(weights), dtype)
    found = _loaded.get(key)
    if found is None:
        try:
            places = folder_paths.get_folder_paths(REWARDS)
            reward = load_reward(name, weights=weights, dtype=dtype, search_dirs=places, download=told or False)
        except MissingFile as error:
            raise FileNotFoundError(f"{error.plain}, then run again, or switch download on.") from error
        found = _loaded[key] = _managed(reward)
    return found


def installed(name: str) -> bool:
    """Whether a reward's weights seem to be there: files of their own names in the host's folders, not looked into."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(REWARDS)]
    places = [(file.place, *file.own_names) for file in _published(name) if file in WEIGHTS]
    return all(any((root / place).is_file() for root in roots for place in named) for named in places)


@cache
def _published(name: str) -> tuple[PublishedFile, ...]:
    try:
        found = reward_class_of(name)
    except ImportError:  # of a package that somebody else installed
        return ()
    return found.published_files or ((found.file,) if hasattr(found, "file") else ())


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
