"""Clips from models that ComfyUI does not run, through diffusers."""

from comfy_api.latest import io

from reneg_core.embedding import NegativeEmbedding
from reneg_core.evaluation import fitted
from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling, Size, sample

from .host import pipelines
from .host.feedback import Progress
from .host.files import NOTHING
from .layout import to_bhwc
from .schema import Embedding, schema


class SampleVideo(io.ComfyNode):
    """A clip of a diffusers pipeline with a learned, a written or no negative."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = pipelines.video_names()
        return schema(
            node_id="ReNegSampleVideo",
            display_name="Sample Video (diffusers)",
            search_aliases=["ZeroScope", "VideoCrafter2", "text to video", "ReNeg video"],
            description="Makes a clip with a video model that ComfyUI does not run (ZeroScope, VideoCrafter2), through "
            "the package diffusers, with a learned negative embedding where one is connected.",
            inputs=[
                io.Combo.Input(
                    "pipeline",
                    options=names,
                    tooltip="A diffusers pipeline folder in models/diffusers: ZeroScope, LTX-Video; or VideoCrafter2's "
                    "UNet converted to diffusers' layout.",
                ),
                io.String.Input("prompt", multiline=True, default="", tooltip="What the clip shows."),
                io.String.Input(
                    "negative_prompt", multiline=True, default="", tooltip="Used where no embedding is connected."
                ),
                io.Int.Input("width", default=576, min=64, max=4096, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=320, min=64, max=4096, step=8, tooltip="Height in pixels."),
                io.Int.Input(
                    "frames",
                    default=24,
                    min=1,
                    max=1024,
                    tooltip="Frames of the clip; LTX-Video: 8 times N and one.",
                ),
                io.Int.Input("steps", default=30, min=1, max=1000, tooltip="Denoising steps, deterministic DDIM."),
                io.Float.Input("cfg", default=12.0, min=1.0, max=100.0, step=0.1, tooltip="Guidance scale."),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True, tooltip="The noise."
                ),
                io.Combo.Input(
                    "used_in",
                    options=[NOTHING, *(name for name in names if name != NOTHING)],
                    tooltip="Only for VideoCrafter2's UNet: ZeroScope's pipeline, whose other parts it uses.",
                ),
                Embedding.Input(
                    "embedding", optional=True, tooltip="The negative; for ZeroScope and VideoCrafter2 that of SD 2.1."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The frames, for Create Video or a preview."),
                io.Float.Output(display_name="fps", tooltip="Frames a second, for Create Video."),
            ],
        )

    @classmethod
    def validate_inputs(cls, pipeline: str) -> bool | str:
        try:
            pipelines.video_folder(pipeline)
        except (ValueError, OSError) as error:
            return pipelines.missing() or str(error)
        return pipelines.missing() or True

    @classmethod
    def execute(
        cls,
        pipeline: str,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        frames: int,
        steps: int,
        cfg: float,
        seed: int,
        used_in: str,
        embedding: NegativeEmbedding | None = None,
    ) -> io.NodeOutput:
        sampling = Sampling("ddim", steps, size=Size(height, width, frames)).at_scale(cfg)
        with pipelines.loaded(pipeline, used_in) as model:
            progress = Progress(steps)
            noise, positive = model.noise([seed], sampling.size), model.encode([prompt])
            latents = sample(
                model, positive, _negative(model, embedding, negative_prompt), noise, sampling,
                callback=lambda step, x0: progress.update(step + 1),
            )  # fmt: skip
            return io.NodeOutput(to_bhwc(model.decode(latents)[0]), model.frame_rate)


def _negative(model: pipelines.VideoModel, embedding: NegativeEmbedding | None, text: str) -> Conditioning:
    if embedding is None:
        return model.encode([text])
    embedding.require(model.family, model.width, model.max_tokens)
    return fitted(embedding.conditioning(), model.encode([""]).to("cpu")).to(model.device)


NODES = [SampleVideo]
