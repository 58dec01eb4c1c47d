"""One node that shows what a negative is worth: none, text, embedding and adapted on the same prompts and seeds."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io

from reneg_core.embedding import NegativeEmbedding
from reneg_core.evaluate import Evaluation, Mode, evaluate
from reneg_core.model import Conditioning, DiffusionModel
from reneg_core.training import AdaptConfig, adapt

from .host import files
from .host.feedback import Progress, say, stop_if_asked
from .host.rewards import HostReward
from .inputs import model_inputs, pass_inputs, picture_inputs, prompt_list, solver_input, wrong_choice
from .layout import only_text, pil_to_image, suited
from .schema import Embedding, schema
from .settings import host_model, sampling_of
from .watching import require_plots

LABELS = {"none": "empty prompt", "text": "negative prompt", "embedding": "ReNeg embedding", "adapted": "adapted"}


class CompareNegatives(io.ComfyNode):
    """The grid, the scores and the win rates."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegCompareNegatives",
            display_name="Compare Negatives",
            search_aliases=["win rate", "ReNeg comparison"],
            description="Draws every prompt and seed with each negative from the same noise, scores the pictures and "
            "counts how often each negative wins.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *model_inputs(),
                io.String.Input("prompts", multiline=True, default="", tooltip="One per line."),
                io.Int.Input("seeds", default=2, min=1, max=64, tooltip="Pictures per prompt and negative."),
                io.Int.Input("first_seed", default=0, min=0, max=2**53 - 1, tooltip="The seeds count on from here."),
                *picture_inputs(),
                io.Boolean.Input(
                    "adapted", default=False, tooltip="Also adapt the embedding to each prompt and seed (slow)."
                ),
                *pass_inputs(),
                io.Conditioning.Input("text_negative", optional=True, tooltip="Optional. A prompt to compare."),
                Embedding.Input("embedding", optional=True, tooltip="Optional. A learned negative to compare."),
                solver_input(optional=True),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row per prompt and seed, a column per negative."),
                io.Image.Output(display_name="chart", tooltip="Mean scores and win rates with their intervals."),
                io.String.Output(display_name="report", tooltip="All scores, win rates and settings as JSON."),
            ],
        )

    @classmethod
    def validate_inputs(cls, scheduler: str, solver: str | None = None) -> bool | str:
        return wrong_choice(scheduler, solver) or True

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
        require_plots()
        texts, numbers = prompt_list(prompts, files.NOTHING), [first_seed + i for i in range(seeds)]
        with torch.inference_mode(False), torch.no_grad():
            host = host_model(model, clip, vae, reward, options, stop_if_asked)
            negatives = {"none": host.encode([""]).to("cpu")}
            if text_negative is not None:
                negatives["text"] = matching(only_text(text_negative), negatives["none"])
            if embedding is not None:
                embedding.require(host.family, host.width)
                embedding = suited(embedding, negatives["none"])
                negatives["embedding"] = embedding.conditioning()
            if adapted:
                negatives["adapted"] = adapt_all(host, reward, texts, numbers, embedding, options)
            result = compare(host, reward, texts, numbers, negatives, options)
        text = win_rates(result)
        say(text, cls.hidden.unique_id)
        report = json.dumps(result.to_json(), ensure_ascii=False)
        return io.NodeOutput(*pictures(result), report, ui={"text": (text,)})


def matching(negative: Conditioning, null: Conditioning) -> Conditioning:
    """``negative`` with the parts the model needs and no others."""
    pooled = None if null.pooled is None else negative.pooled if negative.pooled is not None else null.pooled
    mask = negative.mask if null.mask is not None else None
    return Conditioning(negative.tokens[:1], mask, pooled)


def adapt_all(
    host: DiffusionModel,
    reward: HostReward,
    prompts: list[str],
    seeds: list[int],
    embedding: NegativeEmbedding | None,
    options: Mapping[str, Any],
) -> Conditioning:
    """One adapted negative per (prompt, seed), all seeds of the first prompt first."""
    if embedding is None:
        raise ValueError("Got no embedding to adapt, expected one. Connect an embedding or switch adapted off.")
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    progress, done = Progress(len(pairs)), [0]

    def advance(count: int) -> None:
        done[0] += count
        progress.update(done[0])

    config = AdaptConfig.for_sampling(sampling_of(options), micro_batch=options["micro_batch"])
    columns = [list(column) for column in zip(*pairs, strict=True)]
    return adapt(host, reward.reward, *columns, embedding, config, progress=advance).negatives


def compare(
    host: DiffusionModel,
    reward: HostReward,
    prompts: list[str],
    seeds: list[int],
    negatives: Mapping[str, Conditioning],
    options: Mapping[str, Any],
) -> Evaluation:
    """The core's evaluation with the node's progress bar."""
    progress = Progress(len(prompts) * len(seeds) * len(negatives))
    return evaluate(
        host,
        prompts,
        seeds,
        {name: Mode(negative, LABELS[name]) for name, negative in negatives.items()},
        {reward.name: reward.reward.score},
        guidance_scale=options["cfg"],
        steps=options["sampling_steps"],
        solver=options.get("solver", "euler"),
        batch_size=options["micro_batch"],
        height=options["height"],
        width=options["width"],
        pictures=min(8, len(prompts) * len(seeds)),
        progress=lambda done, total: progress.update(done),
    )


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
    from reneg_core import plots

    [measure], modes = result.measures, list(result.modes)
    rows, labels, captions = [], [], []
    for index, (prompt, seed) in enumerate(result.pictures.pairs):
        rows.append([result.pictures.images[mode][index] for mode in modes])
        labels.append(f"{result.prompts[prompt]}\nseed {result.seeds[seed]}")
        captions.append([f"{result.scores[measure][mode][prompt][seed]:.3f}" for mode in modes])
    grid = plots.grid(rows, labels, [result.label(mode) for mode in modes], captions=captions, side=256)
    return pil_to_image(grid), pil_to_image(plots.comparison(result))


NODES = [CompareNegatives]
