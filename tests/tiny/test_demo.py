"""The demo's recipe, cut to a fifth of its steps and half its batch, already shows what the demo shows."""

from dataclasses import replace
from pathlib import Path

import torch

from reneg_core import tiny
from reneg_core.backends import load_model
from reneg_core.model import Conditioning
from reneg_core.rewards import load_reward
from reneg_core.sampling import sample
from reneg_core.training import Prompts, Trainer
from reneg_core.training.run_config import load_run_config


def test_the_learned_negative_beats_the_empty_and_the_handwritten_one(tmp_path: Path) -> None:
    recipe = load_run_config("demo").train_config()
    config = replace(recipe, steps=20, batch_size=8, micro_batch=8, validate_every=20, validation_pairs=24)
    model, prompts = load_model("tiny", device="cpu"), tiny.validation_prompts()
    split = Prompts(tiny.train_prompts(), prompts)
    result = Trainer(model, load_reward("tiny"), split, config, tmp_path).run()
    assert result.best_reward > result.start_reward + 0.3

    def measured(negative: Conditioning) -> float:
        with torch.no_grad():
            latents = sample(model, model.encode(prompts), negative, model.noise(range(24)), config.sampling)
            return tiny.measure(model.decode(latents), prompts).mean().item()

    none, text = (measured(model.encode([words])) for words in ("", tiny.HANDWRITTEN_NEGATIVE))
    assert none + 0.05 < text
    assert text + 0.03 < measured(result.embedding.conditioning())
