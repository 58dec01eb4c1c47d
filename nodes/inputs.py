"""Inputs that several nodes share: the model and its judge, how pictures are made, where gradients are taken."""

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from reneg_core.text_file import read_prompt_lines

from .host import files, sampling
from .runs import CONTINUE, EXISTING
from .schema import Reward, advanced, not_in
from .settings import OFF, SOLVERS, VARY

EXISTING_TIP = (
    "continue: goes on where the run of that name stopped; with other prompts or settings a new number is taken. new "
    "numbered run: always another one. start over: what was there keeps a number. An unchanged, finished run is not "
    "done again."
)


def model_inputs(purpose: str = "learn the negative for") -> list[io.Input]:
    """The parts of a checkpoint, and what it is judged by."""
    return [
        io.Model.Input("model", tooltip=f"The model to {purpose}, with its LoRAs. It is not changed."),
        io.Clip.Input("clip", tooltip="Its text encoder."),
        io.Vae.Input("vae", tooltip="Its VAE; the pictures it decodes are what the reward judges."),
        Reward.Input("reward", tooltip="From Load Reward Model or Combine Rewards."),
    ]


def run_inputs(name: str, tip: str) -> list[io.Input]:
    """What a run is of and is called: its pictures' size, its seed, its folder, and what becomes of an earlier one."""
    return [
        io.Int.Input(
            "size",
            default=512,
            min=16,
            max=4096,
            step=8,
            tooltip="Side of the square training pictures in pixels: 512 for SD 1.5, 1024 for SDXL.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**53 - 1,
            control_after_generate=False,
            tooltip="Seed of prompts and noise. It stays as it is; another one is another run.",
        ),
        io.String.Input("run_name", default=name, tooltip=tip),
        io.Combo.Input("existing_run", options=EXISTING, default=CONTINUE, tooltip=EXISTING_TIP),
    ]


def picture_inputs(
    cfg_tip: str = "Guidance scale (paper: 7.5). Sample later with a similar one to that of the training.",
) -> list[io.Input]:
    """How pictures are sampled; the same for training, adaptation and comparison."""
    return [
        io.Int.Input("width", default=512, min=16, max=4096, step=8, tooltip="Width of the pictures in pixels."),
        io.Int.Input("height", default=512, min=16, max=4096, step=8, tooltip="Height of the pictures in pixels."),
        io.Int.Input("sampling_steps", default=30, min=1, max=1000, tooltip="Denoising steps a picture (paper: 30)."),
        io.Float.Input(
            "cfg",
            default=7.5,
            min=1.0,
            max=100.0,
            step=0.1,
            tooltip=cfg_tip,
        ),
    ]


def attention_input(tip: str) -> io.Input:
    """A negative at cfg 1, where there is no pass of its own."""
    return advanced(
        io.Float, "attention_guidance", optional=True, default=0.0, min=0.0, max=50.0, step=0.1, tooltip=tip
    )


def pass_inputs(
    batch_tip: str = "Pictures in one pass. Halved by itself when memory runs out.",
    scheduler_tip: str = "Noise levels, as in KSampler: sample later with the same.",
) -> list[io.Input]:
    """How many pictures go through the model at once, at which noise levels."""
    return [
        advanced(
            io.Int,
            "micro_batch",
            default=4,
            min=1,
            max=1024,
            tooltip=batch_tip,
        ),
        advanced(
            io.Combo,
            "scheduler",
            options=sampling.scheduler_names(),
            default="normal",
            tooltip=scheduler_tip,
        ),
    ]


def reach_inputs(optional: bool = True) -> list[io.Input]:
    """Where gradients are taken and how far they reach; optional where older graphs are to stay as they are."""
    return [
        advanced(
            io.Int,
            "last_steps",
            optional=optional,
            default=0,
            min=0,
            max=1000,
            tooltip="Gradients are taken in this many of the last denoising steps; 0 is the last third (paper: 10 of "
            "30). More reaches what is decided early, such as noise and composition.",
        ),
        advanced(
            io.Int,
            "through",
            optional=optional,
            default=1,
            min=0,
            max=1000,
            tooltip="Denoising steps that a gradient passes through; 1 is the paper's one-step estimate, 0 goes to the "
            "finished picture. More is nearer to it and needs more memory: switch checkpointing on.",
        ),
    ]


