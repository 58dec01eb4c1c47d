"""Nodes that train a negative embedding through the host's own model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from reneg_core.embedding import NegativeEmbedding
from reneg_core.training import AdaptConfig, Session, TrainConfig, Trainer, adapt, split_prompts

from .host import files
from .host.feedback import Progress, say
from .host.model import HostModel
from .host.rewards import HostReward
from .host.schedules import learned_for
from .host.stopping import StopButton
from .host.text import embedding_from, encode
from .inputs import model_inputs, prompt_list, reach_inputs, rollout_inputs, vary_input, wrong_choice
from .layout import pil_to_image, suited, to_bhwc, to_host
from .schema import Embedding, Reward, advanced, schema
from .settings import check_levels, host_model, jitter_of, rollout_settings
from .watching import NodeObserver, load_records, require_plots, seed_of


class TrainEmbedding(io.ComfyNode):
    """One negative for all prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ReNegTrainEmbedding",
            display_name="Train Negative Embedding",
            search_aliases=["learn negative", "train textual inversion", "negative prompt"],
            description="Learns a negative embedding for this model by raising a reward (ReNeg, arXiv 2412.19637). "
            "Stop keeps the best so far; queue again to go on.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                *model_inputs(),
                io.String.Input("prompts", multiline=True, default="", tooltip="Training prompts, one per line."),
                io.Combo.Input(
                    "prompt_file",
                    options=files.prompt_files(),
                    default=files.NOTHING,
                    tooltip="A .txt in ComfyUI's input folder, one prompt per line, instead of the text.",
                ),
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
                advanced(
                    io.Int,
                    "validate_every",
                    default=50,
                    min=1,
                    max=100000,
                    tooltip="Steps between validations; each draws the preview and decides what is kept.",
                ),
                advanced(io.Int, "validation_pairs", default=16, min=1, max=4096, tooltip="Pictures in a validation."),
                advanced(
                    io.Int,
                    "patience",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="Stop after so many validations without a new best; 0 never stops early.",
                ),
                advanced(
                    io.Float,
                    "norm_limit",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    tooltip="How far a token may move, in units of the start's mean token length; 0 is off.",
                ),
                io.Conditioning.Input(
                    "start",
                    optional=True,
                    tooltip="Optional. The negative prompt to start from; without it, the empty prompt.",
                ),
                Reward.Input(
                    "watched_reward",
                    optional=True,
                    tooltip="Optional. A second reward that is only measured, to notice reward hacking.",
                ),
                io.String.Input(
                    "validation_prompts",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="Optional. One per line; without them every tenth prompt is kept aside.",
                ),
                *reach_inputs(),
                vary_input(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="negative", tooltip="For the negative input of any sampler."),
                Embedding.Output(display_name="embedding", tooltip="The best embedding; also saved in output/reneg."),
                io.Image.Output(display_name="curve", tooltip="The reward over the steps."),
                io.Image.Output(display_name="before_after", tooltip="Validation pictures of the start and of now."),
                io.String.Output(display_name="report", tooltip="What was trained, as JSON."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, prompt_file: str, run_name: str, scheduler: str, solver: str, vary: str | None = None
    ) -> bool | str:
        try:
            if prompt_file not in (None, files.NOTHING):
                files.prompt_path(prompt_file)
            if run_name is not None:
                files.run_folder(run_name)
        except (ValueError, OSError) as error:
            return str(error)
        return wrong_choice(scheduler, solver, vary) or True

    @classmethod
    def fingerprint_inputs(cls, run_name: str, **others: Any) -> str:
        """A run that was stopped or removed is not served from the host's cache; one that stands where it stood is."""
        try:
            newest = max((files.run_folder(run_name) / "checkpoints").glob("step-*.safetensors"), default=None)
        except (ValueError, OSError, TypeError):
            newest = None
        return f"{run_name} {newest.name}" if newest else str(run_name)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        reward: HostReward,
        prompts: str,
        prompt_file: str,
        run_name: str,
        start: list | None = None,
        watched_reward: HostReward | None = None,
        validation_prompts: str = "",
        **options: Any,
    ) -> io.NodeOutput:
        require_plots()
        texts = split_prompts(prompt_list(prompts, prompt_file), prompt_list(validation_prompts, files.NOTHING))
        folder, button = files.run_folder(run_name), StopButton()
        options["seed"] = seed_of(folder, options["seed"])
        observer = NodeObserver(options["steps"], button, cls.hidden.unique_id, folder)
        with torch.inference_mode(False), button:
            host = host_model(model, clip, vae, joined(reward, watched_reward), options, button.leaving)
            config = TrainConfig(
                **rollout_settings(options),
                jitter=jitter_of(options),
                checkpoint_every=options["validate_every"],
                init=written_start(start, host, folder),
            )
            check_levels(host, config.sampling, config.jitter)
            watch = watched_reward and watched_reward.reward
            session = Session(observer, button.asked, resume=True, say=lambda text: say(text, cls.hidden.unique_id))
            result = Trainer(host, reward.reward, texts, config, folder, watch=watch, session=session).run()
        observer.finish(result.steps)
        say(outcome(result), cls.hidden.unique_id)
        return io.NodeOutput(*training_outputs(result, clip, observer))


