"""The embedded model: everything can be tried at once, without a checkpoint."""

from comfy_api.latest import io

from .schema import schema


class LoadTinyWorld(io.ComfyNode):
    """The repository's own small text-to-image model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegLoadTinyWorld",
            display_name="Load Tiny World",
            search_aliases=["ReNeg demo", "tiny model", "example model"],
            description="A small text-to-image model that comes with this pack: shapes on a background, 32x32 pixels, "
            "often flawed. For trying every node in seconds, on any computer, with nothing to download.",
            inputs=[
                io.Int.Input("pictures", default=4, min=1, max=256, tooltip="Pictures in the empty latent."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For KSampler and every node of this pack."),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Knows prompts like: a red circle on a blue background. Shapes: circle, square, triangle, "
                    "diamond, cross, ring.",
                ),
                io.Vae.Output(display_name="vae", tooltip="Twelve latent channels, a quarter of the pixels' size."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of 32x32 pixels for KSampler."),
            ],
        )

    @classmethod
    def execute(cls, pictures: int) -> io.NodeOutput:
        from .host import tiny  # here, so that a host whose classes have changed keeps every other node

        return io.NodeOutput(*tiny.load(), tiny.empty_latent(pictures))


NODES = [LoadTinyWorld]
