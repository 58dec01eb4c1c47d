"""Going on: the same run only, told in words, and with more steps."""

import hashlib
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import pipeline
from doubles import Constant, Curved, Wrapped
from runs import PROMPTS, QUICK, SAMPLING, Steps, records, steps_of, trainer
from safetensors import safe_open
from small import SmallModel

from reneg_core import NegativeEmbedding, load_embedding
from reneg_core.backends import wrap
from reneg_core.digests import DIGEST
from reneg_core.files import write_tensors
from reneg_core.rewards import load_reward
from reneg_core.training import schedule
from reneg_core.training.identity import AnotherRun, reward_contents, start_contents
from reneg_core.training.loss_scale import LossScale
from reneg_core.training.names import FORMER
from reneg_core.training.state import clone, load_state
from reneg_core.training.validation import Validator
from reneg_core.training.workers import Workers

ONE = replace(QUICK, steps=1)
STARTS = [
    {"embedding": "sha256:c11766e1121919410e791d52d6ce79c3739b39f7a1cfe0dc507617ba012857a3"},
    {"embedding": "sha256:f04210b019800a079e75c938c12947d9d9dc8d0214ab14987e04154fac69de02"},
]


@pytest.fixture
def model() -> SmallModel:
    """A few numbers, unless a test is about the parts of a real architecture."""
    return SmallModel()


def contents_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


class Weighted(Curved):
    """A reward with weights of its own."""

    name = "weighted"

    def __init__(self, value: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(value))

    def _score(self, images, prompts):
        return super()._score(images, prompts) * self.factor


class Digested(SmallModel):
    """One whose denoiser is named as those of real models are."""

    def __init__(self, digit: str = "5") -> None:
        super().__init__()
        self.digit = digit

    def contents(self) -> dict[str, str]:
        return {"denoiser": DIGEST + 64 * self.digit}


# what a run is


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_another_part_of_the_model_is_named(stable_diffusion, tmp_path: Path, part: str) -> None:
    trainer(stable_diffusion, tmp_path, ONE).run()
    changed = pipeline()
    with torch.no_grad():
        next(getattr(changed, part).parameters()).add_(0.01)
    name = {"vae": "VAE", "text_encoder": "text encoder", "unet": "denoiser"}[part]
    with pytest.raises(ValueError, match=rf"- model: the {name} is not what the run was started with\.\nTry") as error:
        trainer(wrap(changed, "random"), tmp_path, ONE, resume=True).run()
    assert str(error.value).count("- ") == 1


def test_another_noise_schedule_of_the_same_weights_is_named(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, ONE).run()

    class Shifted(Wrapped):
        def sigmas(self, sampling):
            return self._model.sigmas(sampling) * 1.1

    with pytest.raises(ValueError, match="model: the noise levels for this sampling are not those"):
        trainer(Shifted(model), tmp_path, ONE, resume=True).run()
    with pytest.raises(ValueError) as error:
        trainer(model, tmp_path, replace(ONE, sampling=SAMPLING.changed(steps=4)), resume=True).run()
    assert "sampling.steps" in str(error.value) and "noise levels" not in str(error.value)


def test_another_precision_is_named_alone(tmp_path: Path) -> None:
    """All weights differ there, which needs no saying."""

    class Precise(Digested):
        def contents(self) -> dict[str, str]:
            return {**super().contents(), "precision": {"5": "float32", "6": "float16"}[self.digit]}

    trainer(Precise(), tmp_path, ONE).run()
    with pytest.raises(AnotherRun) as error:
        trainer(Precise("6"), tmp_path, ONE, resume=True).run()
    assert error.value.differences == ["model: the precision was float32, now it is float16."]


def test_the_same_reward_with_other_weights_is_another_reward(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, ONE, reward=Weighted(1.0), watch=Weighted(2.0)).run()
    assert trainer(model, tmp_path, ONE, reward=Weighted(1.0), watch=Weighted(2.0), resume=True).run().steps == 1
    for role, rewards in (("reward", (1.5, 2.0)), ("watch", (1.0, 2.5))):
        reward, watch = map(Weighted, rewards)
        with pytest.raises(ValueError, match=f"- {role}: the weights of weighted are not what the run was started"):
            trainer(model, tmp_path, ONE, reward=reward, watch=watch, resume=True).run()
    with pytest.raises(ValueError, match="- watch: the run was started with 'weighted', now it is 'none'"):
        trainer(model, tmp_path, ONE, reward=Weighted(1.0), resume=True).run()


