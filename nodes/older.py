"""The training node of version 0.1, with every setting on itself: saved workflows keep working."""

from typing import Any

from comfy_api.latest import io

from .host import files
from .inputs import (
    judging_inputs,
    model_inputs,
    optional_inputs,
    prompt_file_input,
    reach_inputs,
    require_choices,
    rollout_inputs,
    vary_input,
)
from .running import Task, train
from .schema import schema
from .training import fingerprint, refused_name, training_outputs
from .watching import seed_of


class TrainEmbedding(io.ComfyNode):
    """One negative for all prompts, every setting on the node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegTrainEmbedding",
            display_name="Train Negative Embedding (all settings)",
            description="The training node of version 0.1. New workflows are better off with Train Negative Embedding, "
            "whose settings have a node of their own.",
            is_output_node=True,
            is_deprecated=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *model_inputs(),
                io.String.Input("prompts", multiline=True, default="", tooltip="Training prompts, one per line."),
                prompt_file_input(),
                io.String.Input(
                    "run_name",
                    default="my_negative",
                    tooltip="Folder in output/reneg. The same name with the same settings goes on where it stopped.",
                ),
                io.Int.Input("steps", default=4000, min=1, max=1000000, tooltip="Optimizer steps (paper: 4000)."),
                io.Int.Input("batch_size", default=64, min=1, max=4096, tooltip="Pictures per step (paper: 64)."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    tooltip="Seed of prompts and noise. A run that goes on keeps its own.",
                ),
                *rollout_inputs(5e-3, 1),
                *judging_inputs(),
                *optional_inputs(),
                *reach_inputs(),
                vary_input(),
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
        cls, model: Any, clip: Any, vae: Any, reward: Any, prompts: str, run_name: str, **options: Any
    ) -> io.NodeOutput:
        require_choices(**options)
        options["seed"] = seed_of(files.run_folder(run_name), options["seed"])
        return train(Task(model, clip, vae, reward, prompts, options, run_name, node_id=cls.hidden.unique_id))


NODES = [TrainEmbedding]
