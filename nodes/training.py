"""The training node and the node of its settings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from .host import files
from .host.rewards import HostReward
from .inputs import (
    attention_input,
    judging_inputs,
    model_inputs,
    optional_inputs,
    prompt_file_input,
    reach_inputs,
    require_choices,
    rollout_inputs,
    run_inputs,
    vary_input,
    with_defaults,
)
from .presets import OWN, PRESETS, QUICK, RECIPES, limit_of, settings_for
from .running import Task, train
from .runs import EXISTING, SERVED, state_of
from .schema import Embedding, Settings, not_in, schema
from .settings import guidance_of

PRESET_TIP = (
    "quick: at most an hour, on a card of 8 GB too. fast: the finished picture decides, most gain for its time. paper: "
    "4000 steps of 64 pictures, days. from settings: as the Training Settings node says."
)

ATTENTION_TIP = (
    "For models that are sampled at cfg 1 (Stable Diffusion 1, 2, XL): how strongly the negative acts inside the "
    "cross-attention. 0 is off; otherwise set cfg to 1, and sample with the same number in ReNeg CFG Sampler."
)


class Train(io.ComfyNode):
    """One negative for all prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegTrain",
            display_name="Train Negative Embedding",
            search_aliases=["learn negative", "train textual inversion", "negative prompt"],
            description="Learns a negative embedding for this model by raising a reward (ReNeg, arXiv 2412.19637). "
            "Stop keeps the best so far; queue again to go on.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *model_inputs(),
                io.String.Input("prompts", multiline=True, default="", tooltip="Training prompts, one per line."),
                io.Combo.Input("preset", options=PRESETS, default=QUICK, tooltip=PRESET_TIP),
                io.Int.Input(
                    "steps", default=0, min=0, max=1000000, tooltip="Optimizer steps in all; 0 is the preset's number."
                ),
                *run_inputs("my_negative", "Folder in output/reneg, where the result is written."),
                Settings.Input(
                    "settings", optional=True, tooltip=f"Optional. From Training Settings, for the preset {OWN!r}."
                ),
            ],
            outputs=training_outputs(),
        )

    @classmethod
    def validate_inputs(cls, run_name: str) -> bool | str:
        return refused_name(run_name) or True

    @classmethod
    def fingerprint_inputs(cls, run_name: str, **others: Any) -> str:
        return fingerprint(run_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        reward: HostReward,
        prompts: str,
        preset: str,
        run_name: str,
        existing_run: str,
        settings: dict[str, Any] | None = None,
        **numbers: int,
    ) -> io.NodeOutput:
        wrong = not_in("preset", preset, PRESETS) or not_in("existing_run", existing_run, EXISTING)
        if wrong:
            raise ValueError(wrong)
        options, limit = settings_for(preset, settings, **numbers), limit_of(preset)
        parts = (model, clip, vae, reward, prompts, options, run_name)
        return train(Task(*parts, existing_run, limit, cls.hidden.unique_id))


def training_outputs() -> list[io.Output]:
    """What a training hands on."""
    return [
        io.Conditioning.Output(display_name="negative", tooltip="For the negative input of any sampler."),
        Embedding.Output(display_name="embedding", tooltip="The best embedding; also saved in output/reneg."),
        io.Image.Output(display_name="curve", tooltip="The reward over the steps."),
        io.Image.Output(display_name="before_after", tooltip="Validation pictures of the start and of now."),
        io.String.Output(display_name="report", tooltip="What was trained, as JSON."),
    ]


def refused_name(run_name: str | None, folder: Callable[[str], Path] = files.run_folder) -> str:
    """A message for a name that leaves its ``folder``, else the empty string. (The host repeats a message for every
    input that a node's check names: so it names one, and choices are checked before the work begins.)"""
    try:
        if run_name is not None:
            folder(run_name)
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def fingerprint(run_name: str, folder: Callable[[str], Path] = files.run_folder) -> str:
    """What the host compares to know whether a training has to be done again."""
    try:
        return SERVED.fingerprint(run_name, state_of(folder(run_name)))
    except (ValueError, OSError, TypeError):
        return str(run_name)


class TrainingSettings(io.ComfyNode):
    """Everything that most trainings leave as it is."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Int.Input("batch_size", min=1, max=4096, tooltip="Pictures per step (paper: 64)."),
            *rollout_inputs(5e-3, 1),
            *judging_inputs(),
            *reach_inputs(optional=False),
            vary_input(optional=False),
            prompt_file_input(),
            *optional_inputs(),
            attention_input(ATTENTION_TIP),
        ]
        return schema(
            node_id="ReNegTrainingSettings",
            display_name="Training Settings",
            search_aliases=["training options", "learning rate"],
            description="Settings for Train Negative Embedding with the preset from settings; as they come they are "
            "those of the preset quick.",
            inputs=with_defaults(inputs, RECIPES[QUICK]),
            outputs=[Settings.Output(display_name="settings", tooltip="For Train Negative Embedding.")],
        )

    @classmethod
    def validate_inputs(cls, prompt_file: str) -> bool | str:
        try:
            if prompt_file not in (None, files.NOTHING):
                files.prompt_path(prompt_file)
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, prompt_file: str, **others: Any) -> str:
        """A prompt list that was written anew is read anew."""
        try:
            return "" if prompt_file == files.NOTHING else str(files.prompt_path(prompt_file).stat().st_mtime_ns)
        except (ValueError, OSError):
            return str(prompt_file)

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        require_choices(**settings)
        guidance_of(settings)
        return io.NodeOutput(settings)


NODES = [Train, TrainingSettings]
