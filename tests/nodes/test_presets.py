"""Without a host: what the presets of the training node stand for."""

from collections.abc import Iterator
from typing import Any

import pytest

from reneg_core.training import TrainConfig
from reneg_core.training.run_config import load_run_config

from .fake_host import imported


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    with imported("presets", "settings") as found:
        yield found


def config_of(modules: Any, preset: str, **changes: Any) -> TrainConfig:
    presets, settings = modules
    options = presets.settings_for(preset, None, **{"steps": 0, "size": 512, "seed": 0, **changes})
    plain = {k: v for k, v in options.items() if k not in ("prompt_file", "validation_prompts")}
    return TrainConfig(**settings.rollout_settings(plain), jitter=settings.jitter_of(plain))


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_a_preset_is_the_recipe_of_its_name(modules: Any, preset: str) -> None:
    """But for what belongs to the model: the tiny world's guidance scale, and "normal" for the model's own spacing."""
    recipe, found = load_run_config(preset), config_of(modules, preset)
    for name in ("steps", "batch_size", "learning_rate", "gradient_window", "points", "through", "validate_every"):
        assert getattr(found, name) == getattr(recipe, name), name
    wanted = recipe.sampling.at_scale(7.5).changed(height=512, width=512)
    assert found.sampling.equals(wanted) and not found.jitter


def test_quick_is_small_and_only_it_has_a_limit(modules: Any) -> None:
    presets, _ = modules
    found = config_of(modules, "quick")
    assert found.steps * found.batch_size * found.sampling.steps <= 10_000 and found.micro_batch <= 2
    assert found.checkpointing and {p: presets.limit_of(p) for p in presets.PRESETS} == {
        "quick": 3600.0, "fast": None, "paper": None, "from settings": None,
    }  # fmt: skip


def test_steps_size_and_seed_are_the_nodes_own(modules: Any) -> None:
    found = config_of(modules, "quick", steps=7, size=64, seed=5)
    assert (found.steps, found.sampling.size.width, found.sampling.size.height, found.seed) == (7, 64, 64, 5)


def test_settings_are_used_or_refused(modules: Any) -> None:
    presets, _ = modules
    numbers = {"steps": 0, "size": 64, "seed": 0}
    own = presets.settings_for("from settings", {"cfg": 3.0, "width": 96, "height": 0}, **numbers)
    assert (own["cfg"], own["width"], own["height"], own["steps"]) == (3.0, 96, 64, 60)
    assert own["batch_size"] == presets.RECIPES["quick"]["batch_size"], "the rest is quick's"
    with pytest.raises(ValueError, match=r"preset 'from settings' without settings.*Connect one, or choose 'quick'"):
        presets.settings_for("from settings", None, **numbers)
    with pytest.raises(ValueError, match=r"preset 'fast' with a Training Settings node connected.*not use"):
        presets.settings_for("fast", {}, **numbers)
