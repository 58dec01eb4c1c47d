"""Nodes that sample with a learned negative, through the host's own sampling."""

import logging
import math
from typing import Any

from comfy_api.latest import io

from reneg_core.embedding import NegativeEmbedding
from reneg_core.guidance import Guidance, strengthen
from reneg_core.model import Conditioning

from .host import sampling
from .host.feedback import say
from .inputs import attention_input, require_choices
from .layout import HostConditioning, from_host, to_host
from .schema import Embedding, advanced, not_in, schema

NEGATIVE_TIP = (
    "Optional. A negative prompt. Its ControlNet, areas and hooks are kept and its text is what strength 0 means; "
    "at strength 1 the embedding takes the place of its text."
)

ATTENTION_TIP = (
    "For models that are sampled at cfg 1 (Stable Diffusion 1, 2, XL): how strongly the negative acts inside the "
    "cross-attention. 0 is off and neutral; otherwise cfg has to be 1."
)


def subject_inputs() -> list[io.Input]:
    """What the sampler and the guider work on."""
    return [
        io.Model.Input("model", tooltip="The model to denoise with."),
        io.Conditioning.Input("positive", tooltip="What should be in the picture."),
        Embedding.Input("embedding", tooltip="The learned negative."),
    ]


def cfg_input() -> io.Input:
    """The guidance scale of both."""
    return io.Float.Input(
        "cfg",
        default=7.5,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Guidance scale. At 1 the negative has no effect; the published embeddings were trained at 7.5.",
    )


def guidance_inputs() -> list[io.Input]:
    """What both add to the host's own sampler and guider."""
    return [
        io.Conditioning.Input("negative", optional=True, tooltip=NEGATIVE_TIP),
        advanced(
            io.Float,
            "strength",
            default=1.0,
            min=0.0,
            max=3.0,
            step=0.05,
            tooltip="From the negative prompt (0) to the embedding (1, neutral); above 1 exaggerates. Other "
            "values than 1 need the negative input.",
        ),
        advanced(
            io.Float,
            "guidance_start",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the schedule after which guidance begins; 0 is neutral. Before it the positive "
            "alone runs, which is faster.",
        ),
        advanced(
            io.Float,
            "guidance_end",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the schedule at which guidance ends; 1 is neutral.",
        ),
        advanced(
            io.Float,
            "rescale",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="Takes back the contrast that a high cfg adds; 0 is off and neutral.",
        ),
        attention_input(ATTENTION_TIP),
    ]


def negative_of(
    embedding: NegativeEmbedding, positive: HostConditioning, negative: HostConditioning | None, strength: float
) -> HostConditioning:
    """The negative CONDITIONING: the embedding in every entry of ``negative``, or alone."""
    check_width(embedding, positive)
    if negative is None:
        if strength != 1:
            raise ValueError(
                f"Got strength {strength:g} without a negative, expected one: strength is measured from it. Connect an "
                "empty prompt to negative, or set the strength to 1."
            )
        return to_host(embedding, _needed_beside(embedding, positive))
    return [entry for part in negative for entry in to_host(_between(part, embedding, strength), part[1])]


def check_width(embedding: NegativeEmbedding, positive: HostConditioning) -> None:
    """Refuse an embedding of another text encoder before the model fails inside a matrix product."""
    width = positive[0][0].shape[-1]
    if width != embedding.width:
        embedding.require(NegativeEmbedding(positive[0][0][:1].float().clone()).family, width)


def _needed_beside(embedding: NegativeEmbedding, positive: HostConditioning) -> dict[str, Any]:
    """Sizes and rates as the positive has them, that there is a mask, and a zero pooled vector where the model has one
    and the embedding none."""
    told, sizes = positive[0][1], ("width", "height", "crop", "target", "guidance", "frame_rate", "attention_mask")
    extra = {name: value for name, value in told.items() if name.startswith(sizes)}
    if "pooled_output" in told and embedding.pooled is None:
        pooled = told["pooled_output"]
        extra["pooled_output"] = None if pooled is None else pooled.new_zeros(pooled.shape)
    return extra


