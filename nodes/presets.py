"""Presets of the training node: settings under the names that the Training Settings node has for them."""

from collections.abc import Mapping
from typing import Any

QUICK, FAST, PAPER, OWN = "quick", "fast", "paper", "from settings"
PRESETS = [QUICK, FAST, PAPER, OWN]
HOUR = 3600.0

_PLAIN = {
    "vary": "off",
    "patience": 0,
    "norm_limit": 0.0,
    "width": 0,
    "height": 0,
    "prompt_file": "none",
    "validation_prompts": "",
    "attention_guidance": 0.0,
}
RECIPES: dict[str, dict[str, Any]] = {
    QUICK: {
        **_PLAIN,
        "steps": 60,
        "batch_size": 8,
        "sampling_steps": 20,
        "cfg": 7.5,
        "solver": "dpmpp_2m",
        "scheduler": "karras",
        "learning_rate": 0.01,
        "last_steps": 0,
        "through": 1,
        "points": 1,
        "micro_batch": 2,
        "checkpointing": True,
        "validate_every": 10,
        "validation_pairs": 8,
    },
    FAST: {
        **_PLAIN,
        "steps": 60,
        "batch_size": 16,
        "sampling_steps": 10,
        "cfg": 7.5,
        "solver": "euler",
        "scheduler": "simple",
        "learning_rate": 0.02,
        "window": (0, 1),
        "last_steps": 0,
        "through": 0,
        "points": 1,
        "micro_batch": 2,
        "checkpointing": True,
        "validate_every": 15,
        "validation_pairs": 16,
    },
    PAPER: {
        **_PLAIN,
        "steps": 4000,
        "batch_size": 64,
        "sampling_steps": 30,
        "cfg": 7.5,
        "solver": "euler",
        "scheduler": "normal",
        "learning_rate": 0.005,
        "last_steps": 10,
        "through": 1,
        "points": 1,
        "micro_batch": 2,
        "checkpointing": True,
        "validate_every": 50,
        "validation_pairs": 32,
    },
}
"""What the presets stand for; ``last_steps`` 0 is the last third."""


def settings_for(
    preset: str, settings: Mapping[str, Any] | None, *, steps: int, size: int, seed: int
) -> dict[str, Any]:
    """Everything that a training is set by.

    settings: what a Training Settings node gives, or None; steps: 0 for the preset's number; size: side of the pictures
    where the settings do not say width and height. Errors: ValueError for settings that would not be used, and for none
    where they are asked for.
    """
    if preset == OWN and settings is None:
        raise ValueError(
            f"Got the preset {OWN!r} without settings, expected a Training Settings node connected to settings. "
            f"Connect one, or choose {QUICK!r}."
        )
    if preset != OWN and settings is not None:
        raise ValueError(
            f"Got the preset {preset!r} with a Training Settings node connected, which it would not use. Choose "
            f"{OWN!r}, or disconnect the settings."
        )
    found = dict(RECIPES[QUICK] | settings) if settings is not None else dict(RECIPES[preset])
    sides = {side: found[side] or size for side in ("width", "height")}
    return {**found, **sides, "steps": steps or found["steps"], "seed": seed}


def limit_of(preset: str) -> float | None:
    """Seconds that a training with the preset takes at most, None for no limit."""
    return HOUR if preset == QUICK else None
