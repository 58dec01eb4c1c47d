"""Nodes that load, mix and apply reward models."""

import json
import math
from typing import Any

import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reneg_core.evaluation.pictures import enlarge
from reneg_core.rewards import ScoreDetails, available_rewards
from reneg_core.rewards.precision import PRECISIONS

from .host import files, rewards
from .host.feedback import DownloadWatch, say
from .host.rewards import HostReward
from .layout import image_to_pil, pil_to_image, to_bchw
from .schema import Reward, advanced, download_input, not_in, schema

AUTOMATIC = "automatic"
LEAST_WIDTH = 128
PROMPT_TIP = "What the pictures should show. Aesthetic rewards ignore it."


class LoadReward(io.ComfyNode):
    """A reward by name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = list(available_rewards())
        return schema(
            node_id="ReNegLoadReward",
            display_name="Load Reward Model",
            search_aliases=["ImageReward", "HPSv2", "PickScore", "CLIPScore", "aesthetic score", "preference model"],
            description="Loads a reward model that scores pictures. Weights come from models/reward_models; nothing is "
            "downloaded unless you switch it on.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input("reward_name", options=names, default=names[0], tooltip=_summaries()),
                io.Combo.Input(
                    "weights",
                    options=[AUTOMATIC, *files.reward_weight_names()],
                    default=AUTOMATIC,
                    tooltip="A file or folder in models/reward_models; automatic finds published file names "
                    "there and in the Hugging Face cache.",
                ),
                advanced(
                    io.Combo,
                    "precision",
                    options=list(PRECISIONS),
                    default="fp32",
                    tooltip="fp32 gives the published numbers; bf16 and fp16 halve the memory.",
                ),
                download_input("What is missing", "models/reward_models"),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For Reward Score, Combine Rewards and training.")],
        )

    @classmethod
    def validate_inputs(cls, weights: str) -> bool | str:
        if weights not in (None, AUTOMATIC):
            try:
                files.reward_weights(weights)
            except (ValueError, OSError) as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, reward_name: str, weights: str, precision: str, download: bool = False) -> io.NodeOutput:
        wrong = not_in("precision", precision, list(PRECISIONS))
        if wrong:
            raise ValueError(wrong)
        path = None if weights == AUTOMATIC else files.reward_weights(weights)
        told = DownloadWatch(cls.hidden.unique_id).told if download else None
        reward = rewards.load(reward_name, path, PRECISIONS[precision], told)
        say(reward.name, cls.hidden.unique_id)
        return io.NodeOutput(reward)


def _summaries() -> str:
    there = {True: " (installed)", False: " (not installed)"}
    lines = [f"{name}: {info.summary}{there[rewards.installed(name)]}" for name, info in available_rewards().items()]
    return "\n".join(lines)


class CombineRewards(io.ComfyNode):
    """A weighted sum of up to four rewards, standardised so that the weights compare like with like."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        parts: list[io.Input] = []
        for index in range(1, 5):
            optional = index > 2
            parts += [
                Reward.Input(f"reward_{index}", optional=optional, tooltip=f"Reward number {index}."),
                io.Float.Input(
                    f"weight_{index}",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    optional=optional,
                    tooltip="Its share; 0 leaves it out of the sum, negative pushes its score down.",
                ),
            ]
        return schema(
            node_id="ReNegCombineRewards",
            display_name="Combine Rewards",
            search_aliases=["mix rewards", "weighted score"],
            description="Adds rewards up, each divided by its own spread so that the weights mean something.",
            inputs=[
                *parts,
                io.Combo.Input(
                    "normalise",
                    options=["zscore", "none"],
                    default="zscore",
                    tooltip="zscore: each score minus its mean, divided by its standard deviation. none: raw scores.",
                ),
            ],
            outputs=[Reward.Output(display_name="reward", tooltip="For Reward Score and training.")],
        )

    @classmethod
    def validate_inputs(cls, normalise: str) -> bool | str:
        return not_in("normalise", normalise, ["zscore", "none"]) or True

    @classmethod
    def execute(cls, normalise: str, **parts: Any) -> io.NodeOutput:
        given = [i for i in range(1, 5) if parts.get(f"reward_{i}") is not None]
        factors = [parts.get(f"weight_{i}", 1.0) for i in given]
        return io.NodeOutput(rewards.combine([parts[f"reward_{i}"] for i in given], factors, normalise))


