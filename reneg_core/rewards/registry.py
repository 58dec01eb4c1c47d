"""Which rewards exist, and `load_reward`: a name, a mix or a python file becomes a frozen reward."""

import importlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from os import PathLike
from pathlib import Path
from types import ModuleType

import torch

from reneg_core.rewards.base import Reward, Statistics, ordinary_tensors
from reneg_core.rewards.mix import RewardMix

ENTRY_POINT_GROUP = "reneg.rewards"
PACKAGE = "reneg_core.rewards"


@dataclass(frozen=True)
class RewardInfo:
    """A registered reward: its name, one line on what it judges, the module that defines it, and the class
    there (empty: the module's only reward class). `options` are fixed keyword arguments of its `load`."""

    name: str
    summary: str
    module: str
    class_name: str = ""
    options: tuple[tuple[str, object], ...] = ()


BUILT_IN = (
    RewardInfo(
        "image_reward", "ImageReward v1.0: human preference, standardised", f"{PACKAGE}.image_reward", "ImageReward"
    ),
    RewardInfo("hpsv2.0", "HPSv2.0: human preference, cosine; antialiased resize", f"{PACKAGE}.hpsv2", "HPSv20"),
    RewardInfo("hpsv2.1", "HPSv2.1: human preference, cosine; antialiased resize", f"{PACKAGE}.hpsv2", "HPSv21"),
    RewardInfo(
        "hpsv2.0-no-antialias",
        "HPSv2.0 with the resize of its published tables",
        f"{PACKAGE}.hpsv2",
        "HPSv20NoAntialias",
    ),
    RewardInfo(
        "hpsv2.1-no-antialias",
        "HPSv2.1 with the resize of its published tables",
        f"{PACKAGE}.hpsv2",
        "HPSv21NoAntialias",
    ),
    RewardInfo("pickscore", "PickScore v1: human preference, scaled cosine", f"{PACKAGE}.pickscore", "PickScore"),
    RewardInfo(
        "clip_score", "CLIPScore with ViT-L/14: agreement with the prompt", f"{PACKAGE}.clip_score", "ClipScore"
    ),
    RewardInfo("clip_score_b32", "CLIPScore with ViT-B/32", f"{PACKAGE}.clip_score", "ClipScoreB32"),
    RewardInfo("aesthetic", "LAION aesthetic v2: beauty of the picture alone", f"{PACKAGE}.aesthetic", "Aesthetic"),
    RewardInfo("tiny", "quality and prompt agreement in the embedded tiny world; weights included", f"{PACKAGE}.tiny"),
    RewardInfo("brightness", "mean luma; no weights, for smoke tests", f"{PACKAGE}.smoke", "Brightness"),
    RewardInfo("sharpness", "mean gradient of luma; no weights, for smoke tests", f"{PACKAGE}.smoke", "Sharpness"),
)


def available_rewards() -> dict[str, RewardInfo]:
    """Built-in rewards and those that installed packages announce in the entry-point group `reneg.rewards`."""
    infos = {info.name: info for info in BUILT_IN}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        infos.setdefault(point.name, RewardInfo(point.name, f"from {point.value}", point.module, point.attr))
    return infos


def load_reward(
    spec: str,
    *,
    weights: object = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    normalise: str = "zscore",
    statistics: Mapping[str, Statistics] | None = None,
    **options: object,
) -> Reward:
    """Load a reward in eval mode with frozen parameters.

    spec: a registered name (`available_rewards`), a weighted mix such as "hpsv2.1*1.0 + image_reward*0.5", or the
        path of a python file that defines one `Reward` subclass ("path.py" or "path.py:ClassName").
    weights: a file or a directory in the published layout; for a mix also a mapping from name to one.
    normalise, statistics: for a mix, see `RewardMix`. options: passed on to every part that takes them.
    Raises ValueError for an unknown name or a bad mix, FileNotFoundError for missing files.
    """
    with ordinary_tensors():
        if not _is_mix(spec):
            return _load_one(spec, weights, device, dtype, options)
        factors, shared = parse_mix(spec), {}
        parts = {name: _load_one(name, _weights_of(weights, name), device, dtype, options, shared) for name in factors}
        return RewardMix(parts, factors, normalise=normalise, statistics=statistics).eval()


def reward_class_of(name: str) -> type[Reward]:
    """The class behind a registered name or a python file; nothing is loaded. Raises ValueError for an unknown name."""
    return _resolve(name)[0]


