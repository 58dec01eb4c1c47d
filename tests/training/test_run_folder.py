"""A run's folder: damaged files are passed over, one process at a time, checkpoints by time, nothing twice."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import Curved
from processes import in_processes
from runs import PROMPTS, QUICK, Steps, steps_of, trainer
from small import SmallModel

from reneg_core.files import PART, write_tensors
from reneg_core.training.prompts import Prompts
from reneg_core.training.run_folder import RunFolder
from reneg_core.training.state import Progress, load_state
from reneg_core.training.workers import Workers

ONE = replace(QUICK, steps=1)


@pytest.fixture
def model() -> SmallModel:
    """A few numbers, unless a test is about the parts of a real architecture."""
    return SmallModel()


def damaged(data: bytes, kind: str) -> bytes:
    at = len(data) - 9
    changed = {
        "one bit of data": data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
        "half a file": data[: len(data) // 2],
        "empty": b"",
        "header": data[:9] + b"\xff\xfe" + data[11:],
        "no state": data.replace(b'"state"', b'"stale"'),
        "no context": data.replace(b'"context"', b'"contezt"'),
        "another number": data.replace(b'\\"without_best\\":', b'\\"without_bezt\\":'),
    }
    return changed[kind]


KINDS = ("one bit of data", "half a file", "empty", "header", "no state", "no context", "another number")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_newest_checkpoint_is_passed_over(model, tmp_path: Path, kind: str) -> None:
    whole = trainer(model, tmp_path).run()
    newest = tmp_path / "checkpoints/step-00000006.safetensors"
    broken = damaged(newest.read_bytes(), kind)
    assert broken != newest.read_bytes()
    newest.write_bytes(broken)
    said: list[str] = []
    again = trainer(model, tmp_path, replace(QUICK, keep_checkpoints=1), resume=True, say=said.append).run()
    assert torch.equal(again.embedding.tokens, whole.embedding.tokens)
    assert len(said) == 1 and said[0].startswith(("step-00000006.safetensors is", "Got format"))
    assert said[0].endswith(" Going on from step 4.")
    assert steps_of(tmp_path, "step") == [*range(1, 7)] and steps_of(tmp_path, "validation") == [0, 2, 4, 6]
    assert load_state(newest)[0].progress.step == 6


def test_a_damaged_checkpoint_does_not_crowd_out_what_can_be_read(model, tmp_path: Path) -> None:
    """One checkpoint is kept, and the process dies before it can replace the damaged one."""
    trainer(model, tmp_path).run()
    (tmp_path / "checkpoints/step-00000006.safetensors").write_bytes(b"broken")
    with pytest.raises(KeyboardInterrupt):
        one = replace(QUICK, keep_checkpoints=1)
        trainer(model, tmp_path, one, resume=True, observer=Steps(1, KeyboardInterrupt())).run()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004.safetensors", "unreadable-step-00000006.safetensors"]
    assert RunFolder(tmp_path).latest().state.progress.step == 4


def test_what_a_killed_process_left_half_written_goes(model, tmp_path: Path) -> None:
    prompts = ["a “red” fox", "Füchse"]
    trainer(model, tmp_path, ONE, prompts=prompts, validation=("blue",)).run()
    left = [tmp_path / folder / f".x{PART}" for folder in ("", "checkpoints", "previews")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    trainer(model, tmp_path, ONE, prompts=prompts, validation=("blue",), resume=True).run()
    assert not any(path.exists() for path in left)
    listed = (tmp_path / "prompts.json").read_text(encoding="utf-8")
    assert listed == '{\n"train": [\n"a “red” fox",\n"Füchse"\n],\n"validation": [\n"blue"\n]\n}', "for people too"
    assert RunFolder(tmp_path).listed_prompts() == Prompts(prompts, ["blue"])


def test_any_flipped_bit_is_noticed(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, ONE).run()
    path = max((tmp_path / "checkpoints").iterdir())
    data, source = path.read_bytes(), random.Random(0)
    for _ in range(300):
        at = source.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :])
        with pytest.raises(ValueError, match="step-00000001"):
            load_state(path)


def test_a_run_whose_checkpoints_are_all_damaged_says_where_the_best_is(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, ONE).run()
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"No checkpoint in .* can be read: step-0.*init=.*best\.safetensors"):
        trainer(model, tmp_path, ONE, resume=True).run()


def test_damaged_metrics_do_not_block_resuming(model, tmp_path: Path) -> None:
    count = Steps(4)
    trainer(model, tmp_path, observer=count, should_stop=count.enough).run()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    odd = [b"\xff\xfe\x00", b"[1, 2]", b'{"event": "step"}', b'{"event": "step", "step": 99}', b'{"event": "st']
    path.write_bytes(b"\n".join([*lines[:2], odd[0], *lines[2:], *odd[1:]]))
    trainer(model, tmp_path, resume=True).run()
    assert steps_of(tmp_path, "step") == [*range(1, 7)] and steps_of(tmp_path, "validation") == [0, 2, 4, 6]


def test_what_is_not_finite_is_valid_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record({"event": "step", "step": 1, "reward": float("nan"), "gradient_norm": float("-inf"), "rate": 0.5})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "event": "step", "step": 1, "reward": None, "gradient_norm": None, "rate": 0.5
    }  # fmt: skip


def test_half_written_files_of_a_killed_process_go(model, tmp_path: Path) -> None:
    count = Steps(1)
    trainer(model, tmp_path, observer=count, should_stop=count.enough).run()
    for name in (".best.safetensors.ab.part", "checkpoints/.step-00000002.safetensors.cd.part"):
        (tmp_path / name).write_bytes(b"half")
    trainer(model, tmp_path, resume=True).run()
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_an_older_checkpoint_without_a_checksum_is_read_and_what_it_holds_is_compared(
    stable_diffusion, tmp_path: Path
) -> None:
    trainer(stable_diffusion, tmp_path, ONE).run()
    for path in (tmp_path / "checkpoints").iterdir():
        state, context = load_state(path)
        groups = {g: getattr(state.learner, g) for g in ("tensors", "first", "second")} | {"best": state.progress.best}
        tensors = {f"{g}.{k}": v for g, parts in groups.items() for k, v in parts.items()}
        numbers = {k: v for k, v in vars(state.progress).items() if k not in ("best", "changes")}
        numbers |= {"updates": state.learner.updates, "scale": vars(state.scale)}
        flat = {
            **context["settings"], "reward": "curved", "watch": None, "model": stable_diffusion.digest(),
            "prompts": context["prompts"]["train"], "validation_prompts": context["prompts"]["validation"],
        }  # fmt: skip
        flat.pop("checkpoint_minutes")
        texts = {"format": "reneg-checkpoint-1", "state": json.dumps(numbers), "context": json.dumps(flat)}
        write_tensors(path, tensors, texts)
    (tmp_path / "prompts.json").unlink()
    with pytest.raises(ValueError, match="training prompts: there are 4 now"):
        trainer(stable_diffusion, tmp_path, ONE, prompts=PROMPTS[:4], resume=True).run()
    assert trainer(stable_diffusion, tmp_path, ONE, resume=True).run().steps == 1
    assert load_state(max((tmp_path / "checkpoints").iterdir()))[1]["settings"]["checkpoint_minutes"] == 5.0


# one process, and when it saves


def test_two_runs_in_one_folder_at_once_are_refused(model, tmp_path: Path) -> None:
    class Second(Steps):
        def on_step(self, record: dict) -> None:
            with pytest.raises(BlockingIOError, match=r"Another process is training in .*Wait until it ends, or try"):
                trainer(model, tmp_path, resume=True).run()
            super().on_step(record)

    count = Second()
    assert trainer(model, tmp_path, ONE, observer=count).run().reason == "done"
    assert count.count == 1
    assert trainer(model, tmp_path, ONE, resume=True).run().reason == "done"


def test_the_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom reneg_core.training.run_folder import RunFolder\n"
        "with RunFolder(sys.argv[1]).locked():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    source = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=source, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError), RunFolder(tmp_path).locked():
        pass
    process.kill()
    process.communicate()
    with RunFolder(tmp_path).locked():
        pass


def test_checkpoints_come_by_time_too(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes a minute of a clock that is turned by hand; every third one is saved, and it is a good one."""
    whole = trainer(model, tmp_path / "whole").run()
    clock, saved = [0.0], []
    monkeypatch.setattr("reneg_core.training.run.time.monotonic", lambda: clock[0])
    save = RunFolder.save

    def noted(self: RunFolder, state, context):
        saved.append(state.progress.step)
        return save(self, state, context)

    monkeypatch.setattr(RunFolder, "save", noted)

    class Minute(Steps):
        def on_step(self, record: dict) -> None:
            clock[0] += 60
            super().on_step(record)

    config = replace(QUICK, checkpoint_every=100, validate_every=100, checkpoint_minutes=2.5)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path / "run", config, observer=Minute(5, KeyboardInterrupt())).run()
    assert saved == [0, 0, 3]
    monkeypatch.setattr(RunFolder, "save", save)
    off = replace(config, checkpoint_minutes=0.0)
    again = trainer(model, tmp_path / "run", off, resume=True).run()
    last = [load_state(tmp_path / n / "checkpoints/step-00000006.safetensors")[0].learner for n in ("whole", "run")]
    assert torch.equal(last[0].tensors["tokens"], last[1].tensors["tokens"]) and again.steps == whole.steps


