"""Without a host: in which folder a training works, why, and what the host's cache may keep of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import PROMPTS, QUICK, records, trainer

from reneg_core.training import Session, TrainConfig, TrainResult

from .fake_host import imported

SHORT = replace(QUICK, steps=2)


@pytest.fixture(scope="module")
def runs() -> Iterator[Any]:
    with imported("runs") as [module]:
        yield module


class Asked:
    """A node that trains under one name, and what it was told."""

    def __init__(self, runs: Any, model: Any, base: Path) -> None:
        self.runs, self.model, self.base, self.why, self.served = runs, model, base, "", runs.Served()

    def train(self, existing: str = "continue", config: TrainConfig = SHORT, **changes: Any) -> TrainResult:
        stop, error = changes.pop("stop_at", None), changes.pop("error", None)
        before, taken = self.runs.state_of(self.base), []

        def session(folder: Path, why: str) -> Session:
            self.why = why

            def on_step(record: dict) -> None:
                taken.append(record["step"])
                if error:
                    raise error

            observer = SimpleNamespace(on_step=on_step, on_validation=lambda *_: None)
            return Session(observer, lambda: bool(stop) and stop in taken, resume=True)

        made = trainer(self.model, self.base, config, resume=True, **changes)
        result = self.runs.run(made, self.base, existing, session)
        finished = result.reason != "stopped"
        self.served.leave("my", before, self.runs.state_of(self.base), finished=finished)
        return result

    def fingerprint(self) -> str:
        return self.served.fingerprint("my", self.runs.state_of(self.base))

    def folders(self) -> list[str]:
        return [path.name for path in self.runs.runs_of(self.base)]


@pytest.fixture
def asked(runs: Any, model: Any, tmp_path: Path) -> Asked:
    return Asked(runs, model, tmp_path / "my")


def test_continue_goes_on_and_takes_more_steps(asked: Asked) -> None:
    assert asked.train(stop_at=1).steps == 1
    assert asked.train().steps == 2
    longer = asked.train(config=replace(SHORT, steps=4))
    assert longer.steps == 4 and longer.directory.name == "my" and asked.why == ""
    assert [r["step"] for r in records(asked.base, "step")] == [1, 2, 3, 4]


def test_other_prompts_or_another_rate_take_a_number_and_say_why(asked: Asked) -> None:
    asked.train()
    other = asked.train(prompts=[*PROMPTS, "a tall tower"])
    assert other.directory.name == "my_002"
    assert asked.why.startswith("my_002 is a new run, because my is another one: training prompts: 'a tall tower'")
    assert asked.train(config=replace(SHORT, learning_rate=0.2)).directory.name == "my_003"
    assert "because my_002 is another one" in asked.why and "learning_rate: the run was started with 0.05" in asked.why
    assert asked.folders() == ["my", "my_002", "my_003"]
    for directory, changes in (("my", {}), ("my_002", {"prompts": [*PROMPTS, "a tall tower"]})):
        assert asked.train(**changes).directory.name == directory and asked.why == "", "each is found again"


def test_fewer_steps_than_were_taken_are_another_run(asked: Asked) -> None:
    asked.train()
    fewer = asked.train(config=replace(SHORT, steps=1))
    assert fewer.steps == 1 and fewer.directory.name == "my_002" and "has taken 2 steps already" in asked.why


def test_a_new_numbered_run_is_always_another_one(asked: Asked) -> None:
    assert [asked.train("new numbered run").directory.name for _ in range(3)] == ["my", "my_002", "my_003"]
    assert asked.why == ""


def test_starting_over_keeps_what_was_there_under_a_number(asked: Asked) -> None:
    first = asked.train()
    kept = (first.directory / "negative.safetensors").read_bytes()
    again = asked.train("start over", config=replace(SHORT, learning_rate=0.3))
    assert again.directory.name == "my" and asked.folders() == ["my", "my_002"]
    assert (asked.base.with_name("my_002") / "negative.safetensors").read_bytes() == kept


def test_starting_over_with_something_wrong_loses_nothing(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.train()
    kept = (asked.base / "negative.safetensors").read_bytes()
    with pytest.raises(FileNotFoundError):
        asked.train("start over", config=replace(SHORT, init="absent.safetensors"))
    assert asked.folders() == ["my"] and (asked.base / "negative.safetensors").read_bytes() == kept
    with pytest.raises(OSError, match="later"):
        asked.train("start over", error=OSError("later"))
    assert asked.folders() == ["my", "my_002"], "what the new run has found stays as well"


def test_other_folders_are_no_runs_of_that_name(asked: Asked) -> None:
    for name in ("my_2", "my_old", "my_002", "other"):
        (asked.base.with_name(name) / "checkpoints").mkdir(parents=True)
    asked.train()
    assert asked.folders() == ["my"]
    assert asked.train("new numbered run").directory.name == "my_003", "a folder that is in the way is left alone"
    odd = asked.base.with_name("my [1]")
    assert asked.runs.next_folder(odd) == odd


def test_a_finished_run_has_the_fingerprint_that_it_began_with(asked: Asked) -> None:
    began = asked.fingerprint()
    asked.train()
    assert asked.fingerprint() == began, "an unchanged Run is served from the cache at once"
    asked.train(config=replace(SHORT, steps=3))
    assert asked.fingerprint() == began, "the number of steps is in the host's key itself"
    asked.train(prompts=PROMPTS[:3])
    assert asked.fingerprint() == began


def test_a_stopped_or_deleted_run_is_done_again(asked: Asked) -> None:
    import shutil

    began = asked.fingerprint()
    asked.train(stop_at=1)
    stopped = asked.fingerprint()
    assert stopped != began
    asked.train()
    assert asked.fingerprint() == stopped
    shutil.rmtree(asked.base)
    assert asked.fingerprint() not in (began, stopped)
