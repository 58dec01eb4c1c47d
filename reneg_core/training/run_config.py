"""A whole training job as one YAML file: which model, reward and prompts, and every setting of the trainer."""

import os
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ..backends.lora_terms import parse_loras
from ..rewards.precision import PRECISIONS
from ..text_file import read_text
from ..typed import shown
from .config import EMBEDDING_SUFFIXES, ConfigError, LoopConfig, TrainConfig
from .decoding import TINY, Decoder
from .names import merge, normalised
from .run import Run
from .trainer import Trainer

MAX_CONFIG = 2**18
"""Bytes of a configuration file."""
PATHS = ("model_config", "reward_weights", "watch_weights", "prompts", "validation_prompts")
J = TypeVar("J", bound="JobConfig")
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class JobConfig(LoopConfig):
    """What a training is applied to, whatever it learns; a kind of job puts its method's settings before this.

    model: tiny, a pipeline folder, a .safetensors file or a hub id; model_config: for a single file, the pipeline
    folder with its configuration; loras: FILE[*WEIGHT], joined with " + ", merged into the model before anything is
    learned; device, dtype: see ``reneg_core.backends``; reward, watch: names or mixes, see
    ``reneg rewards``; reward_weights, watch_weights: their files; reward_dtype: precision of their networks, fp32, bf16
    or fp16; prompts, validation_prompts: text files with one prompt per line ("" = the tiny world's own); without
    validation prompts every tenth prompt is kept for that; output: folder of the run; tensorboard: write event files
    there too.
    """

    method: ClassVar[type[Run]]
    """What learns."""
    settings: ClassVar[type[LoopConfig]]
    """Its settings."""
    command: ClassVar[str]
    """The subcommand."""
    recipes: ClassVar[Path]
    """The folder of the recipes that come with the package."""
    starts: ClassVar[tuple[str, ...]]
    """What ``init`` ends in where it names a file."""

    model: str = "tiny"
    model_config: str = ""
    loras: str = ""
    device: str = "auto"
    dtype: str = "auto"
    reward: str = "tiny"
    reward_weights: str = ""
    reward_dtype: str = "fp32"
    watch: str = ""
    watch_weights: str = ""
    prompts: str = ""
    validation_prompts: str = ""
    output: str = "runs/negative"
    tensorboard: bool = False

    def faults(self) -> list[str]:
        found = super().faults()
        try:
            parse_loras(self.loras)
        except ValueError as error:
            found.append(f"loras: {error}")
        if self.reward_dtype not in PRECISIONS:
            found.append(f"reward_dtype: got {self.reward_dtype!r}, expected one of {', '.join(PRECISIONS)}.")
        return found

    def train_config(self) -> LoopConfig:
        """The method's own part."""
        return self.settings(**{field.name: getattr(self, field.name) for field in fields(self.settings)})

    def anchored(self: J) -> J:
        """The same with absolute paths for the output folder and for whatever names what is there, so that it means
        the same from everywhere."""
        found = {name: _absolute(getattr(self, name)) for name in PATHS}
        found |= {name: _absolute(getattr(self, name), (".py",)) for name in ("reward", "watch")}
        found["init"] = _absolute(self.init, self.starts)
        decoder = Decoder.read(self.decoder)
        found["decoder"] = f"{TINY}:{_absolute(decoder.file)}" if decoder.file else self.decoder
        if hasattr(self, "negative"):
            found["negative"] = _absolute(self.negative, EMBEDDING_SUFFIXES)
        loras = [one._replace(path=_absolute(one.path)) for one in parse_loras(self.loras)]
        found["loras"] = " + ".join(map(str, loras))
        found["model"] = self.model if self.model == "tiny" else _absolute(self.model)
        return replace(self, **found, output=os.path.abspath(os.path.expanduser(self.output)))

    def to_yaml(self) -> str:
        """The resolved configuration; reading it back gives an equal one."""
        import yaml

        return yaml.safe_dump(self.to_mapping(), sort_keys=False)


@dataclass(frozen=True)
class RunConfig(TrainConfig, JobConfig):
    """A whole training of a negative embedding."""

    method, settings, command = Trainer, TrainConfig, "train"
    recipes, starts = RECIPES, EMBEDDING_SUFFIXES


def _absolute(text: str, suffixes: tuple[str, ...] = ()) -> str:
    """``text`` as an absolute path if it names what is there, with one of ``suffixes`` if there are any; a class behind
    a python file ("file.py:Name") stays."""
    name, colon, inside = text.partition(".py:")
    path = Path(os.path.expanduser(f"{name}.py" if colon else text))
    if not text or (suffixes and path.suffix not in suffixes) or not os.path.exists(path):
        return text  # also a prompt that is too long for a file's name
    return f"{path.absolute()}{':' + inside if colon else ''}"


def recipe_names(kind: type[JobConfig] = RunConfig) -> list[str]:
    """The recipes that come with the package for this kind of job."""
    return sorted(path.stem for path in kind.recipes.glob("*.yaml"))


def load_run_config(source: str = "", overrides: Sequence[str] = (), kind: type[J] = RunConfig) -> J:
    """Read a recipe by name or a YAML file, then apply ``name=value`` overrides; ConfigError for anything unusable.

    An override may name one entry of a mapping, as ``sampling.steps=20``; the rest of the mapping stays.
    """
    values = normalised(_read(source, kind)) if source else {}
    text = {name for name, hint in typing.get_type_hints(kind).items() if hint is str}
    given = dict(parse_override(override, text) for override in overrides)
    return kind.from_mapping(merge(values, normalised(given)))


def _read(source: str, kind: type[JobConfig]) -> dict[str, Any]:
    names = recipe_names(kind)
    path = kind.recipes / f"{source}.yaml" if source in names else Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"No configuration at {source}. Expected a YAML file or one of the recipes {', '.join(names)}."
        )
    values = _yaml(read_text(path, MAX_CONFIG), str(path)) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"Got {type(values).__name__} in {path}, expected one 'name: value' per line.")
    return values


def parse_override(override: str, text: Collection[str] = ()) -> tuple[str, Any]:
    """``"name=value"`` as a name and a YAML value; ConfigError without the equals sign.

    text: names whose values are text and are taken as they are, whatever they would mean in YAML; quotes around the
    whole are left out.
    """
    name, equals, value = override.partition("=")
    name = name.strip()
    if not equals:
        raise ConfigError(f"Got the override {shown(override)}, expected name=value, for example learning_rate=1e-2.")
    if name in text:
        return name, value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    return name, _yaml(value, f"the value of {name}") if value else ""


def _yaml(text: str, where: str) -> Any:
    """One YAML value; ConfigError naming ``where`` for what is none, or refers to itself."""
    import yaml

    try:
        value = yaml.safe_load(text)
        _check_nesting(value)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"Got no valid YAML in {where} ({reason}), expected name: value lines or a value.") from error
    return value


def _check_nesting(value: Any, most: int = 8, budget: int = 10_000) -> None:
    """ValueError for what is nested deeper than any setting, contains itself, or repeats itself without end."""
    level = [value]
    for _ in range(most):
        level = [inner for item in level for inner in _inside(item)]
        budget -= len(level)
        if budget < 0:
            raise ValueError("too many values")
    if level:
        raise ValueError(f"nested deeper than {most}")


def _inside(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else list(item) if isinstance(item, list | set | tuple) else []
