"""What a run is (settings, model, rewards, start, prompts, each by its contents) and, in words, how two runs differ."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..digests import DIGEST, digest_of
from ..embedding import NegativeEmbedding
from ..model import DiffusionModel
from ..rewards import Reward
from .config import LoopConfig, TrainConfig
from .decoding import Decoder
from .names import normalised
from .prompts import Prompts

HOW_OFTEN = {"checkpoint_every", "checkpoint_minutes", "keep_checkpoints"}
FREE = frozenset({"steps", "patience", "init", "micro_batch", "rollout_batch", "checkpointing", *HOW_OFTEN})
"""Settings that a resumed run may change: steps and patience as :mod:`.extending` says, ``init`` where it names
the same contents, the others because no result depends on them."""
SHOWN = 3
LEVELS = "noise levels"


class AnotherRun(ValueError):
    """The folder holds a run that is not this one; ``differences``: a sentence for each thing in which they differ."""

    def __init__(self, differences: Sequence[str], folder: Path) -> None:
        self.differences, self.folder = list(differences), folder
        listed = "\n- ".join(["This run cannot be resumed with other settings or contents:", *self.differences])
        super().__init__(f"{listed}\nTry the earlier ones, or another output folder than {folder}.")


def identity(
    config: LoopConfig,
    model: DiffusionModel,
    rewards: Mapping[str, Reward | None],
    start: Mapping[str, str],
    prompts: Prompts,
) -> dict[str, Any]:
    """The context that a checkpoint stores: plain values, weights and long lists as digests.

    rewards: by role ("reward", "watch"); start: where learning begins, see :func:`start_contents`.
    """
    return {
        "settings": config.to_mapping(),
        "model": {**model.contents(), LEVELS: _levels(model.sigmas(config.sampling))},
        **{role: reward_contents(reward) if reward else {"name": "none"} for role, reward in rewards.items()},
        "start": dict(start),
        "prompts": {kind: digest_of_prompts(listed) for kind, listed in prompts._asdict().items()},
    }


def reward_contents(reward: Reward) -> dict[str, str]:
    """A reward by name and by what it computes with: weights of each part, the mix's statistics, a user's own file."""
    parts = reward.named_parts() if hasattr(reward, "named_parts") else {reward.name: reward}
    found = {"name": reward.name}
    if hasattr(reward, "part_statistics"):
        numbers = {name: [one.mean, one.std] for name, one in reward.part_statistics.items()}
        found["standardisation"] = json.dumps(numbers, sort_keys=True)
    for name, part in parts.items():
        tensors = dict(part.named_parameters()) | dict(part.named_buffers())
        if tensors:
            found[f"weights of {name}"] = digest_of(tensors)
        file = _own_file(part)
        if file:
            found[f"file {file.name}"] = DIGEST + hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _own_file(reward: Reward) -> Path | None:
    """The python file of a reward that was loaded from one, or of the user's function that it calls; None for installed
    code, which a version names."""
    code = getattr(getattr(reward, "function", None), "__code__", None)
    if code and Path(code.co_filename).is_file():
        return Path(code.co_filename)
    if type(reward).__module__ in sys.modules:
        return None
    files = {Path(f.__code__.co_filename) for f in vars(type(reward)).values() if hasattr(f, "__code__")}
    return next((file for file in files if file.is_file()), None)


def start_contents(init: str, start: NegativeEmbedding | None) -> dict[str, str]:
    """A negative prompt by its text, an embedding file by its tensors."""
    if start is None:
        return {"prompt": init}
    parts = {"tokens": start.tokens, "mask": start.mask, "pooled": start.pooled}
    return {"file": Path(init).name, "embedding": digest_of({k: v for k, v in parts.items() if v is not None})}


def digest_of_prompts(prompts: Sequence[str]) -> str:
    """SHA-256 of a prompt list, 64 hexadecimal digits."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def differences(
    stored: Mapping[str, Any],
    now: Mapping[str, Any],
    before: Prompts | None,
    after: Prompts,
    kind: type[LoopConfig] = TrainConfig,
) -> list[str]:
    """A sentence for everything in which the run of ``stored`` is another one than that of ``now``.

    before: the prompts that the stored run listed, None where the list is lost; after: those of now; kind: of both
    configurations. What an older version did not store is not compared.
    """
    stored, now = _renewed(stored, kind), json.loads(json.dumps(now, default=list))
    found = _changed_settings(stored["settings"], now["settings"])
    same_sampling = stored["settings"]["sampling"] == now["settings"]["sampling"]
    found += _changed_model(stored["model"], now["model"], same_sampling)
    for role in ("reward", "watch"):
        found += _changed_reward(role, stored[role], now[role])
    found += _changed_start(stored["start"], now["start"])
    for kind, listed in after._asdict().items():
        if stored["prompts"].get(kind) != now["prompts"][kind]:
            own = before and getattr(before, kind)
            known = own is not None and digest_of_prompts(own) == stored["prompts"].get(kind)
            found.append(_changed_prompts(kind, own if known else None, listed))
    return found