def _between(part: list[Any], embedding: NegativeEmbedding, strength: float) -> NegativeEmbedding:
    if strength == 1:
        return embedding
    base: Conditioning = from_host(*part)
    if base.tokens.shape[1:] != embedding.tokens.shape[1:]:
        raise ValueError(
            f"Got a negative of {base.tokens.shape[1]} tokens and an embedding of {embedding.length}, expected equal "
            "lengths for a strength other than 1. Try a shorter negative prompt or strength 1."
        )
    return NegativeEmbedding(
        strengthen(base.tokens[:1], embedding.tokens, strength),
        embedding.family,
        embedding.mask,
        embedding.pooled,
        embedding.provenance,
    )


def warn_without_effect(guidance: Guidance, node_id: str | None) -> None:
    """At cfg 1 the host does not run the negative at all."""
    if math.isclose(guidance.scale, 1.0) and not guidance.attention:
        text = "cfg is 1: the negative has no effect. Set cfg above 1, or guide the attention."
        logging.warning("ReNeg: %s", text)
        say(text, node_id)


def prepare(
    node_id: str | None,
    model: Any,
    positive: HostConditioning,
    embedding: NegativeEmbedding,
    cfg: float,
    strength: float = 1.0,
    guidance_start: float = 0.0,
    guidance_end: float = 1.0,
    rescale: float = 0.0,
    attention_guidance: float = 0.0,
    negative: HostConditioning | None = None,
) -> tuple[Any, HostConditioning]:
    """The model patched for the guidance, and the negative CONDITIONING."""
    if not math.isfinite(cfg):
        raise ValueError(f"cfg: got {cfg}, expected a finite number.")
    guidance = Guidance(cfg, guidance_start, guidance_end, rescale, attention_guidance)
    warn_without_effect(guidance, node_id)
    found = negative_of(embedding, positive, negative, strength)
    if attention_guidance:
        check_whole(found)
    return sampling.guided(model, guidance), found


def check_whole(negative: HostConditioning) -> None:
    """Attention guidance knows one negative, for the whole picture and all steps; ValueError for anything else."""
    limits = {"area", "mask", "start_percent", "end_percent", "timestep_start", "timestep_end"}
    found = sorted({name for _, told in negative for name in told} & limits)
    if len(negative) != 1 or found:
        said = f"with {', '.join(found)}" if found else f"of {len(negative)} parts"
        raise ValueError(
            f"Got a negative {said} and attention guidance, expected one text for the whole picture. Connect a plain "
            "negative prompt, or none."
        )


class CFGSampler(io.ComfyNode):
    """The stock KSampler with the negative from an embedding."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        samplers, schedulers = sampling.sampler_names(), sampling.scheduler_names()
        return schema(
            node_id="ReNegCFGSampler",
            display_name="ReNeg CFG Sampler",
            search_aliases=["KSampler", "negative embedding sampler"],
            description="KSampler with a learned negative embedding. With strength 1, the full interval and no rescale "
            "its latents equal KSampler's bit for bit.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                *subject_inputs(),
                io.Latent.Input("latent_image", tooltip="The latent to denoise."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise.",
                ),
                io.Int.Input("steps", default=30, min=1, max=10000, tooltip="Number of denoising steps."),
                cfg_input(),
                io.Combo.Input("sampler_name", options=samplers, default="euler", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=schedulers, default="normal", tooltip="As in KSampler."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the latent is replaced; 1 starts from pure noise.",
                ),
                *guidance_inputs(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent.")],
        )

    @classmethod
    def validate_inputs(cls, sampler_name: str) -> bool | str:
        return not_in("sampler_name", sampler_name, sampling.sampler_names()) or True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: HostConditioning,
        embedding: NegativeEmbedding,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        **extras: Any,
    ) -> io.NodeOutput:
        require_choices(scheduler=scheduler)
        patched, negative = prepare(cls.hidden.unique_id, model, positive, embedding, cfg, **extras)
        latent = sampling.sample(
            patched,
            positive,
            negative,
            latent_image,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
        )
        return io.NodeOutput(latent)


class Guider(io.ComfyNode):
    """The same negative for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegGuider",
            display_name="ReNeg Guider",
            search_aliases=["CFGGuider", "negative embedding guider"],
            description="A guider with a learned negative embedding, for SamplerCustomAdvanced.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                *subject_inputs(),
                cfg_input(),
                *guidance_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: HostConditioning, embedding: NegativeEmbedding, cfg: float, **extras: Any
    ) -> io.NodeOutput:
        patched, negative = prepare(cls.hidden.unique_id, model, positive, embedding, cfg, **extras)
        return io.NodeOutput(sampling.guider(patched, positive, negative, cfg))


NODES = [CFGSampler, Guider]
