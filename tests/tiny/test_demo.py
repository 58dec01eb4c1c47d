"""The demo's recipe, cut to a fifth of its steps and half its batch, already shows what the demo shows."""

from dataclasses import replace
from pathlib import Path

import pytest

from reneg_core import tiny
from reneg_core.backends import load_model
from reneg_core.commands import demo
from reneg_core.commands.demo import adaptation
from reneg_core.evaluation import Pairs, Rivals, Words, build_modes, evaluate
from reneg_core.rewards import load_reward
from reneg_core.tiny.rivals import SCALES, STRENGTHS, rivals
from reneg_core.training import Trainer
from reneg_core.training.prompts import Prompts
from reneg_core.training.run_config import load_run_config


def test_the_learned_negative_beats_the_empty_and_the_handwritten_one(tmp_path: Path) -> None:
    recipe = load_run_config("demo").train_config()
    config = replace(recipe, steps=20, batch_size=8, micro_batch=8, validate_every=20, validation_pairs=24)
    model, reward = load_model("tiny", device="cpu"), load_reward("tiny")
    prompts = Prompts(tiny.train_prompts(), tiny.validation_prompts())
    result = Trainer(model, reward, prompts, config, tmp_path).run()
    assert result.best_reward > result.start_reward + 0.05

    pairs, texts = Pairs.own(tiny.validation_prompts(), 2), {"text": Words(tiny.HANDWRITTEN_NEGATIVE)}
    modes = build_modes(model, pairs, Rivals(texts=texts, embeddings={"embedding": result.embedding}))
    found = evaluate(model, pairs, modes, {"independent": tiny.measure}, config.sampling, batch_size=48)
    none, text, learned = (found.mean("independent", mode).value for mode in ("none", "text", "embedding"))
    assert none < text < learned and learned - none > 0.02


def test_the_rivals_are_the_winners_of_the_search():
    found = rivals()
    assert list(found) == ["none", "text", "best_text"]
    assert found["none"].text == "" and found["text"].text == tiny.HANDWRITTEN_NEGATIVE and found["best_text"].text
    assert all(rival.guidance_scale in SCALES and rival.strength in STRENGTHS for rival in found.values())


def test_adaptation_samples_as_the_training_does_with_its_gradient():
    config = load_run_config("demo").train_config()
    adapting = adaptation(config)
    assert adapting.sampling == config.sampling and adapting.steps == 6
    assert (adapting.window, adapting.through) == (config.window, config.through)


def test_the_demo_samples_every_rival_at_its_best_scale_and_the_learned_one_as_it_was_learned(
    monkeypatch: pytest.MonkeyPatch,
):
    seen = {}

    def compared(model, pairs, negatives, judges, sampling, **options):
        seen.update(pairs=pairs, negatives=negatives, sampling=sampling)

    monkeypatch.setattr(demo, "compare_rivals", compared)
    config, written, learned = load_run_config("demo").train_config(), rivals(), object()
    demo.compare_negatives(None, load_reward("tiny"), learned, config)
    negatives, sampling = seen["negatives"], seen["sampling"]
    assert sampling == config.sampling and negatives.adapted.sampling == config.sampling
    assert negatives.samplings == {name: sampling.at_scale(one.guidance_scale) for name, one in written.items()}
    assert {name: (words.text, words.strength) for name, words in negatives.texts.items()} == {
        name: (written[name].text, written[name].strength) for name in ("text", "best_text")
    }
    assert negatives.embeddings == {"embedding": learned}
    assert len(seen["pairs"]) == 256 and set(seen["pairs"].prompts) <= set(tiny.test_prompts())
    assert not seen["pairs"].crossed
