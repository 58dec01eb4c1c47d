"""Nodes that load, save, blend and make negative embeddings."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from reneg_core.embedding import FAMILIES, NegativeEmbedding, describe_family, load_embedding

from .host import files
from .host.feedback import DownloadWatch, say
from .host.schedules import learned_for
from .host.text import embedding_from, encode, family_of, require_fit
from .layout import HostConditioning, to_host
from .schema import Embedding, download_input, schema

STRENGTH = {"default": 1.0, "min": 0.0, "max": 3.0, "step": 0.05}
CLIP_TIP = (
    "Optional. The model's text encoder: checks that the embedding fits, adds what the model needs beside the tokens "
    "(SDXL's pooled vector), and is needed for a strength other than 1."
)

BLEND_CLIP_TIP = (
    "Optional. The model's text encoder: checks that the mixture fits and adds what the model needs beside the tokens."
)


def describe(embedding: NegativeEmbedding) -> str:
    """For the node: what the embedding is and where it comes from, and on a line of its own what it was learned for."""
    source = embedding.provenance
    parts = [describe_family(embedding.family), f"{embedding.length} tokens"]
    parts += [f"trained on {source.base_model}"] if source.base_model else []
    parts += [f"reward {source.rewards}, {source.steps} steps"] if source.rewards else []
    return "\n".join(filter(None, [", ".join(parts), learned_for(embedding)]))


def apply(embedding: NegativeEmbedding, clip: Any, strength: float) -> tuple[NegativeEmbedding, HostConditioning]:
    """Check the fit, move towards the empty prompt by ``strength``, and wrap for samplers."""
    if clip is None:
        if strength != 1:
            raise ValueError(
                f"Got strength {strength:g} without a text encoder, expected CLIP to be connected: "
                "strength is measured from the empty prompt. Connect CLIP or set the strength to 1."
            )
        return embedding, to_host(embedding)
    null, extra = encode(clip, "")
    require_fit(embedding, clip, null)
    if strength != 1:
        base = null if embedding.pooled is not None else replace(null, pooled=None)
        embedding = embedding.toward_null(base, strength)
    return embedding, to_host(embedding, extra)


class LoadEmbedding(io.ComfyNode):
    """A file becomes the negative of any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegLoadEmbedding",
            display_name="Load ReNeg Embedding",
            search_aliases=["negative embedding", "negative prompt", "learned negative", "textual inversion"],
            description="Loads a learned negative embedding and says which sampler, steps and guidance it was learned "
            "for. Connect the conditioning to any sampler's negative input.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "embedding_name",
                    options=files.embedding_names(),
                    tooltip="A file from models/reneg or from output/reneg, where training writes. After a run the "
                    "node says what it was learned for: sample with the same, or nearly. It is no textual inversion: "
                    "embedding:name in a prompt is another thing, because this file is the text encoder's output.",
                ),
                io.Float.Input(
                    "strength",
                    **STRENGTH,
                    tooltip="How far from the empty prompt (0) to the embedding (1, "
                    "neutral). Above 1 exaggerates. Other values than 1 need CLIP.",
                ),
                io.Clip.Input("clip", optional=True, tooltip=CLIP_TIP),
                download_input("A published embedding that is not installed", "models/reneg"),
            ],
            outputs=[
                io.Conditioning.Output(display_name="negative", tooltip="For the negative input of any sampler."),
                Embedding.Output(display_name="embedding", tooltip="For the other ReNeg nodes."),
            ],
        )

    @classmethod
    def validate_inputs(cls, embedding_name: str) -> bool | str:
        try:
            files.embedding_path(embedding_name)
        except (ValueError, OSError) as error:
            return files.is_published(embedding_name) or str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, embedding_name: str, strength: float = 1.0, **others: Any) -> str:
        try:
            status = files.embedding_path(embedding_name).stat()
        except (ValueError, OSError):
            return embedding_name
        return f"{embedding_name} {status.st_mtime_ns} {status.st_size} {strength}"

    @classmethod
    def execute(cls, embedding_name: str, strength: float, clip: Any = None, download: bool = False) -> io.NodeOutput:
        told = DownloadWatch(cls.hidden.unique_id).told
        path = files.download_embedding(embedding_name, told) if download else files.embedding_path(embedding_name)
        embedding = load_embedding(path)
        if clip is not None:
            embedding = _adopt_family(embedding, family_of(clip))
        text = describe(embedding)
        embedding, conditioning = apply(embedding, clip, strength)
        say(text, cls.hidden.unique_id)
        return io.NodeOutput(conditioning, embedding, ui={"text": (text,)})


