"""The nodes' inputs as the core's settings: the one place that reads them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from reneg_core.guidance import Guidance
from reneg_core.sampling import Jitter, Sampling, Size
from reneg_core.training.config import ConfigError, RolloutConfig

from .host.attention import require_cross_attention
from .host.feedback import Passing
from .host.model import HostModel
from .host.rewards import HostReward
from .host.schedules import spacing_of

SOLVERS = ["euler", "dpmpp_2m"]
OFF, SAMPLERS_AND_GUIDANCE = "off", "samplers and guidance"
VARY = [OFF, SAMPLERS_AND_GUIDANCE]
SHARES = (1 / 3, 2 / 3, 1.0)
"""Of the number of steps: what a varied training draws from."""
FACTORS = (0.5, 1.0, 1.5)
"""Of what the cfg is above 1: what a varied training draws from."""
READ = {"width", "height", "sampling_steps", "cfg", "scheduler", "solver", "last_steps", "vary", "attention_guidance"}


def guidance_of(options: Mapping[str, Any]) -> Guidance:
    """How a negative acts; ValueError for a cfg and an attention guidance that do not go together."""
    return Guidance(options["cfg"], attention=options.get("attention_guidance", 0.0))


def sampling_of(options: Mapping[str, Any]) -> Sampling:
    """How the node's inputs say that pictures are made. A scheduler that is one of the core's spacings is recorded as
    that; every other one is the spacing "model", whose scheduler the model's name records."""
    return Sampling(
        options.get("solver", "euler"),
        options["sampling_steps"],
        spacing_of(options["scheduler"]),
        guidance_of(options),
        Size(options["height"], options["width"]),
    )


def rollout_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The node's inputs under the names of the core's configurations; a preset may say ``window`` itself."""
    rest = {name: value for name, value in options.items() if name not in READ}
    sampling, last = sampling_of(options), options.get("last_steps", 0)
    window = (max(0, sampling.steps - last), sampling.steps) if last else None
    return {"window": window, **rest, "sampling": sampling}


def jitter_of(options: Mapping[str, Any]) -> Jitter:
    """What training draws anew at each step: nothing, or both solvers, up to three step counts with room for the
    gradient points, three spacings, and three guidance scales around those that are set unless attention is guided."""
    if options.get("vary", OFF) == OFF:
        return Jitter()
    settings = rollout_settings(options)
    base, points = settings["sampling"], settings["points"]
    config = RolloutConfig(sampling=base, window=settings["window"])
    steps = dict.fromkeys(max(1, round(share * base.steps)) for share in SHARES)
    windows = {count: config.window_of(base.changed(steps=count)) for count in steps}
    scales = () if base.guidance.attention else tuple(1 + factor * (base.guidance.scale - 1) for factor in FACTORS)
    return Jitter(
        solver=tuple(SOLVERS),
        steps=tuple(count for count, (first, last) in windows.items() if last - first >= points),
        spacing=tuple(dict.fromkeys([base.spacing, "trailing", "karras"])),
        guidance_scale=scales,
    )


OWN_NAMES = {
    "sampling.guidance_scale": "cfg",
    "sampling.steps": "sampling_steps",
    "of the window": "that last_steps says (0: a third of sampling_steps)",
    "window: ": "last_steps: ",
}


@contextmanager
def in_own_names() -> Iterator[None]:
    """Faults of a configuration under the names that the inputs have."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for name, own in OWN_NAMES.items():
            text = text.replace(name, own)
        raise ValueError(text) from error


def host_model(
    model: Any, clip: Any, vae: Any, reward: HostReward, options: Mapping[str, Any], passing: Passing
) -> HostModel:
    """The core's view of the host's model for one piece of work; a gradient through several steps keeps as much as
    that many pictures would, unless their activations are computed again. Errors: ValueError for attention guidance of
    a model that has no cross-attention."""
    if guidance_of(options).attention:
        require_cross_attention(model)
    through = options.get("through", 1) or options["sampling_steps"]
    kept = 1 if options.get("checkpointing") else through
    return HostModel(
        model,
        clip,
        vae,
        scheduler=options["scheduler"],
        companions=reward.patchers,
        size=Size(options["height"], options["width"]),
        batch=options["micro_batch"] * kept,
        passing=passing,
    )


def check_levels(model: HostModel, sampling: Sampling, jitter: Jitter) -> None:
    """Refuse, before any work, a scheduler that has no levels for a number of steps that will be asked of it."""
    for steps in jitter.steps or (sampling.steps,):
        for spacing in jitter.spacing or (sampling.spacing,):
            model.sigmas(sampling.changed(steps=steps, spacing=spacing))