def parse_mix(spec: str) -> dict[str, float]:
    """ "a*1.0 + b*0.5" as {"a": 1.0, "b": 0.5}; a missing factor is 1. Raises ValueError on anything else."""
    factors: dict[str, float] = {}
    for term in spec.split("+"):
        name, _, factor = term.partition("*")
        name = name.strip()
        if not name or name in factors:
            problem = f"names {name!r} twice" if name else "has an empty term"
            raise ValueError(f"reward mix {spec!r} {problem}; expected e.g. 'hpsv2.1*1.0 + image_reward*0.5'")
        factors[name] = _factor(factor, spec)
    return factors


def _factor(text: str, spec: str) -> float:
    try:
        value = float(text) if text.strip() else 1.0
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(
            f"reward mix {spec!r}: {text.strip()!r} is not a finite number; "
            "expected e.g. 'hpsv2.1*1.0 + image_reward*0.5'"
        )
    return value


def _is_mix(spec: str) -> bool:
    return not Path(spec).is_file() and ("*" in spec or "+" in spec)


def _weights_of(weights: object, name: str) -> object:
    return weights.get(name) if isinstance(weights, Mapping) else weights


def _load_one(
    name: str,
    weights: object,
    device: torch.device | str,
    dtype: torch.dtype,
    options: dict[str, object],
    shared: dict | None = None,
) -> Reward:
    cls, fixed = _resolve(name)
    given = dict(options)
    if shared is not None:  # a mix hands every part all options: each takes the ones it knows
        given = {key: value for key, value in given.items() if key in cls.options_for_loading}
        if "shared" in cls.options_for_loading:
            given["shared"] = shared
    weights = _weights_of(weights, name)
    _check_options(cls, name, [*given, *(["weights"] if weights is not None else [])])
    reward = cls.load(weights=weights, device=device, dtype=dtype, **fixed, **given)
    reward.name = reward.name or name
    return reward.eval().requires_grad_(False)


def _check_options(cls: type[Reward], name: str, given: Sequence[str]) -> None:
    """Refuse options that the class does not take (ValueError); nothing is known of a `load` that takes any."""
    builder = cls.__init__ if cls.load.__func__ is Reward.load.__func__ else cls.load
    named = {} if builder is torch.nn.Module.__init__ else inspect.signature(builder).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values()) and not cls.options_for_loading:
        return
    unused = sorted(set(given) - set(named) - cls.options_for_loading)
    if unused:
        known = ", ".join(sorted(cls.options_for_loading)) or "none"
        raise ValueError(f"Got {', '.join(unused)} for the reward {name}, which takes {known}. Try without.")


def _resolve(name: str) -> tuple[type[Reward], dict[str, object]]:
    infos = available_rewards()
    if name in infos:
        info = infos[name]
        return reward_class(importlib.import_module(info.module), info.class_name), dict(info.options)
    path, _, class_name = name.partition(".py:")
    path = Path(f"{path}.py" if class_name else name)
    if path.suffix == ".py":
        return reward_class(_import_file(path), class_name), {}
    near = [other for other in infos if other.startswith(name)]
    hint = f"; name the version: {', '.join(near)}" if near else ""
    raise ValueError(
        f"unknown reward {name!r}{hint}; expected one of {', '.join(sorted(infos))}, "
        "a mix of them, or the path of a python file"
    )


def _import_file(path: str | PathLike) -> ModuleType:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"reward file {path} does not exist; expected a python file with a Reward subclass")
    spec = spec_from_file_location(f"reneg_user_reward_{path.stem}", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reward_class(module: ModuleType, class_name: str = "") -> type[Reward]:
    """The reward class that `module` itself defines, by name if it defines several."""
    found = {cls.__name__: cls for cls in _defined_rewards(module)}
    if class_name in found:
        return found[class_name]
    if not class_name and len(found) == 1:
        return next(iter(found.values()))
    wanted = repr(class_name) if class_name else "exactly one Reward subclass"
    raise ValueError(
        f"{module.__file__} defines {', '.join(found) or 'no Reward subclass'}; expected {wanted}"
        f"{'' if class_name else ' (or name one: path.py:ClassName)'}"
    )


def _defined_rewards(module: ModuleType) -> Iterator[type[Reward]]:
    for _, value in inspect.getmembers(module, inspect.isclass):
        if issubclass(value, Reward) and value.__module__ == module.__name__:
            yield value
