"""The node that tunes a text encoder (TexForce): the training nodes' machinery with a LoRA in the negative's place."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from reneg_core.sampling import Jitter, Sampling
from reneg_core.texforce import TexForce, TexForceConfig, TexForceResult
from reneg_core.texforce.adapter import require_peft
from reneg_core.texforce.config import ROUTES
from reneg_core.training import Prompts, Session

from .host import files, loras
from .host.rewards import HostReward
from .host.schedules import in_words
from .host.tuning import require_tunable
from .inputs import model_inputs, pass_inputs, require_choices, run_inputs, solver_input
from .running import Task, Watch, curve_and_pictures, in_numbers, report_of, train
from .runs import EXISTING
from .schema import advanced, not_in, schema
from .settings import check_levels, host_model, in_own_names, sampling_of
from .training import fingerprint, refused_name
from .watching import NodeObserver

READ_BY_SAMPLING = {"size", "sampling_steps", "cfg", "scheduler", "solver"}
ROWS_OF_AN_UPDATE = 8
"""Trajectories that each update of the policy learns from, as in TexForce's recipe for one prompt."""


@dataclass(frozen=True)
class TextTask(Task):
    """A tuning; options: every number and choice under the names of the node's inputs."""

    @property
    def folder(self) -> Path:
        return files.tuning_folder(self.run_name)

    def trainer(self, texts: Prompts, watch: Watch, stack: ExitStack) -> TexForce:
        require_peft()
        require_tunable(self.clip)
        options = {**self.options, "width": self.options["size"], "height": self.options["size"], "checkpointing": True}
        host = host_model(self.model, self.clip, self.vae, self.reward, options, watch.button.leaving)
        with in_own_names():
            config = config_of(options)
        check_levels(host, config.sampling, Jitter())
        return TexForce(host, self.reward.reward, texts, config, self.folder, session=Session(resume=True))

    def outcome(self, result: TexForceResult) -> str:
        if result.best_reward is None:
            return "stopped before the first validation; the text encoder is as it was"
        sampling = Sampling.from_mapping(result.lora.provenance.sampling)
        name = files.lora_name(loras.place_of(result))
        return f"{in_numbers(result)}, saved as {name}\nlearned for {in_words(sampling)}"

    def outputs(self, result: TexForceResult, observer: NodeObserver) -> tuple[Any, ...]:
        path = loras.written(result)
        name = files.lora_name(path)
        report = report_of(result, name, result.lora.provenance)
        return loras.applied(self.clip, path), name, *curve_and_pictures(result, observer), json.dumps(report)


def config_of(options: dict[str, Any]) -> TexForceConfig:
    """The node's inputs as the core's configuration."""
    rest = {name: value for name, value in options.items() if name not in {*READ_BY_SAMPLING, "width", "height"}}
    parts = max(1, rest["batch_size"] // ROWS_OF_AN_UPDATE) if rest["route"] == "policy" else 1
    return TexForceConfig(
        **rest,
        sampling=sampling_of(options),
        alpha=float(rest["rank"]),
        updates=parts,
        checkpoint_every=rest["validate_every"],
    )


class TrainTextEncoder(io.ComfyNode):
    """A LoRA on the text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegTrainTextEncoder",
            display_name="Train Text Encoder (TexForce)",
            search_aliases=["train LoRA", "tune CLIP", "text encoder LoRA", "reinforcement learning", "DDPO"],
            description="Tunes a LoRA on the text encoder by raising a reward; the denoiser stays as it is (TexForce, "
            "arXiv 2311.15657). Stop keeps the best so far; queue again to go on.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *model_inputs("tune the text encoder for"),
                io.String.Input("prompts", multiline=True, default="", tooltip="Training prompts, one per line."),
                io.Combo.Input(
                    "route",
                    options=list(reversed(ROUTES)),
                    default="direct",
                    tooltip="direct: the reward's gradient through the last denoising steps, for rewards that "
                    "have one; quicker. policy: reinforcement learning, for any reward; needs many more pictures.",
                ),
                io.Int.Input("steps", default=40, min=1, max=1000000, tooltip="Steps in all, of a batch each."),
                io.Int.Input("rank", default=16, min=1, max=256, tooltip="Rank of the LoRA (TexForce: 16)."),
                *run_inputs(
                    "my_text_encoder",
                    "Name of the LoRA in models/loras/texforce, and of the run's folder in output/texforce.",
                ),
                *further_inputs(),
            ],
            outputs=[
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA, for CLIP Text Encode."),
                io.String.Output(display_name="lora_name", tooltip="The LoRA's file, as Load LoRA lists it."),
                io.Image.Output(display_name="curve", tooltip="The reward over the steps."),
                io.Image.Output(display_name="before_after", tooltip="Validation pictures of the start and of now."),
                io.String.Output(display_name="report", tooltip="What was trained, as JSON."),
            ],
        )

    @classmethod
    def validate_inputs(cls, run_name: str) -> bool | str:
        return refused_name(run_name, files.tuning_folder) or True

    @classmethod
    def fingerprint_inputs(cls, run_name: str, **others: Any) -> str:
        return fingerprint(run_name, files.tuning_folder)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        reward: HostReward,
        prompts: str,
        run_name: str,
        existing_run: str,
        **options: Any,
    ) -> io.NodeOutput:
        wrong = not_in("route", options["route"], list(ROUTES)) or not_in("existing_run", existing_run, EXISTING)
        if wrong:
            raise ValueError(wrong)
        require_choices(**options)
        parts = (model, clip, vae, reward, prompts, options, run_name)
        return train(TextTask(*parts, existing_run, None, cls.hidden.unique_id))


def further_inputs() -> list[io.Input]:
    """What most tunings leave as it is."""
    return [
        advanced(
            io.Int,
            "sampling_steps",
            default=20,
            min=2,
            max=1000,
            tooltip="Denoising steps a picture. Sample later with a similar number.",
        ),
        advanced(
            io.Float,
            "cfg",
            default=7.5,
            min=1.0,
            max=100.0,
            step=0.1,
            tooltip="Guidance scale (TexForce: 7.5), with an empty negative prompt. Sample later with a similar one.",
        ),
        advanced(
            io.Float,
            "learning_rate",
            default=3e-4,
            min=1e-6,
            max=1.0,
            step=0.0001,
            round=False,
            tooltip="AdamW's learning rate (TexForce: 0.0003).",
        ),
        advanced(
            io.Int,
            "batch_size",
            default=16,
            min=1,
            max=4096,
            tooltip="Pictures per step (TexForce: 512). policy: an update for every 8 of them. direct: one for all.",
        ),
        *pass_inputs(),
        solver_input("How validations and the route direct sample, as in KSampler; policy draws by DDIM with eta 1."),
        advanced(
            io.Int,
            "through",
            default=1,
            min=0,
            max=1000,
            tooltip="Of the route direct: denoising steps that the gradient passes through, from the end; 0 is all.",
        ),
        advanced(
            io.Int,
            "validate_every",
            default=5,
            min=1,
            max=100000,
            tooltip="Steps between validations; each draws the preview and decides what is kept.",
        ),
        advanced(io.Int, "validation_pairs", default=8, min=1, max=4096, tooltip="Pictures in a validation."),
    ]


NODES = [TrainTextEncoder]