def rollout_inputs(rate: float, points: int) -> list[io.Input]:
    """How trajectories are integrated; the same for training and adaptation."""
    return [
        *picture_inputs(),
        advanced(
            io.Float,
            "learning_rate",
            default=rate,
            min=1e-6,
            max=10.0,
            step=0.0001,
            round=False,
            tooltip="AdamW's learning rate (paper: 0.005 for training).",
        ),
        advanced(
            io.Int,
            "points",
            default=points,
            min=1,
            max=100,
            tooltip="Late steps per picture at which the gradient is taken.",
        ),
        *pass_inputs(),
        solver_input(),
        advanced(
            io.Boolean,
            "checkpointing",
            default=False,
            tooltip="Compute activations again in the backward pass: less memory, about a third more time.",
        ),
    ]


SOLVER_TIP = "euler is DDIM, as in the paper; dpmpp_2m belongs with karras, simple, sgm_uniform or exponential."


def solver_input(tip: str = f"As in KSampler: sample later with the same. {SOLVER_TIP}", **options: bool) -> io.Input:
    """How a trajectory is integrated."""
    return advanced(io.Combo, "solver", options=SOLVERS, default="euler", tooltip=tip, **options)


def vary_input(optional: bool = True) -> io.Input:
    """Whether one embedding is to serve several samplers."""
    return advanced(
        io.Combo,
        "vary",
        optional=optional,
        options=VARY,
        default=OFF,
        tooltip="off: learn for the one sampler that is set here. samplers and guidance: draw solver, number of steps, "
        "scheduler and cfg anew at each step, so that one file serves many samplers; validation stays as set here.",
    )


def judging_inputs() -> list[io.Input]:
    """When a training is judged, and what ends it."""
    return [
        advanced(
            io.Int,
            "validate_every",
            default=50,
            min=1,
            max=100000,
            tooltip="Steps between validations; each draws the preview and decides what is kept.",
        ),
        advanced(io.Int, "validation_pairs", default=16, min=1, max=4096, tooltip="Pictures in a validation."),
        advanced(
            io.Int,
            "patience",
            default=0,
            min=0,
            max=1000,
            tooltip="Stop after so many validations without a new best; 0 never stops early.",
        ),
        advanced(
            io.Float,
            "norm_limit",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.05,
            tooltip="How far a token may move, in units of the start's mean token length; 0 is off.",
        ),
    ]


def optional_inputs() -> list[io.Input]:
    """What a training may be given besides."""
    return [
        io.Conditioning.Input(
            "start",
            optional=True,
            tooltip="Optional. The negative prompt to start from; without it, the empty prompt.",
        ),
        Reward.Input(
            "watched_reward",
            optional=True,
            tooltip="Optional. A second reward that is only measured, to notice reward hacking.",
        ),
        io.String.Input(
            "validation_prompts",
            optional=True,
            multiline=True,
            default="",
            tooltip="Optional. One per line; without them every tenth prompt is kept aside.",
        ),
    ]


def prompt_file_input() -> io.Input:
    """A list of prompts instead of the text."""
    return io.Combo.Input(
        "prompt_file",
        options=files.prompt_files(),
        default=files.NOTHING,
        tooltip="A .txt in ComfyUI's input folder, one prompt per line, instead of the text.",
    )


def with_defaults(inputs: list[io.Input], values: Mapping[str, Any]) -> list[io.Input]:
    """Inputs with defaults from ``values``, none folded away; a size of 0 is that of another node."""
    for one in inputs:
        one.default = values.get(one.id, getattr(one, "default", None))
        if hasattr(one, "advanced"):
            one.advanced = None
        if one.id in ("width", "height"):
            one.min, one.tooltip = 0, f"{one.tooltip} 0 is the size on the training node."
    return inputs


def require_choices(
    scheduler: str | None = None, solver: str | None = None, vary: str | None = None, **others: Any
) -> None:
    """Raise ValueError for a choice that is not offered."""
    wrong = (
        not_in("scheduler", scheduler, sampling.scheduler_names())
        or not_in("solver", solver, SOLVERS)
        or not_in("vary", vary, VARY)
    )
    if wrong:
        raise ValueError(wrong)


def prompt_list(text: str, file: str) -> list[str]:
    """Prompts from the text, one per line, or from a file in the input folder."""
    if file != files.NOTHING:
        return read_prompt_lines(files.prompt_path(file))
    return [line.strip() for line in text.splitlines() if line.strip()]