def test_a_reward_file_that_was_edited_is_named(model, tmp_path: Path) -> None:
    code = (
        "from reneg_core.rewards import Reward\nclass Mine(Reward):\n    name = 'mine'\n"
        "    def _score(self, images, prompts):\n        return images.mean((1, 2, 3)) * 2\n"
    )
    (tmp_path / "mine.py").write_text(code)
    trainer(model, tmp_path / "run", ONE, reward=load_reward(str(tmp_path / "mine.py"))).run()
    same = trainer(model, tmp_path / "run", ONE, reward=load_reward(str(tmp_path / "mine.py")), resume=True)
    assert same.run().steps == 1
    (tmp_path / "mine.py").write_text(code.replace("* 2", "* 3"))
    edited = load_reward(str(tmp_path / "mine.py"))
    with pytest.raises(ValueError, match=r"- reward: the file mine\.py is not what the run was started with"):
        trainer(model, tmp_path / "run", ONE, reward=edited, resume=True).run()


def test_a_start_is_compared_by_its_contents(model, tmp_path: Path) -> None:
    begin = NegativeEmbedding(model.encode(["ugly"]).tokens, model.family)
    path = begin.save(tmp_path / "start.safetensors")
    trainer(model, tmp_path / "run", replace(ONE, init=str(path))).run()
    NegativeEmbedding(begin.tokens + 1, model.family).save(path, overwrite=True)
    before = contents_of(tmp_path / "run")
    for init, words in (
        (str(path), r"init: the embedding in start\.safetensors is not the one that the run was started with"),
        ("ugly", r"init: the run was started with the file start\.safetensors, now it is 'ugly'"),
    ):
        with pytest.raises(ValueError, match=words):
            trainer(model, tmp_path / "run", replace(ONE, init=init), resume=True).run()
    assert contents_of(tmp_path / "run") == before
    trainer(model, tmp_path / "words", replace(ONE, init="ugly")).run()
    with pytest.raises(ValueError, match="- init: the run was started with 'ugly', now it is 'bad'"):
        trainer(model, tmp_path / "words", replace(ONE, init="bad"), resume=True).run()
    moved = begin.save(tmp_path / "moved.safetensors")
    assert trainer(model, tmp_path / "run", replace(ONE, init=str(moved)), resume=True).run().steps == 1


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([*PROMPTS, "snow"], "training prompts: 'snow' was added since the run was started."),
        (PROMPTS[1:], "training prompts: 'a red fox' was removed since the run was started."),
        (["x", *PROMPTS[1:]], "training prompts: 'x' was added; 'a red fox' was removed since"),
        (PROMPTS[::-1], "training prompts: the same 5, in another order than"),
        ([*PROMPTS, "ice"], "training prompts: 'ice' was added since"),
        ([*PROMPTS, *"abcde"], "training prompts: 'a', 'b', 'c' and 2 more were added since"),
        ([*PROMPTS, *"abc"], "training prompts: 'a', 'b', 'c' were added since"),
    ],
)
def test_changed_prompts_are_told_in_words(model, tmp_path: Path, prompts: list[str], words: str) -> None:
    trainer(model, tmp_path, ONE).run()
    with pytest.raises(ValueError) as error:
        trainer(model, tmp_path, ONE, prompts=prompts, resume=True).run()
    message = str(error.value).replace(str(tmp_path), "")
    assert words in message and not re.search(r"[0-9a-f]{16}", message), "in words, never as a hash"


def test_changed_validation_prompts_are_told_in_words(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, ONE).run()
    with pytest.raises(ValueError, match="validation prompts: 'new' was added; 'blue' was removed since"):
        trainer(model, tmp_path, ONE, validation=("a red fox", "new"), resume=True).run()


def test_changed_prompts_without_their_list_are_still_refused(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, ONE).run()
    (tmp_path / "prompts.json").write_text('{"train": ["another", "list"], "validation": []}')
    with pytest.raises(ValueError, match=r"validation prompts: there are 1 now, not those .*list is lost"):
        trainer(model, tmp_path, ONE, validation=("new",), resume=True).run()