def joined(reward: HostReward, watched: HostReward | None) -> HostReward:
    """The networks of both rewards, each once."""
    extra = watched.patchers if watched else ()
    return replace(reward, patchers=tuple(dict.fromkeys([*reward.patchers, *extra])))


def written_start(start: list | None, host: HostModel, folder: Path) -> str:
    """A start embedding as the file that the core's configuration names; the empty prompt without one."""
    if start is None:
        return ""
    path = folder / "start.safetensors"
    suited(embedding_from(start, host.family), host.encode([""])).save(path, overwrite=True)
    return str(path)


def outcome(result: Any) -> str:
    """One line for the node."""
    name = files.listed_name(result.directory / "negative.safetensors")
    if result.best_reward is None:
        return f"stopped before the first validation; {name} is the start"
    return (
        f"{result.reason} at step {result.steps}: reward {result.start_reward:.4f} to {result.best_reward:.4f} "
        f"(step {result.best_step}), saved as {name}\n{learned_for(result.embedding)}"
    )


def training_outputs(result: Any, clip: Any, observer: NodeObserver) -> tuple[Any, ...]:
    """What the node hands on: conditioning, embedding, curve, pictures, report."""
    from reneg_core.evaluation import learning_curve

    extra = encode(clip, "")[1]
    records = load_records(result.directory)
    curve = pil_to_image(learning_curve(records)) if records else torch.ones(1, 64, 64, 3)
    pairs = [t for t in (observer.first, observer.last) if t is not None]
    pictures = to_bhwc(torch.cat(pairs)) if pairs else torch.ones(1, 64, 64, 3)
    report = {
        "reason": result.reason,
        "steps": result.steps,
        "best_step": result.best_step,
        "start_reward": result.start_reward,
        "best_reward": result.best_reward,
        "file": files.listed_name(result.directory / "negative.safetensors"),
        "sampling": result.embedding.provenance.sampling,
        "training": result.embedding.provenance.notes["training"],
    }
    return to_host(result.embedding, extra), result.embedding, curve, pictures, json.dumps(report)


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
                *model_inputs(),
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
    def validate_inputs(cls, scheduler: str, solver: str) -> bool | str:
        return wrong_choice(scheduler, solver) or True

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
        seeds, button = [seed + i for i in range(pictures)], StopButton()
        progress = Progress(pictures)
        with torch.inference_mode(False), button:
            config = AdaptConfig(**rollout_settings(options))
            host = host_model(model, clip, vae, reward, options, button.taken)
            result = adapt(
                host,
                reward.reward,
                [prompt] * pictures,
                seeds,
                suited(embedding, host.encode([""])),
                config,
                progress=lambda done: button.update(progress, done),
                should_stop=button.asked,
            )
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


NODES = [TrainEmbedding, AdaptEmbedding]
