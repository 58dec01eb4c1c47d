"""One node that shows what a negative is worth: none, text, embedding and adapted on the same prompts and seeds."""

import json
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from reneg_core.embedding import NegativeEmbedding
from reneg_core.evaluation import (
    Evaluation,
    Judges,
    Keep,
    Pairs,
    Rivals,
    compare_rivals,
    comparison,
    grid_of,
)
from reneg_core.evaluation.modes import ADAPTED, EMBEDDING, NONE, TEXT
from reneg_core.sampling import Sampling
from reneg_core.training import AdaptConfig

from .estimates import say_comparison
from .host import files
from .host.feedback import say, stoppable
from .host.rewards import HostReward
from .host.schedules import learned_for
from .inputs import (
    SOLVER_TIP,
    attention_input,
    model_inputs,
    pass_inputs,
    picture_inputs,
    prompt_list,
    require_choices,
    solver_input,
)
from .layout import only_text, pil_to_image, suited
from .schema import Embedding, schema
from .settings import host_model, sampling_of
from .watching import Counter, Judged, require_plots

LABELS = {NONE: "empty prompt", TEXT: "negative prompt", EMBEDDING: "ReNeg embedding", ADAPTED: "adapted"}
SHOWN = 8

ATTENTION_TIP = (
    "For models that are sampled at cfg 1 (Stable Diffusion 1, 2, XL): how strongly every negative acts inside the "
    "cross-attention. 0 is off; otherwise cfg has to be 1."
)


class CompareNegatives(io.ComfyNode):
    """The grid, the scores and the win rates."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegCompareNegatives",
            display_name="Compare Negatives",
            search_aliases=["win rate", "A/B test", "score negatives"],
            description="Draws every prompt and seed with each negative from the same noise, scores the pictures and "
            "counts how often each negative wins.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *model_inputs("draw with"),
                io.String.Input("prompts", multiline=True, default="", tooltip="One per line."),
                io.Int.Input("seeds", default=2, min=1, max=64, tooltip="Pictures per prompt and negative."),
                io.Int.Input("first_seed", default=0, min=0, max=2**53 - 1, tooltip="The seeds count on from here."),
                *picture_inputs("Guidance scale of all pictures; an embedding is at home at that of its training."),
                io.Boolean.Input(
                    "adapted", default=False, tooltip="Also adapt the embedding to each prompt and seed (slow)."
                ),
                *pass_inputs(
                    "Pictures in one pass; fewer need less memory.", "Noise levels of all pictures, as in KSampler."
                ),
                io.Conditioning.Input("text_negative", optional=True, tooltip="Optional. A prompt to compare."),
                Embedding.Input("embedding", optional=True, tooltip="Optional. A learned negative to compare."),
                solver_input(f"Of all pictures, as in KSampler. {SOLVER_TIP}", optional=True),
                attention_input(ATTENTION_TIP),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row per prompt and seed, a column per negative."),
                io.Image.Output(display_name="chart", tooltip="Mean scores and win rates with their intervals."),
                io.String.Output(display_name="report", tooltip="All scores, win rates and settings as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        reward: HostReward,
        prompts: str,
        seeds: int,
        first_seed: int,
        adapted: bool,
        text_negative: list | None = None,
        embedding: NegativeEmbedding | None = None,
        **options: Any,
    ) -> io.NodeOutput:
        say("loading the model", cls.hidden.unique_id)
        require_plots()
        require_choices(**options)
        pairs = counted_pairs(prompt_list(prompts, files.NOTHING), seeds, first_seed)
        sampling = sampling_of(options)
        if not sampling.guidance.active(sampling.guidance.start):
            raise ValueError("Got cfg 1, where no negative acts. Set cfg above 1, or guide the attention.")
        texts = {} if text_negative is None else {TEXT: only_text(text_negative)}
        judged = Judged(reward.reward)
        judges = Judges({reward.name: judged.score}, climbed=judged)
        with torch.inference_mode(False), torch.no_grad():
            host = host_model(model, clip, vae, reward, options, stoppable)
            rivals = Rivals(
                encoded=texts,
                embeddings={} if embedding is None else {EMBEDDING: suited(embedding, host.encode([""]))},
                adapted=AdaptConfig.for_sampling(sampling, micro_batch=options["micro_batch"]) if adapted else None,
                labels=LABELS,
            )
            say_comparison(host, judged, pairs, rivals, sampling, options["micro_batch"], cls.hidden.unique_id)
            result = compare_rivals(
                host,
                pairs,
                rivals,
                judges,
                sampling,
                keep=Keep(min(SHOWN, len(pairs))),
                batch_size=options["micro_batch"],
                progress=Counter(cls.hidden.unique_id, judged).update,
            )
        text = "\n".join(filter(None, [win_rates(result), elsewhere(embedding, sampling)]))
        say(text, cls.hidden.unique_id)
        report = json.dumps(result.to_json(), ensure_ascii=False)
        return io.NodeOutput(*pictures(result), report, ui={"text": (text,)})


def elsewhere(embedding: NegativeEmbedding | None, sampling: Sampling) -> str:
    """A line for an embedding that was learned for another sampling than the comparison's, else nothing."""
    recorded = embedding and embedding.sampling
    same = recorded is None or recorded.equals(replace(sampling, size=recorded.size))
    return "" if same else f"the embedding was {learned_for(embedding)}"


def counted_pairs(prompts: list[str], each: int, first: int) -> Pairs:
    """``each`` pictures per prompt; every picture has a seed of its own, counting on from ``first``."""
    rows = range(first, first + each * len(prompts), each)
    return Pairs(tuple(prompts), tuple(tuple(range(start, start + each)) for start in rows))


def win_rates(result: Evaluation) -> str:
    """Means and win rates against the empty prompt, for the node."""
    [measure] = result.measures
    lines = [f"{result.label(mode)}: {result.mean(measure, mode).value:.4f}" for mode in result.modes]
    for mode in result.modes:
        if mode != "none":
            lines.append(
                f"{result.label(mode)} wins {result.win_rate(measure, mode, 'none').value:.0%} against the empty prompt"
            )
    return "\n".join(lines)


def pictures(result: Evaluation) -> tuple[Any, Any]:
    """The grid of pictures and the chart as IMAGEs."""
    return pil_to_image(grid_of(result)), pil_to_image(comparison(result))


NODES = [CompareNegatives]