def test_a_refused_resume_changes_no_file(model, tmp_path: Path) -> None:
    trainer(model, tmp_path, ONE, description="steps: 1\n").run()
    before = contents_of(tmp_path)
    assert before["config.yaml"] == b"steps: 1\n"
    with pytest.raises(ValueError, match="batch_size: the run was started with 4, now it is 2"):
        other = replace(ONE, batch_size=2)
        trainer(model, tmp_path, other, resume=True, description="batch_size: 2\n").run()
    assert contents_of(tmp_path) == before


def test_what_does_not_change_results_may_change(model, tmp_path: Path) -> None:
    whole = trainer(model, tmp_path / "whole").run()
    count = Steps(3)
    trainer(model, tmp_path / "run", observer=count, should_stop=count.enough).run()
    often = replace(QUICK, checkpoint_every=1, checkpoint_minutes=0.0, keep_checkpoints=1)
    free = replace(often, checkpointing=True, patience=9)
    resumed = trainer(model, tmp_path / "run", free, resume=True).run()
    assert torch.allclose(resumed.embedding.tokens, whole.embedding.tokens, atol=1e-6)


# what version 0.1 wrote


def aged(path: Path) -> None:
    """Rewrite a checkpoint as version 0.1 wrote it: no checksum, two numbers for the loss scale, flat settings beside
    digests of model and prompts."""
    context = load_state(path)[1]
    with safe_open(path, framework="pt") as file:
        numbers = json.loads(file.metadata()["state"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    numbers |= {"loss_scale": 8.0, "skipped_in_a_row": 3}
    del numbers["scale"], numbers["changes"]
    settings = context["settings"]
    sampling = settings.pop("sampling")
    former = {old: sampling[new.partition(".")[2]] for old, new in FORMER.items()}
    flat = {name: value for name, value in settings.items() if name not in ("jitter", "checkpoint_minutes")} | former
    flat |= {"model": "5" * 64, "reward": "curved", "watch": None}
    flat |= {"prompts": context["prompts"]["train"], "validation_prompts": context["prompts"]["validation"]}
    texts = {"format": "reneg-checkpoint-1", "state": json.dumps(numbers), "context": json.dumps(flat)}
    write_tensors(path, tensors, texts)


def test_a_run_of_version_0_1_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model, config = Digested(), replace(QUICK, learning_rate=0.02)
    whole = trainer(model, tmp_path / "whole", config).run()
    count = Steps(4)
    trainer(model, tmp_path / "old", config, observer=count, should_stop=count.enough).run()
    for path in (tmp_path / "old/checkpoints").glob("*.safetensors"):
        aged(path)
    (tmp_path / "old/prompts.json").unlink()
    newest = max((tmp_path / "old/checkpoints").glob("*.safetensors"))
    state, _ = load_state(newest)
    assert (state.scale.value, state.scale.highest, state.scale.skipped, state.scale.finite) == (8.0, 8.0, 3, 0)

    for changed, words in (
        ({"model": Digested("6")}, "- model: the denoiser is not what the run was started with."),
        ({"config": replace(config, batch_size=2)}, "- batch_size: the run was started with 4, now it is 2."),
        ({"config": replace(config, sampling=SAMPLING.at_scale(5))}, "- sampling.guidance_scale: the run was started"),
        ({"prompts": PROMPTS[1:]}, "- training prompts: there are 4 now, not those that the run was started with"),
        ({"watch": Curved()}, "- watch: the run was started with 'none', now it is 'curved'."),
    ):
        options = {"model": model, "config": config, **changed}
        with pytest.raises(AnotherRun) as error:
            trainer(options.pop("model"), tmp_path / "old", options.pop("config"), resume=True, **options).run()
        assert words in str(error.value) and len(error.value.differences) == 1
        assert error.value.folder == tmp_path / "old"
    ended = trainer(model, tmp_path / "old", config, resume=True).run()
    assert torch.equal(ended.embedding.tokens, whole.embedding.tokens) and ended.best_step == whole.best_step


# more steps


def test_a_finished_run_is_extended(model, tmp_path: Path) -> None:
    """The steps taken keep their rates, the others have those of a run of eight; the moments go on."""
    six = trainer(model, tmp_path).run()
    state = load_state(tmp_path / "checkpoints/step-00000006.safetensors")[0]
    said: list[str] = []
    longer = replace(QUICK, steps=8)
    result = trainer(model, tmp_path, longer, resume=True, say=said.append).run()
    assert (six.steps, result.steps, result.reason) == (6, 8, "done")
    expected = [schedule.learning_rate(QUICK if s < 6 else longer, s) for s in range(8)]
    assert [r["learning_rate"] for r in records(tmp_path, "step")] == pytest.approx(expected)
    assert said == [
        "steps: 6 before, 8 from step 6 on. The learning rate goes on as in a run of 8 steps: 0.007322 at the next "
        "step instead of 0; the 6 steps taken keep theirs."
    ]
    assert steps_of(tmp_path, "step") == [*range(1, 9)] and steps_of(tmp_path, "validation") == [0, 2, 4, 6, 8]
    now = load_state(tmp_path / "checkpoints/step-00000008.safetensors")[0]
    assert now.progress.changes == [[6, 6, 8]] and now.learner.updates == state.learner.updates + 2 == 8
    notes = load_embedding(tmp_path / "negative.safetensors").provenance.notes
    assert notes["training"]["steps_changed"] == [[6, 6, 8]]


def test_an_extended_run_resumes_bit_for_bit(model, tmp_path: Path) -> None:
    longer, ends = replace(QUICK, steps=10), []
    for name in ("whole", "broken"):
        trainer(model, tmp_path / name).run()
        if name == "broken":
            count = Steps(3, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                trainer(model, tmp_path / name, longer, resume=True, observer=count).run()
        ends.append(trainer(model, tmp_path / name, longer, resume=True).run())
    assert torch.equal(ends[0].embedding.tokens, ends[1].embedding.tokens)
    assert records(tmp_path / "broken", "step")[-1]["learning_rate"] > 0


def test_steps_that_are_found_out_before_the_first_writing(model, tmp_path: Path) -> None:
    """A run of six that takes four is a run of four; going on, the change is noted beside that of the configuration."""
    asked = trainer(model, tmp_path / "asked", replace(QUICK, steps=4)).run()
    result = trainer(model, tmp_path / "taken", before=lambda run: run.take(4)).run()
    assert result.steps == 4 and torch.equal(result.embedding.tokens, asked.embedding.tokens)
    rates = [[r["learning_rate"] for r in records(tmp_path / name, "step")] for name in ("asked", "taken")]
    assert rates[0] == rates[1]
    four, context = load_state(tmp_path / "taken/checkpoints/step-00000004.safetensors")
    assert four.progress.changes == [] and context["settings"]["steps"] == 4
    assert trainer(model, tmp_path / "taken", before=lambda run: run.take(5), resume=True).run().steps == 5
    five, context = load_state(tmp_path / "taken/checkpoints/step-00000005.safetensors")
    assert five.progress.changes == [[4, 4, 6], [4, 6, 5]] and context["settings"]["steps"] == 5


def test_fewer_steps_than_were_taken_are_refused(model, tmp_path: Path) -> None:
    trainer(model, tmp_path).run()
    with pytest.raises(ValueError, match=r"steps: got 5, but the run has taken 6 steps already\. Try that number"):
        trainer(model, tmp_path, replace(QUICK, steps=5), resume=True).run()


def test_a_run_without_patience_left_goes_on_with_more_of_it_or_more_steps(model, tmp_path: Path) -> None:
    config = replace(QUICK, patience=1, validate_every=1, steps=4)
    for name, more, steps in (("a", replace(config, patience=2), 2), ("b", replace(config, steps=5), 2)):
        ended = trainer(model, tmp_path / name, config, reward=Constant()).run()
        assert (ended.reason, ended.steps) == ("patience", 1)
        again = trainer(model, tmp_path / name, config, reward=Constant(), resume=True).run()
        assert (again.reason, again.steps) == ("patience", 1), "unchanged there is nothing left to do"
        result = trainer(model, tmp_path / name, more, reward=Constant(), resume=True).run()
        assert (result.reason, result.steps) == ("patience", steps)


# what a run rests on


def test_a_start_is_known_by_its_numbers_as_in_every_version() -> None:
    """Where it lies does not matter, which of its tensors a number belongs to does."""
    tokens, mask, pooled = torch.arange(6.0).reshape(1, 2, 3) / 8, torch.tensor([[1, 0]]), torch.ones(1, 3) / 4
    plain, whole = NegativeEmbedding(tokens, "own"), NegativeEmbedding(tokens, "own", mask, pooled)
    assert start_contents("blurry", None) == {"prompt": "blurry"}
    found = [start_contents("/a/start.safetensors", one) for one in (plain, whole)]
    assert [one.pop("file") for one in found] == ["start.safetensors"] * 2 and found == STARTS


def written(folder: Path, name: str, text: str) -> Any:
    """What a python file of a user holds, which is not among the installed modules."""
    (folder / f"{name}.py").write_text(text)
    spec = importlib.util.spec_from_file_location(f"users_{name}", folder / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_a_users_reward_is_known_by_its_file(tmp_path: Path) -> None:
    judged = written(tmp_path, "judged", "def judge(images, prompts):\n    return images.mean((1, 2, 3))\n")
    classed = written(
        tmp_path,
        "classed",
        "from doubles import Curved\nclass Own(Curved):\n    def _score(self, i, p): return i.sum()\n",
    )
    calling = Curved()
    calling.function = judged.judge
    for reward, file in ((calling, "judged.py"), (classed.Own(), "classed.py")):
        digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        assert reward_contents(reward)[f"file {file}"] == f"sha256:{digest}"
    assert {*reward_contents(Curved())} == {"name"}
    calling.function = print
    bare = type("Bare", (Curved,), {"__module__": "users_nowhere"})
    assert {*reward_contents(calling)} == {*reward_contents(bare())} == {"name"}


def test_a_process_without_pairs_shows_none(model) -> None:
    """Of one pair the second of two has it; without a watched reward there is no number of one."""
    validator, negative = Validator(["a"], replace(QUICK, validation_pairs=1), Curved()), model.encode(["blurry"])
    alone = validator.run(model, negative, lambda rows, work: [work(rows)], Workers())
    assert alone.watch is None and alone.images.shape == (1, 3, 2, 2) and alone.prompts == ["a"]
    idle = validator.run(model, negative, lambda rows, work: [], Workers())
    assert idle.images is None and idle.prompts == [] and idle.reward == 0


def test_a_run_begins_as_its_model_and_its_reward_need_it(model, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Noted(Curved):
        def _score(self, images, prompts):
            seen.append(list(prompts))
            return super()._score(images, prompts)

    model.dtype = torch.float16
    run = trainer(model, tmp_path, reward=Noted())
    run.inside(run.prepare)
    assert run.scale == LossScale(1024.0, 1024.0) and seen == [[PROMPTS[0]]]


def test_a_start_of_more_tokens_than_the_model_reads_is_refused(model, tmp_path: Path) -> None:
    NegativeEmbedding(torch.ones(1, 3, 3), model.family).save(tmp_path / "long.safetensors")
    model.max_tokens = 2
    with pytest.raises(ValueError, match=r"3 tokens.* 2"):
        trainer(model, tmp_path / "run", replace(ONE, init=str(tmp_path / "long.safetensors"))).run()


@pytest.mark.parametrize("step", [0, 100])
def test_a_run_that_is_there_says_its_step(model, tmp_path: Path, step: int) -> None:
    run = trainer(model, tmp_path, replace(ONE, steps=1))
    run.run()
    for path in (tmp_path / "checkpoints").iterdir():
        path.rename(path.with_name(f"step-{step:08d}.safetensors"))
    with pytest.raises(ValueError, match=f"holds a run at step {step} already"):
        trainer(model, tmp_path, ONE).run()


def test_what_is_kept_is_single_precision_of_its_own() -> None:
    half = torch.ones(2, dtype=torch.bfloat16)
    kept, same = clone({"half": half})["half"], torch.ones(2)
    assert kept.dtype == torch.float32 and clone({"same": same})["same"].data_ptr() != same.data_ptr()
