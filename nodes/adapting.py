"""The node that adapts a negative embedding to single pictures."""

import json
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from reneg_core.embedding import NegativeEmbedding
from reneg_core.training import AdaptConfig, adapt

from .estimates import say_adaptation
from .host.feedback import say
from .host.rewards import HostReward
from .host.stopping import StopButton
from .host.text import encode
from .inputs import model_inputs, reach_inputs, require_choices, rollout_inputs
from .layout import suited, to_bhwc, to_host
from .schema import Embedding, schema
from .settings import host_model, in_own_names, rollout_settings
from .watching import AdaptationWatch, Judged


class AdaptEmbedding(io.ComfyNode):
    """A negative of its own for each prompt and seed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegAdaptEmbedding",
            display_name="Adapt Negative Embedding",
            search_aliases=["per-sample negative", "optimise one picture"],
            description="Improves a negative embedding for one prompt and seed, in at most a few steps (ReNeg's "
            "per-sample negatives). The picture never ends with a lower reward than it began.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *model_inputs("adapt the negative for"),
                Embedding.Input("embedding", tooltip="The embedding to start from."),
                io.String.Input("prompt", multiline=True, default="", tooltip="The picture's prompt."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**53 - 1,
                    control_after_generate=True,
                    tooltip="Seed of the first picture; the next ones count on.",
                ),
                io.Int.Input("pictures", default=1, min=1, max=64, tooltip="Pictures, each with its own negative."),
                io.Int.Input("steps", default=10, min=1, max=1000, tooltip="Most steps per picture (paper: 10)."),
                io.Int.Input(
                    "patience",
                    default=3,
                    min=1,
                    max=1000,
                    tooltip="Steps without improvement after which a picture is done (paper: 3).",
                ),
                *rollout_inputs(5e-3, 3),
                *reach_inputs(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures with their adapted negatives."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative of the best picture."),
                Embedding.Output(display_name="embedding", tooltip="The embedding of the best picture."),
                io.Float.Output(display_name="rewards", is_output_list=True, tooltip="After, one per picture."),
                io.String.Output(display_name="report", tooltip="Rewards before and after, as JSON."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        reward: HostReward,
        embedding: NegativeEmbedding,
        prompt: str,
        seed: int,
        pictures: int,
        **options: Any,
    ) -> io.NodeOutput:
        say("loading the model", cls.hidden.unique_id)
        require_choices(**options)
        seeds, button = [seed + i for i in range(pictures)], StopButton()
        judged = Judged(reward.reward)
        numbers = (pictures, options["micro_batch"], options["steps"])
        with torch.inference_mode(False), button:
            with in_own_names():
                config = AdaptConfig(**rollout_settings(options))
            host = host_model(model, clip, vae, reward, options, button.taken)
            work = host, judged, [prompt] * pictures, seeds, suited(embedding, host.encode([""])), config
            say_adaptation(*work, cls.hidden.unique_id)
            watch = AdaptationWatch(button, cls.hidden.unique_id, judged, *numbers)
            result = adapt(*work, progress=watch.finished, should_stop=watch.asked)
        best = int(result.rewards.argmax())
        origin = replace(embedding.provenance, sampling=config.sampling.to_mapping())
        chosen = replace(result.embedding(best, embedding), provenance=origin)
        say(f"reward {result.start_rewards.mean():.4f} to {result.rewards.mean():.4f}", cls.hidden.unique_id)
        report = {
            "start_rewards": result.start_rewards.tolist(),
            "rewards": result.rewards.tolist(),
            "steps": result.steps.tolist(),
            "seeds": seeds,
            "best": best,
        }
        conditioning = to_host(chosen, encode(clip, "")[1])
        return io.NodeOutput(to_bhwc(result.images), conditioning, chosen, result.rewards.tolist(), json.dumps(report))


NODES = [AdaptEmbedding]
