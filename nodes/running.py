"""One training of the host's model, from a node's inputs to its outputs; what the training nodes share."""

import json
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from reneg_core.embedding import Provenance
from reneg_core.training import Prompts, Session, TrainConfig, Trainer, TrainResult, split_prompts
from reneg_core.training.pace import most_steps
from reneg_core.training.rehearsal import measured
from reneg_core.training.run import Run
from reneg_core.training.trainer import Stopped

from . import runs
from .estimates import WORTH_MEASURING
from .host import files
from .host.feedback import say
from .host.model import HostModel
from .host.rewards import HostReward
from .host.schedules import learned_for
from .host.stopping import StopButton
from .host.text import embedding_from, encode
from .inputs import prompt_list
from .layout import pil_to_image, suited, to_bhwc, to_host
from .settings import check_levels, host_model, in_own_names, jitter_of, rollout_settings
from .watching import NodeObserver, load_records, require_plots

NOT_SETTINGS = {"prompt_file", "validation_prompts", "start", "watched_reward", "run_name"}


@dataclass(frozen=True)
class Task:
    """What is trained on what, as the nodes have it.

    prompts: the node's text; options: every setting under the names of the Training Settings node; limit: seconds that
    it may take at most, or None; existing: what to do where there is a run of that name, see :mod:`.runs`.
    """

    model: Any
    clip: Any
    vae: Any
    reward: HostReward
    prompts: str
    options: Mapping[str, Any]
    run_name: str
    existing: str = runs.CONTINUE
    limit: float | None = None
    node_id: str | None = None

    @property
    def folder(self) -> Path:
        return files.run_folder(self.run_name)

    @property
    def watched(self) -> HostReward | None:
        return self.options.get("watched_reward")

    def texts(self) -> Prompts:
        """Training and validation prompts."""
        held = prompt_list(self.options.get("validation_prompts", ""), files.NOTHING)
        return split_prompts(prompt_list(self.prompts, self.options.get("prompt_file", files.NOTHING)), held)

    def settings(self) -> dict[str, Any]:
        """The options that become the trainer's configuration."""
        return {name: value for name, value in self.options.items() if name not in NOT_SETTINGS}

    # what another method does in its own way

    def trainer(self, texts: Prompts, watch: "Watch", stack: ExitStack) -> Run:
        """A trainer that has not touched any folder; what it needs for a while ends with ``stack``."""
        return prepared(self, texts, watch, stack)

    def outcome(self, result: Any) -> str:
        """One line for the node."""
        return outcome(result)

    def outputs(self, result: Any, observer: NodeObserver) -> tuple[Any, ...]:
        """What the node hands on."""
        return outputs(result, self.clip, observer)


def train(task: Task) -> io.NodeOutput:
    """Train as the task says and hand on what was learned; the host may serve it from its cache once it is finished."""
    say("loading the model", task.node_id)
    require_plots()
    texts, before = task.texts(), runs.state_of(task.folder)
    watch = Watch(task, StopButton())
    with torch.inference_mode(False), watch.button, ExitStack() as stack:
        result = runs.run(task.trainer(texts, watch, stack), task.folder, task.existing, watch.session)
    finished = result.reason != "stopped"
    runs.SERVED.leave(task.run_name, before, runs.state_of(task.folder), finished=finished)
    watch.observer.finish(result.steps)
    watch.observer.say(task.outcome(result))
    return io.NodeOutput(*task.outputs(result, watch.observer))


def prepared(task: Task, texts: Prompts, watch: "Watch", stack: ExitStack) -> Trainer:
    """See :meth:`Task.trainer`."""
    options = task.settings()
    host = host_model(task.model, task.clip, task.vae, joined(task.reward, task.watched), options, watch.button.leaving)
    places = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    start = written_start(task.options.get("start"), host, places)
    with in_own_names():
        jitter, settings = jitter_of(options), rollout_settings(options)
        config = TrainConfig(**settings, jitter=jitter, checkpoint_every=options["validate_every"], init=start)
    check_levels(host, config.sampling, config.jitter)
    judge = task.watched and task.watched.reward
    return Trainer(host, task.reward.reward, texts, config, task.folder, watch=judge, session=Session(resume=True))


