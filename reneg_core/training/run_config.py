"""A whole training job as one YAML file: which model, reward and prompts, and every setting of the trainer."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..rewards.precision import PRECISIONS
from .config import ConfigError, TrainConfig
from .names import merge, normalised

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


@dataclass(frozen=True)
class RunConfig(TrainConfig):
    """TrainConfig and what it is applied to.

    model: tiny, a pipeline folder, a .safetensors file or a hub id; model_config: for a single file, the pipeline
    folder with its configuration; device, dtype: see ``reneg_core.backends``; reward, watch: names or mixes, see
    ``reneg rewards``; reward_weights, watch_weights: their files; reward_dtype: precision of their networks, fp32, bf16
    or fp16; prompts, validation_prompts: text files with one prompt per line ("" = the tiny world's own); without
    validation prompts every tenth prompt is kept for that; output: folder of the run; tensorboard: write event files
    there too.
    """

    model: str = "tiny"
    model_config: str = ""
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
        if self.reward_dtype not in PRECISIONS:
            found.append(f"reward_dtype: got {self.reward_dtype!r}, expected one of {', '.join(PRECISIONS)}.")
        return found

    def train_config(self) -> TrainConfig:
        """The trainer's own part."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in fields(TrainConfig)})

    def to_yaml(self) -> str:
        """The resolved configuration; reading it back gives an equal one."""
        import yaml

        return yaml.safe_dump(self.to_mapping(), sort_keys=False)


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_run_config(source: str = "", overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe by name or a YAML file, then apply ``name=value`` overrides; ConfigError for anything unusable.

    An override may name one entry of a mapping, as ``sampling.steps=20``; the rest of the mapping stays.
    """
    values = normalised(_read(source)) if source else {}
    return RunConfig.from_mapping(merge(values, normalised(dict(parse_override(text) for text in overrides))))


def _read(source: str) -> dict[str, Any]:
    import yaml

    path = RECIPES / f"{source}.yaml" if source in recipe_names() else Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"No configuration at {source}. Expected a YAML file or one of the recipes {', '.join(recipe_names())}."
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"Got {type(values).__name__} in {path}, expected one 'name: value' per line.")
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """``"name=value"`` as a name and a YAML value; ConfigError without the equals sign."""
    import yaml

    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"Got the override {override!r}, expected name=value, for example learning_rate=1e-2.")
    return name.strip(), yaml.safe_load(text) if text else ""
