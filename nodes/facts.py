"""What a model's file cannot say, said by the user."""

from typing import Any

from comfy_api.latest import io

from .host.families import Facts, with_facts
from .schema import schema


class ModelForTraining(io.ComfyNode):
    """Marks a MODEL for the nodes that learn."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegModelForTraining",
            display_name="Model For Training",
            search_aliases=["real CFG", "de-distilled", "ReNeg video"],
            description="Tells the training, adapting and comparing nodes what a model's file does not say. "
            "Sampling is not changed.",
            inputs=[
                io.Model.Input("model", tooltip="The model to learn a negative for."),
                io.Boolean.Input(
                    "real_cfg",
                    default=False,
                    tooltip="The model is sampled with a cfg above 1 although it may be distilled: de-distilled Flux, "
                    "which its file does not tell from Schnell.",
                ),
                io.Int.Input(
                    "frames",
                    default=1,
                    min=1,
                    max=1024,
                    tooltip="Frames of a training clip of a video model, as its own latent node takes them (LTX-Video: "
                    "1, 9, 17...); the reward is averaged over some of them. 1 is a single picture.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the model input of the learning nodes.")],
        )

    @classmethod
    def execute(cls, model: Any, real_cfg: bool, frames: int) -> io.NodeOutput:
        return io.NodeOutput(with_facts(model, Facts(real_cfg, frames)))


NODES = [ModelForTraining]