class Watch:
    """The node around a run: its stop button, what it shows, and what is measured before long work."""

    def __init__(self, task: Task, button: StopButton) -> None:
        self.task, self.button = task, button
        self.observer: NodeObserver | None = None

    def session(self, folder: Path, why: str) -> Session:
        """What is around a run in ``folder``; why: a sentence that stays on the node, and in the log as a whole."""
        if why:
            logging.info("ReNeg: %s", why)
        return Session(
            resume=True,
            should_stop=self.button.asked,
            say=lambda text: say(text, self.task.node_id),
            progress=lambda *part: self.observer.on_part(*part) if self.observer else None,
            before=lambda trainer: self._begin(trainer, folder, why),
        )

    def _begin(self, trainer: Trainer, folder: Path, why: str) -> None:
        """Once it is known which run it is: show it, and say what it will take."""
        self.observer = NodeObserver(trainer.config, self.button, self.task.node_id, folder, why)
        trainer.session = replace(trainer.session, observer=self.observer)
        config, progress = trainer.config, trainer.progress
        left = 0 if progress.finished else config.steps - progress.step
        if left * config.batch_size / min(config.micro_batch, config.batch_size) < WORTH_MEASURING:
            return
        self.observer.say("measuring what a step takes")
        try:
            self._measure(trainer)
        except Stopped:
            if progress.validated_at < 0:
                raise  # nothing to keep; else the run ends by itself, and hands on what it has

    def _measure(self, trainer: Trainer) -> None:
        weights = trainer.model.weights()
        found = measured(trainer, weights, parts=1)
        steps, done, config = trainer.config.steps, trainer.progress.step, trainer.config
        if self.task.limit:
            steps = most_steps(found.step, found.validation, self.task.limit, done, config)
        if steps < config.steps:
            whole = self.task.limit / 3600
            self.observer.note = "\n".join(
                filter(None, [self.observer.note, f"{steps} of {config.steps} steps, which fit into {whole:g} hour"])
            )
            trainer.take(steps)
            found = replace(found, total=self.task.limit)
        kept = found.kept * min(found.micro_batch, config.batch_size)
        self.observer.estimate(found, trainer.config, found.peak or sum(w.nbytes for w in weights) + kept)


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


def outcome(result: TrainResult) -> str:
    """One line for the node."""
    name = files.listed_name(result.directory / "negative.safetensors")
    if result.best_reward is None:
        return f"stopped before the first validation; {name} is the start"
    return f"{in_numbers(result)}, saved as {name}\n{learned_for(result.embedding)}"


def in_numbers(result: Any) -> str:
    """How a run ended, and what it gained."""
    return (
        f"{result.reason} at step {result.steps}: reward {result.start_reward:.4f} to {result.best_reward:.4f} "
        f"(step {result.best_step})"
    )


def outputs(result: TrainResult, clip: Any, observer: NodeObserver) -> tuple[Any, ...]:
    """What a training node hands on: conditioning, embedding, curve, pictures, report."""
    extra, name = encode(clip, "")[1], files.listed_name(result.directory / "negative.safetensors")
    report = report_of(result, name, result.embedding.provenance)
    curve, pictures = curve_and_pictures(result, observer)
    return to_host(result.embedding, extra), result.embedding, curve, pictures, json.dumps(report)


def curve_and_pictures(result: Any, observer: NodeObserver) -> tuple[torch.Tensor, torch.Tensor]:
    """The reward over the steps, and pictures of the start and of now."""
    from reneg_core.evaluation import learning_curve

    records = load_records(result.directory)
    curve = pil_to_image(learning_curve(records)) if records else torch.ones(1, 64, 64, 3)
    pairs = [t for t in (observer.first, observer.last) if t is not None]
    return curve, to_bhwc(torch.cat(pairs)) if pairs else torch.ones(1, 64, 64, 3)


def report_of(result: Any, file: str, origin: Provenance) -> dict[str, Any]:
    """What was trained; origin: of what came out."""
    return {
        "reason": result.reason,
        "steps": result.steps,
        "best_step": result.best_step,
        "start_reward": result.start_reward,
        "best_reward": result.best_reward,
        "file": file,
        "sampling": origin.sampling,
        "training": origin.notes["training"],
    }