def _changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    old, new = _flat(old), _flat(new)
    return [
        f"{name}: the run was started with {old.get(name)!r}, now it is {new.get(name)!r}."
        for name in sorted({*old, *new})
        if _meant(name, old.get(name)) != _meant(name, new.get(name)) and name not in FREE
    ]


def _meant(name: str, value: Any) -> Any:
    """Of a decoder what its gradient depends on; others as they are."""
    return Decoder.read(value).gradient if name == "decoder" else value


def _changed_model(old: Mapping[str, str], new: Mapping[str, str], same_sampling: bool) -> list[str]:
    """In another precision all weights differ, and with another sampling the noise levels, which needs no saying."""
    names = [name for name in old if name in new and old[name] != new[name]]
    names = ["precision"] if "precision" in names else names
    names = [name for name in names if name != LEVELS or same_sampling]
    return [f"model: {_other(name, old[name], new[name])}" for name in names]


def _changed_reward(role: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    if old["name"] != new["name"]:
        return [f"{role}: the run was started with {old['name']!r}, now it is {new['name']!r}."]
    return [f"{role}: {_other(name, old[name], new[name])}" for name in old if name in new and old[name] != new[name]]


def _other(name: str, old: str, new: str) -> str:
    if name == LEVELS:
        return f"the {name} for this sampling are not those that the run was started with."
    if old.startswith(DIGEST):
        return f"the {name} {'are' if name.startswith('weights') else 'is'} not what the run was started with."
    return f"the {name} was {old}, now it is {new}."


def _changed_start(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    if not old or {k: v for k, v in old.items() if k != "file"} == {k: v for k, v in new.items() if k != "file"}:
        return []
    kinds = ({*old} & {*new}) - {"file", "prompt"}
    if kinds:
        return [f"init: the {kinds.pop()} in {new['file']} is not the one that the run was started with."]
    began, begins = (f"the file {one['file']}" if "file" in one else f"{one['prompt']!r}" for one in (old, new))
    return [f"init: the run was started with {began}, now it is {begins}."]


def _changed_prompts(kind: str, old: Sequence[str] | None, new: Sequence[str]) -> str:
    name = {"train": "training prompts", "validation": "validation prompts"}[kind]
    if old is None:
        return f"{name}: there are {len(new)} now, not those that the run was started with (their list is lost)."
    added, removed = Counter(new) - Counter(old), Counter(old) - Counter(new)
    if not added and not removed:
        return f"{name}: the same {len(new)}, in another order than the run was started with."
    changes = [_listed(added, "added"), _listed(removed, "removed")]
    return f"{name}: {'; '.join(change for change in changes if change)} since the run was started."


def _listed(prompts: Counter[str], what: str) -> str:
    names, count = [repr(prompt) for prompt in prompts], prompts.total()
    if not names:
        return ""
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"{shown} {'was' if count == 1 else 'were'} {what}"


def _levels(sigmas: Tensor) -> str:
    return " ".join(f"{level:.5g}" for level in sigmas.tolist())


def _renewed(context: Mapping[str, Any], kind: type[LoopConfig]) -> dict[str, Any]:
    """A stored context in the form of today: settings under their names of today with defaults for what did not exist
    yet; version 0.1 stored one flat mapping."""
    if "settings" in context:
        return {**context, "settings": _settings(context["settings"], kind)}
    return {
        "settings": _settings(context, kind),
        "model": {"denoiser": DIGEST + str(context.get("model"))},
        **{role: {"name": context.get(role) or "none"} for role in ("reward", "watch")},
        "start": {},
        "prompts": {"train": context.get("prompts"), "validation": context.get("validation_prompts")},
    }


def _settings(stored: Mapping[str, Any], kind: type[LoopConfig]) -> dict[str, Any]:
    known = {part.name for part in fields(kind)}
    values = {name: value for name, value in normalised(stored).items() if name in known}
    return json.loads(json.dumps(kind.from_mapping(values).to_mapping()))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return found
