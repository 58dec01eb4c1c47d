"""Without a host: what the training node reads from a run's folder, and what it shows of a run that went before."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import QUICK, trainer

from .fake_host import imported


@pytest.fixture(scope="module")
def watching() -> Iterator[Any]:
    with imported("watching") as [module]:
        yield module


def test_a_run_that_goes_on_keeps_its_seed(watching, model, tmp_path: Path) -> None:
    """The page gives another number after every Run unless it is told not to."""
    trainer(model, tmp_path / "run", replace(QUICK, steps=1, seed=7)).run()
    assert watching.seed_of(tmp_path / "run", 99) == 7
    assert watching.seed_of(tmp_path / "new", 99) == 99


def test_what_a_reward_judges_is_shown_and_how_much_is_left(watching, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, shown = [], []
    monkeypatch.setattr(watching, "say", lambda text, node_id: lines.append(text))
    monkeypatch.setattr(
        watching, "Progress", lambda total: SimpleNamespace(update=lambda *part, **_: shown.append(part))
    )
    clock = iter([0.0, 10.0, 40.0, 50.0, 55.0, 60.0])
    monkeypatch.setattr(watching.time, "monotonic", lambda: next(clock))
    judged = watching.Judged(SimpleNamespace(name="red", score=lambda images, prompts: images[:, 0].mean((1, 2))))
    counter = watching.Counter(None, judged)
    counter.update("judging", 1, 4)
    assert lines == ["judging: 1 of 4 pictures, about 30 s left"] and shown == [(1, None)], "nothing is drawn yet"
    images = torch.zeros(6, 3, 8, 8)
    images[:, 0] = 1
    assert judged.score(images, [""]).tolist() == [1] * 6 and judged.name == "red"
    counter.update("judging", 4, 4)
    [_, (done, picture)] = shown
    assert done == 4 and picture.width == 840 and picture.getpixel((picture.width // 8, 100)) == (255, 0, 0)
    button = SimpleNamespace(update=lambda _, *part, **__: shown.append(part), asked=lambda: False)
    watch = watching.AdaptationWatch(button, None, judged, 1, 1, 3)
    assert not watch.asked() and shown[-1][1].width == 840
    assert lines[-1].startswith("pictures 1 to 1 of 1: step 1 of at most 3, at most ")


def test_the_start_is_that_of_step_0_also_later(watching, tmp_path: Path) -> None:
    def observer() -> Any:
        return watching.NodeObserver(QUICK, SimpleNamespace(update=lambda *_, **__: None), None, tmp_path)

    start, later = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    first = observer()
    assert first.first is None and first.last is None
    first.on_validation({"event": "validation", "step": 0, "reward": 0.0}, start, ["", ""])
    second = observer()
    second.on_validation({"event": "validation", "step": 3, "reward": 1.0}, later, ["", ""])
    third = observer()
    assert (third.first - start).abs().max() <= 0.5 / 255 + 1e-6
    assert (third.last - later).abs().max() <= 0.5 / 255 + 1e-6
    third.on_validation({"event": "validation", "step": 0, "reward": 0.0}, later, ["", ""])
    assert torch.equal(third.first, third.last), "a run from the beginning has another start"
