"""On a card that is full: what the host sends away to load a text encoder is back before the next pass."""

from pathlib import Path
from typing import Any

import comfy.model_management as memory
import pytest
import torch
from reneg_pack.nodes.host import rewards
from reneg_pack.nodes.host.model import HostModel

from reneg_core.embedding import NegativeEmbedding
from reneg_core.sampling import Sampling, Size
from reneg_core.training import AdaptConfig, Prompts, TrainConfig, Trainer, adapt

SAMPLING = Sampling(steps=2, size=Size(64, 64)).at_scale(4.0)
PROMPTS = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("house", "bird", "boat")]


class FullCard:
    """The host's memory management where nothing fits beside anything: loading unloads all else, by the host's own
    functions. ``events`` are "text" for every load of the CLIP, and for every pass whether all that runs was loaded."""

    def __init__(self, host: HostModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host, self.events = host, []
        self._load, self._pass = memory.load_models_gpu, host._pass
        monkeypatch.setattr(memory, "load_models_gpu", self.load)
        monkeypatch.setattr(memory, "DISABLE_SMART_MEMORY", True)
        monkeypatch.setattr(host, "_pass", self.watched)

    def load(self, models: Any, *rest: Any, **options: Any) -> Any:
        asked = list(models)
        kept = [entry for entry in memory.current_loaded_models if any(entry.model is one for one in asked)]
        memory.free_memory(1e30, torch.device("cpu"), kept)
        if any(one.is_clone(self.host._clip.patcher) for one in asked):
            self.events.append("text")
        return self._load(models, *rest, **options)

    def watched(self, *args: Any) -> Any:
        loaded = [entry.model for entry in memory.current_loaded_models]
        running = [self.host._patcher, self.host._vae.patcher, *self.host._companions]
        self.events.append(all(any(one is there for there in loaded) for one in running))
        return self._pass(*args)


@pytest.fixture
def judge() -> Any:
    return rewards.load("brightness", None, torch.float32)


def host_of(checkpoint: tuple, judge: Any) -> HostModel:
    return HostModel(*checkpoint, companions=judge.patchers, size=Size(64, 64), batch=2)


def trained(host: HostModel, judge: Any, folder: Path) -> torch.Tensor:
    config = TrainConfig(
        steps=3, batch_size=2, micro_batch=1, sampling=SAMPLING, validation_pairs=2, validate_every=3,
        checkpoint_every=3, learning_rate=0.05,
    )  # fmt: skip
    with torch.inference_mode(False):
        return Trainer(host, judge.reward, Prompts(PROMPTS, ["green sun"]), config, folder).run().embedding.tokens


@pytest.mark.parametrize("ahead", [False, True])
def test_nothing_is_missing_in_a_pass_of_a_training(
    checkpoint: tuple, judge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """ahead: as on an accelerator, where every prompt is encoded before the first pass."""
    expected = trained(host_of(checkpoint, judge), judge, tmp_path / "roomy")
    monkeypatch.setattr(HostModel, "_accelerated", ahead)
    host = host_of(checkpoint, judge)
    card = FullCard(host, monkeypatch)
    assert torch.equal(trained(host, judge, tmp_path / "full"), expected)
    passes = [event for event in card.events if event != "text"]
    assert len(passes) > 10 and all(passes)
    later = card.events[card.events.index(True) :]
    assert ("text" not in later) is ahead and "text" in card.events, "the host did unload what was running"


def test_nothing_is_missing_in_a_pass_of_an_adaptation(
    checkpoint: tuple, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(checkpoint, judge)
    config = AdaptConfig(steps=1, sampling=SAMPLING, window=(0, 2), points=1, micro_batch=1)
    card = FullCard(host, monkeypatch)
    with torch.inference_mode(False):
        start = NegativeEmbedding(host.encode([""]).tokens.cpu(), host.family)
        adapt(host, judge.reward, PROMPTS[:3], [1, 2, 3], start, config)
    passes = [event for event in card.events if event != "text"]
    assert len(passes) > 5 and all(passes) and "text" in card.events[card.events.index(True) :]
