"""What the experiments on the tiny world share: its parts, learning by a recipe, judging, and tables of results."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from reneg_core.backends import load_model
from reneg_core.embedding import NegativeEmbedding
from reneg_core.evaluation import Evaluation, Mode, Pairs, evaluate
from reneg_core.model import Conditioning, DiffusionModel
from reneg_core.rewards import Reward, load_reward
from reneg_core.sampling import Sampling
from reneg_core.tiny import measure, test_prompts, train_prompts, validation_prompts
from reneg_core.tiny.measure import measure_parts
from reneg_core.training import Session, TrainConfig, Trainer
from reneg_core.training.prompts import Prompts
from reneg_core.training.run_config import load_run_config

MEASURE, REWARD = "independent", "reward"
BATCH = 64


@cache
def world() -> tuple[DiffusionModel, Reward]:
    """The tiny world's model and reward, loaded once."""
    model = load_model("tiny", device="cpu")
    return model, load_reward("tiny", device=model.device)


def test_pairs(noises: int, seed: int = 0) -> Pairs:
    """72 test prompts with ``noises`` noises of their own."""
    return Pairs.own(test_prompts(), noises, seed)


def validation_pairs(noises: int, seed: int = 1) -> Pairs:
    """24 validation prompts with ``noises`` noises of their own."""
    return Pairs.own(validation_prompts(), noises, seed)


def judge(pairs: Pairs, modes: Mapping[str, Mode], sampling: Sampling, parts: bool = False) -> Evaluation:
    """Every mode on every pair, by the reward and by the independent measure."""
    model, reward = world()
    measures = {REWARD: reward.score, MEASURE: measure}
    found = {MEASURE: measure_parts} if parts else None
    return evaluate(model, pairs, modes, measures, sampling, parts=found, batch_size=BATCH)


def recipe(name: str = "demo", **changes: Any) -> TrainConfig:
    """A recipe that comes with the package, with other settings where given."""
    return replace(load_run_config(name).train_config(), **changes)


class Watcher:
    """Tells a function of the trainer after chosen steps; keeps the seconds that training steps took."""

    def __init__(self, every: int, tell: Callable[[int, float, Trainer], None]) -> None:
        self.every, self.tell, self.spent, self.trainer = every, tell, 0.0, None

    def on_step(self, record: Mapping[str, Any]) -> None:
        self.spent += record["seconds"]
        if record["step"] % self.every == 0:
            self.tell(record["step"], self.spent, self.trainer)

    def on_validation(self, *_: Any) -> None:
        pass


def learn(config: TrainConfig, watcher: Watcher | None = None) -> tuple[NegativeEmbedding, float]:
    """The embedding that a recipe gives on the training prompts, and the seconds that its steps took."""
    model, reward = world()
    watcher = watcher or Watcher(10**9, lambda *_: None)
    with tempfile.TemporaryDirectory() as folder:
        prompts = Prompts(train_prompts(), validation_prompts())
        trainer = Trainer(model, reward, prompts, config, folder, session=Session(watcher))
        watcher.trainer = trainer
        return trainer.run().embedding, watcher.spent


def figures(evaluation: Evaluation, first: str, second: str) -> dict[str, Any]:
    """How ``first`` stands against ``second`` by the independent measure: difference, win rate, upper half."""
    difference = evaluation.difference(MEASURE, first, second)
    rate = evaluation.win_rate(MEASURE, first, second)
    halves = evaluation.halves(MEASURE, first, second)
    return {
        "difference": round(difference.value, 4),
        "interval": [round(bound, 4) for bound in difference.interval],
        "wins": round(rate.value, 3),
        "wins_interval": [round(bound, 3) for bound in rate.interval],
        "upper_half": round(halves.upper.value, 4),
        "lower_half": round(halves.lower.value, 4),
    }


def means(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Mean reward and measure of every mode."""
    return {
        mode: {name: round(evaluation.mean(name, mode).value, 4) for name in evaluation.measures}
        for mode in evaluation.modes
    }


@torch.no_grad()
def encoded(texts: Sequence[str]) -> Conditioning:
    """Texts as the world's encoder gives them, one row each."""
    return world()[0].encode(list(texts))