def _adopt_family(embedding: NegativeEmbedding, family: str) -> NegativeEmbedding:
    """A file whose encoder nobody knows (named by its width only) is taken for the connected one if it can be."""
    fits = family not in FAMILIES or FAMILIES[family].width == embedding.width
    unknown = embedding.family.startswith("width-")
    return replace(embedding, family=family) if fits and unknown else embedding


class SaveEmbedding(io.ComfyNode):
    """An embedding becomes a file where Load finds it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegSaveEmbedding",
            display_name="Save ReNeg Embedding",
            search_aliases=["save negative", "save conditioning"],
            description="Saves an embedding as safetensors in output/reneg, where Load ReNeg Embedding lists it.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                Embedding.Input("embedding", tooltip="What to save."),
                io.String.Input(
                    "filename",
                    default="negative",
                    tooltip="Name or folder/name inside output/reneg. An "
                    "existing file is never overwritten: a number is added.",
                ),
                io.Combo.Input(
                    "layout",
                    options=["reneg", "ltx"],
                    tooltip="reneg: with mask, pooled vector and origin."
                    " ltx: readable by LTX conditioning loaders, without a pooled vector.",
                ),
            ],
            outputs=[io.String.Output(display_name="embedding_name", tooltip="The name in the list of Load.")],
        )

    @classmethod
    def validate_inputs(cls, filename: str) -> bool | str:
        if filename is not None:
            try:
                files.new_name(filename)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, embedding: NegativeEmbedding, filename: str, layout: str) -> io.NodeOutput:
        if layout not in ("reneg", "ltx"):
            raise ValueError(f"Got layout {layout!r}, expected reneg or ltx.")
        path = embedding.save(files.new_file(filename), layout=layout)
        name = files.listed_name(path)
        say(f"saved as {name}", cls.hidden.unique_id)
        return io.NodeOutput(name, ui={"text": (name,)})


class BlendEmbeddings(io.ComfyNode):
    """A point between two embeddings of one text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegBlendEmbeddings",
            display_name="Blend ReNeg Embeddings",
            search_aliases=["mix negatives", "merge embeddings"],
            description="Mixes two embeddings of the same text encoder and length, token by token.",
            inputs=[
                Embedding.Input("first", tooltip="The result at weight 0."),
                Embedding.Input("second", tooltip="The result at weight 1."),
                io.Float.Input(
                    "weight",
                    default=0.5,
                    min=-1.0,
                    max=2.0,
                    step=0.05,
                    tooltip="Share of the second embedding; 0 is the first alone, 1 the second alone.",
                ),
                io.Clip.Input("clip", optional=True, tooltip=BLEND_CLIP_TIP),
            ],
            outputs=[
                io.Conditioning.Output(display_name="negative", tooltip="For the negative input of any sampler."),
                Embedding.Output(display_name="embedding", tooltip="For the other ReNeg nodes."),
            ],
        )

    @classmethod
    def execute(
        cls, first: NegativeEmbedding, second: NegativeEmbedding, weight: float, clip: Any = None
    ) -> io.NodeOutput:
        embedding, conditioning = apply(first.blend(second, weight), clip, 1.0)
        return io.NodeOutput(conditioning, embedding)


class ConditioningToEmbedding(io.ComfyNode):
    """Any negative prompt becomes an embedding: to start training from, to blend, or to keep as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegConditioningToEmbedding",
            display_name="Conditioning To ReNeg Embedding",
            search_aliases=["negative prompt to embedding"],
            description="Turns an encoded prompt into a ReNeg embedding, as a start for training or to save it.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="One encoded prompt, for example a negative one."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Optional. Names the text encoder in the embedding; "
                    "without it the encoder is guessed from the token width.",
                ),
            ],
            outputs=[Embedding.Output(display_name="embedding", tooltip="For the other ReNeg nodes.")],
        )

    @classmethod
    def execute(cls, conditioning: HostConditioning, clip: Any = None) -> io.NodeOutput:
        return io.NodeOutput(embedding_from(conditioning, "" if clip is None else family_of(clip)))


NODES = [LoadEmbedding, SaveEmbedding, BlendEmbeddings, ConditioningToEmbedding]
