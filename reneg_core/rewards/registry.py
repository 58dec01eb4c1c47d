"""Which rewards exist, and `load_reward`: a name, a mix or a python file becomes a frozen reward."""

import importlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from os import PathLike
from pathlib import Path
from types import ModuleType

import torch

from reneg_core.rewards.base import Reward, Statistics, ordinary_tensors
from reneg_core.rewards.checkpoint import Placement
from reneg_core.rewards.mix import RewardMix
from reneg_core.rewards.pyiqa_metric import PREFIX, PyiqaMetric
from reneg_core.rewards.user_function import UserFunction
from reneg_core.rewards.weights import FILE_OPTIONS, Source

VAR_POSITIONAL, VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
PLACES = frozenset({"search_dirs", "download"})  # options that say where to look, which every reward may be given
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
    RewardInfo(
        "jpeg_compressibility",
        "minus the kilobytes of the picture as JPEG; without a gradient",
        f"{PACKAGE}.jpeg",
        "JpegCompressibility",
    ),
    RewardInfo(
        "jpeg_incompressibility",
        "the kilobytes of the picture as JPEG; without a gradient",
        f"{PACKAGE}.jpeg",
        "JpegIncompressibility",
    ),
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

    spec: a registered name (`available_rewards`), a weighted mix such as "hpsv2.1*1.0 + image_reward*0.5", the path of
        a python file that defines one `Reward` subclass ("path.py" or "path.py:ClassName"), a function as
        "module:function", or a metric of pyiqa as "pyiqa:name"; the last two without a gradient.
    weights: a file or a directory in the published layout; for a mix also a mapping from name to one.
    normalise, statistics: for a mix, see `RewardMix`.
    options: `search_dirs` and `download`, which say where files come from; `config`, `vocab`, `merges`,
        `preprocess`, `checkpointing`, `memory_budget` and what else a reward takes. A mix passes each to the parts
        that take it.
    Raises ValueError for an unknown name or option, a bad mix, or the weights of something else; FileNotFoundError
    for missing files.
    """
    placement = Placement(device, dtype)
    with ordinary_tensors():
        if not _is_mix(spec):
            return _load_one(spec, {"weights": _weights_of(weights, spec), **options}, placement)
        factors = parse_mix(spec)
        taken = {name: options_of(reward_class_of(name)) for name in factors}
        parts = {}
        for name in factors:
            own = {key: value for key, value in options.items() if key in taken[name] | PLACES}
            parts[name] = _load_one(name, {"weights": _weights_of(weights, name), **own}, placement)
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


def options_of(cls: type[Reward]) -> frozenset[str]:
    """The options that loading the reward takes besides `search_dirs` and `download`."""
    own = inspect.signature(cls.__init__).parameters if cls.load.__func__ is Reward.load.__func__ else {}
    named = {name for name, parameter in own.items() if parameter.kind not in (VAR_POSITIONAL, VAR_KEYWORD)}
    return cls.options_for_loading | named - {"self"}


def _load_one(name: str, options: Mapping[str, object], placement: Placement) -> Reward:
    cls, fixed = _resolve(name)
    given = {key: value for key, value in options.items() if value is not None}
    known = options_of(cls)
    unknown = sorted(set(given) - known - PLACES)
    if unknown:
        taken = ", ".join(sorted(known)) or "none"
        raise ValueError(f"reward {name!r} takes no {unknown[0]}; it takes {taken}. Try without it.")
    source = Source.of(**{key: value for key, value in given.items() if key in FILE_OPTIONS})
    own = {key: value for key, value in given.items() if key not in FILE_OPTIONS}
    reward = cls.load(source, placement, **fixed, **own)
    reward.name = reward.name or name
    return reward.eval().requires_grad_(False)


def _resolve(name: str) -> tuple[type[Reward], dict[str, object]]:
    infos = available_rewards()
    if name in infos:
        info = infos[name]
        return reward_class(importlib.import_module(info.module), info.class_name), dict(info.options)
    path, _, class_name = name.partition(".py:")
    path = Path(f"{path}.py" if class_name else name)
    if path.suffix == ".py":
        return reward_class(_import_file(path), class_name), {}
    if name.startswith(PREFIX):
        return PyiqaMetric, {"metric": name.removeprefix(PREFIX)}
    module, colon, function = name.partition(":")
    if colon and module.replace(".", "").isidentifier() and function.isidentifier():
        return UserFunction, {"function": name}
    near = [other for other in infos if other.startswith(name)]
    hint = f"; name the version: {', '.join(near)}" if near else ""
    raise ValueError(
        f"unknown reward {name!r}{hint}; expected one of {', '.join(sorted(infos))}, "
        "a mix of them, the path of a python file, module:function or pyiqa:metric"
    )


def _import_file(path: str | PathLike) -> ModuleType:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"reward file {path} does not exist; expected a python file with a Reward subclass")
    spec = spec_from_file_location(f"reneg_user_reward_{path.stem}", path)
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"reward file {path} cannot be imported ({type(error).__name__}: {error})") from error
    return module


def reward_class(module: ModuleType, class_name: str = "") -> type[Reward]:
    """The reward class that `module` itself defines, by name if it defines several; ValueError if it cannot score."""
    cls = _chosen(module, class_name)
    if cls._score is Reward._score and cls.score is Reward.score:
        raise ValueError(
            f"{module.__file__}: {cls.__name__} has no _score(images, prompts); expected one that returns a tensor [B]"
        )
    return cls


def _chosen(module: ModuleType, class_name: str) -> type[Reward]:
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