def test_a_run_killed_before_its_first_validation_leaves_no_double(model, tmp_path: Path) -> None:
    class Fatal(Curved):
        killed = False

        def _score(self, images, prompts):
            if not self.killed and images.shape[-1] == 2:  # a picture, and not what a reward is tried on
                type(self).killed = True
                raise KeyboardInterrupt
            return super()._score(images, prompts)

    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path, reward=Fatal()).run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000000.safetensors"]
    trainer(model, tmp_path, reward=Fatal(), resume=True).run()
    assert steps_of(tmp_path, "validation") == [0, 2, 4, 6]


@pytest.mark.parametrize("when", ["record", "save"])
def test_a_kill_around_the_first_checkpoint_leaves_no_double_validation(
    model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    plain = getattr(RunFolder, when)
    calls = []

    def killed(self: RunFolder, *args):
        result = plain(self, *args)
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(RunFolder, when, killed)
    with pytest.raises(KeyboardInterrupt):
        trainer(model, tmp_path).run()
    trainer(model, tmp_path, resume=True).run()
    assert steps_of(tmp_path, "validation") == [0, 2, 4, 6] and steps_of(tmp_path, "step") == [*range(1, 7)]


def test_a_folder_without_a_run_is_said_word_for_word(tmp_path: Path) -> None:
    empty = RunFolder(tmp_path / "none")
    assert empty.best_so_far() == "Nothing has been learned yet."
    with pytest.raises(ValueError) as error:
        empty.require_run()
    assert str(error.value) == (
        f"There is nothing to resume in {tmp_path}/none: it holds no checkpoint. Try without resuming, or the output "
        "folder of the run that you mean."
    )
    empty.require_unused()
    (tmp_path / "none/checkpoints").mkdir(parents=True)
    (tmp_path / "none/checkpoints/step-00000020.safetensors").touch()
    (tmp_path / "none/best.safetensors").touch()
    empty.require_run()
    assert empty.best_so_far() == f"The best so far is in {tmp_path}/none/best.safetensors."
    with pytest.raises(
        ValueError, match=r"none holds a run at step 20 already\. Try resuming it, or another output folder"
    ):
        empty.require_unused()


def test_what_happened_at_a_step_that_is_done_again_is_dropped(tmp_path: Path) -> None:
    """A checkpoint of step 3: its step and its validation are done, what else happened at 3 happens again."""
    folder = RunFolder(tmp_path)
    for event in ("step", "validation", "out_of_memory"):
        for step in range(6):
            folder.record({"event": event, "step": step})
    folder._rewind(Progress({}, step=3, validated_at=2))
    assert [steps_of(tmp_path, event) for event in ("step", "validation", "out_of_memory")] == [
        [0, 1, 2, 3], [0, 1, 2], [0, 1, 2],
    ]  # fmt: skip


def test_minutes_since_the_last_checkpoint(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("reneg_core.training.run.time.monotonic", lambda: clock[0])
    run = trainer(model, tmp_path, replace(QUICK, checkpoint_minutes=1.0))
    run._saved = 940.01
    assert not run._long_ago()
    run._saved = 940.0
    assert run._long_ago()


def test_seconds_are_those_of_all_sessions(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [5000.0]
    monkeypatch.setattr("reneg_core.training.run.time.monotonic", lambda: clock[0])

    class Minute(Steps):
        def on_step(self, record: dict) -> None:
            clock[0] += 60
            super().on_step(record)

    count = Minute(2)
    trainer(model, tmp_path, observer=count, should_stop=count.enough).run()
    clock[0] = 9000.0
    run = trainer(model, tmp_path, observer=Minute(), resume=True)
    run.run()
    assert run.progress.seconds == 60 + 3 * 60, "of 2 and 4 steps; the last minute of each is after it was noted"


@pytest.mark.parametrize("count", [1, 2])
def test_only_the_first_process_writes(tmp_path: Path, count: int) -> None:
    def work(workers: Workers) -> None:
        (tmp_path / str(workers.rank)).mkdir()
        trainer(SmallModel(), tmp_path / str(workers.rank), workers=workers).run()

    assert in_processes(count, work) == [None] * count
    assert (tmp_path / "0" / "negative.safetensors").exists() and (tmp_path / "0" / "checkpoints").is_dir()
    assert all(list((tmp_path / str(rank)).iterdir()) == [] for rank in range(1, count))