class RewardScore(io.ComfyNode):
    """Scores, sorts, labels and selects a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegRewardScore",
            display_name="Reward Score",
            search_aliases=["rank images", "pick best", "score images", "aesthetic score"],
            description="Scores every picture of a batch, higher is better, and hands on the best.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Image.Input("images", tooltip="The batch to score."),
                Reward.Input("reward", tooltip="From Load Reward Model or Combine Rewards."),
                io.String.Input("prompt", multiline=True, default="", tooltip=PROMPT_TIP),
                io.Boolean.Input(
                    "one_prompt_per_line",
                    default=False,
                    tooltip="On: line i belongs to picture i. Off: the text is the prompt of all.",
                ),
                io.Int.Input("top_k", default=0, min=0, max=4096, tooltip="Select the best so many; 0 selects all."),
                io.Boolean.Input("use_threshold", default=False, tooltip="Select only scores of at least threshold."),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.01,
                    round=False,
                    tooltip="In the reward's own unit; used if use_threshold is on.",
                ),
                io.Latent.Input("latents", optional=True, tooltip="Optional. Sorted and selected like the pictures."),
                io.Mask.Input("masks", optional=True, tooltip="Optional. Sorted and selected like the pictures."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="selected",
                    tooltip="The chosen pictures, best first. If none reaches the "
                    "threshold, what follows here does not run.",
                ),
                io.Latent.Output(display_name="selected_latents", tooltip="Their latents, if latents were given."),
                io.Mask.Output(display_name="selected_masks", tooltip="Their masks, if masks were given."),
                io.Image.Output(display_name="sorted", tooltip="All pictures, best first."),
                io.Image.Output(display_name="labelled", tooltip="All pictures, best first, with their scores."),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="One number per picture in the order given."
                ),
                io.Float.Output(display_name="best_score", tooltip="The highest score."),
                io.String.Output(display_name="report", tooltip="Everything as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        reward: HostReward,
        prompt: str,
        one_prompt_per_line: bool,
        top_k: int,
        use_threshold: bool,
        threshold: float,
        latents: dict[str, Any] | None = None,
        masks: Tensor | None = None,
    ) -> io.NodeOutput:
        if not math.isfinite(threshold):
            raise ValueError(f"threshold: got {threshold}, expected a finite number.")
        prompts = prompts_of(prompt, one_prompt_per_line, len(images))
        details = score(reward, images, prompts)
        values = details.scores.tolist()
        order = sorted(range(len(values)), key=lambda i: -values[i])
        chosen = [i for i in order if not use_threshold or values[i] >= threshold][: top_k or None]
        text = summary(values, order, len(chosen))
        say(text, cls.hidden.unique_id)
        labelled = torch.cat([labelled_image(images[i], f"#{n + 1}  {values[i]:.4f}") for n, i in enumerate(order)])
        report = json.dumps(report_of(reward.name, details, order, chosen, prompts), ensure_ascii=False)
        picked = (
            pick(images, chosen),
            pick_latents(latents, chosen, len(images)),
            pick_masks(masks, chosen, len(images)),
        )
        return io.NodeOutput(*picked, images[order], labelled, values, max(values), report, ui={"text": (text,)})


def prompts_of(text: str, per_line: bool, count: int) -> list[str]:
    """One prompt, or as many lines as there are pictures."""
    if not per_line:
        return [text.strip()]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != count:
        raise ValueError(
            f"Got {len(lines)} prompt lines for {count} pictures, expected one line per picture. "
            "Try switching one_prompt_per_line off."
        )
    return lines


def score(reward: HostReward, images: Tensor, prompts: list[str]) -> ScoreDetails:
    """Scores on the CPU, with the network loaded by the host."""
    if reward.reward.needs_prompt and not all(prompts):
        raise ValueError(f"{reward.name} judges pictures against their prompt, got an empty prompt: type one.")
    batch = to_bchw(images)
    details = reward.load(batch.nbytes * 16).details(batch, prompts)
    parts = {name: part.cpu() for name, part in details.parts.items()}
    return ScoreDetails(details.scores.cpu(), parts, details.truncated)


def pick(batch: Tensor | None, rows: list[int]) -> Any:
    """Rows of a batch; what depends on an empty selection, or on a batch that was not given, does not run."""
    return batch[rows] if batch is not None and rows else blocker()


def pick_masks(masks: Tensor | None, rows: list[int], count: int) -> Any:
    """Rows of a MASK, of which one may be for all pictures."""
    if masks is not None and len(masks) not in (1, count):
        raise ValueError(f"masks: got {len(masks)} for {count} pictures, expected as many, or one for all.")
    return pick(masks if masks is None or len(masks) == count else masks.expand(count, *masks.shape[1:]), rows)


def pick_latents(latents: dict[str, Any] | None, rows: list[int], count: int) -> Any:
    """Rows of a LATENT, with its noise mask and batch index."""
    if latents is None:
        return blocker()
    if len(latents["samples"]) != count:
        raise ValueError(f"Got {len(latents['samples'])} latents for {count} pictures, expected as many.")
    if not rows:
        return blocker()
    picked = {**latents, "samples": latents["samples"][rows]}
    mask = latents.get("noise_mask")
    if mask is not None and len(mask) == count:
        picked["noise_mask"] = mask[rows]
    picked["batch_index"] = [latents.get("batch_index", list(range(count)))[i] for i in rows]
    return picked


def blocker() -> Any:
    """What tells the host not to run the nodes behind an output."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(None)


def summary(values: list[float], order: list[int], chosen: int) -> str:
    """What the node shows: each picture's score, best first."""
    lines = [f"#{n + 1}: picture {i + 1}  {values[i]:.4f}" for n, i in enumerate(order[:16])]
    lines += [f"... {len(order) - 16} more"] if len(order) > 16 else []
    return "\n".join(
        [
            f"best {values[order[0]]:.4f}, mean {sum(values) / len(values):.4f}, selected {chosen} of {len(values)}",
            *lines,
        ]
    )


def report_of(
    name: str, details: ScoreDetails, order: list[int], chosen: list[int], prompts: list[str]
) -> dict[str, Any]:
    """The JSON report: scores in the order given, ranks from 0, raw scores of a mix's parts."""
    return {
        "reward": name,
        "scores": details.scores.tolist(),
        "order": order,
        "selected": chosen,
        "parts": {part: values.tolist() for part, values in details.parts.items()},
        "prompts": prompts,
        "prompt_truncated": list(details.truncated),
    }


def labelled_image(image: Tensor, text: str) -> Tensor:
    """``[H,W,C]`` with a strip of text under the picture -> ``[1,H+strip,W,3]``; pictures too small for text are
    enlarged by a whole factor."""
    picture = image_to_pil(image[..., :3])
    picture = enlarge(picture, LEAST_WIDTH) if max(picture.size) < LEAST_WIDTH else picture
    size = max(10, picture.width // 24)
    canvas = Image.new("RGB", (picture.width, picture.height + size + size // 2), "black")
    canvas.paste(picture)
    ImageDraw.Draw(canvas).text((size // 3, picture.height + size // 5), text, "white", ImageFont.load_default(size))
    return pil_to_image(canvas)


NODES = [LoadReward, CombineRewards, RewardScore]
