"""A whole tuning: it climbs, resumes bit for bit, stops cleanly, shares its work, refuses what it cannot learn from."""

import copy
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from doubles import Constant, Curved, Wrapped
from runs import Steps, records, steps_of
from small import SmallModel
from tunable import PROMPTS, QUICK, SAMPLING, TunableSmall, random_lora, tuning

from reneg_core import NegativeEmbedding
from reneg_core.rewards import load_reward
from reneg_core.rewards.mix import RewardMix
from reneg_core.texforce import TexForceConfig, load_text_lora
from reneg_core.training import ConfigError, Session, Trainer
from reneg_core.training.rehearsal import rehearse
from reneg_core.training.state import load_state

DIRECT = replace(QUICK, route="direct", through=0)
ROUTES = pytest.mark.parametrize("config", [QUICK, DIRECT], ids=["policy", "direct"])


class Counted(Curved):
    """Without a gradient, as a JPEG's size is."""

    name = "counted"
    differentiable = False

    def _score(self, images, prompts):
        return super()._score(images.detach(), prompts)


def learned(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").glob("step-*"))
    return load_state(newest)[0].learner.tensors


def same(one: Path, other: Path) -> bool:
    """Whether two runs are at the same numbers: what is learned, both moments, the statistics, the best."""
    states = [load_state(max((folder / "checkpoints").glob("step-*")))[0] for folder in (one, other)]
    groups: list[dict[str, torch.Tensor]] = []
    for state in states:
        parts = {g: getattr(state.learner, g) for g in ("tensors", "first", "second", "statistics")}
        parts["best"] = state.progress.best
        groups.append({f"{group}.{name}": t for group, tensors in parts.items() for name, t in tensors.items()})
    assert groups[0].keys() == groups[1].keys()
    return all(torch.equal(groups[0][name], groups[1][name]) for name in groups[0])


# learning


@pytest.mark.parametrize(
    ("config", "reward"),
    [(QUICK, Curved()), (QUICK, Counted()), (DIRECT, Curved())],
    ids=["policy", "policy without a gradient", "direct"],
)
def test_the_reward_rises_and_the_files_are_there(tmp_path: Path, config: TexForceConfig, reward) -> None:
    more = replace(config, steps=30, batch_size=64, micro_batch=64, samples_per_prompt=8, validate_every=10)
    result = tuning(tmp_path, more, reward=reward).run()
    assert result.reason == "done" and result.best_reward > result.start_reward + 0.03
    saved = load_text_lora(tmp_path / "text-lora.safetensors")
    assert saved.digest() == result.lora.digest() == load_text_lora(tmp_path / "best.safetensors").digest()
    assert load_text_lora(tmp_path / "text-lora").encoders == ["text_encoder"]
    assert saved.provenance.steps == result.best_step and saved.provenance.rewards == reward.name
    assert saved.provenance.notes["training"]["route"] == config.route


def test_the_first_update_has_ratios_of_exactly_1_and_later_ones_do_not(tmp_path: Path) -> None:
    one = replace(QUICK, updates=1)
    tuning(tmp_path / "one", one).run()
    assert [r["ratio_change"] for r in records(tmp_path / "one", "step")] == [0.0] * 4
    assert records(tmp_path / "one", "step")[0]["kl"] == 0 and records(tmp_path / "one", "step")[3]["kl"] > 0
    tuning(tmp_path / "two", replace(one, inner_epochs=2)).run()
    assert all(r["ratio_change"] > 0 for r in records(tmp_path / "two", "step"))


def test_the_model_is_as_before_afterwards_however_it_ends(tmp_path: Path) -> None:
    model = TunableSmall()
    plain = model.encode(PROMPTS).tokens

    class Fatal(Curved):
        def _score(self, images, prompts):
            raise KeyboardInterrupt

    tuning(tmp_path / "a", model=model).run()
    with pytest.raises(KeyboardInterrupt):
        tuning(tmp_path / "b", model=model, reward=Fatal()).run()
    assert torch.equal(model.encode(PROMPTS).tokens, plain)


def test_the_negative_goes_through_the_tuned_encoder_unless_it_is_an_embedding(tmp_path: Path) -> None:
    model, seen = TunableSmall(), []

    class Watched(Wrapped):
        def encode(self, prompts, gradient=False):
            seen.append((tuple(prompts), gradient))
            return self._model.encode(prompts, gradient)

    config = replace(QUICK, steps=1, negative="ugly")
    tuning(tmp_path / "text", config, model=Watched(model)).run()
    assert (("ugly",), True) in seen and ((",",), True) not in seen
    path = NegativeEmbedding(model.encode(["ugly"]).tokens, model.family).save(tmp_path / "ugly.safetensors")
    seen.clear()
    tuning(tmp_path / "file", replace(config, negative=str(path)), model=Watched(model)).run()
    assert not any(prompts == ("ugly",) for prompts, _ in seen)
    assert not torch.equal(
        *(learned(tmp_path / name)[next(iter(learned(tmp_path / name)))] for name in ("text", "file"))
    )


def test_it_starts_from_a_lora(tmp_path: Path) -> None:
    tuning(tmp_path / "first", replace(QUICK, learning_rate=0.1)).run()
    start = load_text_lora(tmp_path / "first/text-lora.safetensors")
    again = replace(QUICK, steps=1, learning_rate=1e-9, init=str(tmp_path / "first/text-lora.safetensors"))
    result = tuning(tmp_path / "again", again).run()
    assert all(torch.allclose(a, start.deltas()[n], atol=1e-5) for n, a in result.lora.deltas().items())
    with pytest.raises(ValueError, match=r"Got a LoRA with .* of shape \[2, 3\], expected \[3, 3\]\. Try the rank"):
        tuning(tmp_path / "rank", replace(again, rank=3, alpha=3.0)).run()


# the settings


MOVES = {
    "learning_rate": 0.01, "betas": (0.8, 0.999), "sampling": SAMPLING.changed(steps=5), "steps": 3, "batch_size": 6,
    "warmup": 0, "weight_decay": 0.5, "gradient_clip": 1e-4, "seed": 1, "route": "direct", "rank": 3, "alpha": 8.0,
    "negative": "ugly", "updates": 4, "inner_epochs": 2, "samples_per_prompt": 1, "timestep_fraction": 1.0,
    "window": (0, 1), "clip_range": 1e-9, "advantage_clip": 0.1, "statistics_buffer": 2, "statistics_minimum": 4,
}  # fmt: skip
SAME = {
    "micro_batch": 3, "checkpointing": True, "decoder": "recomputed", "checkpoint_every": 3, "checkpoint_minutes": 0,
    "keep_checkpoints": 1,
}  # fmt: skip
ELSEWHERE = {"validate_every", "validation_pairs", "patience", "watch_drop", "init", "through", "judged_frames"}


def test_the_tables_name_every_setting() -> None:
    assert {*MOVES, *SAME, *ELSEWHERE} == {field.name for field in fields(TexForceConfig)}
    assert all(getattr(QUICK, name) != value for name, value in {**MOVES, **SAME}.items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("plain")
    tuning(folder).run()
    return learned(folder)


@pytest.mark.parametrize("name", MOVES)
def test_a_setting_of_learning_changes_what_is_learned(tmp_path: Path, plain, name: str) -> None:
    tuning(tmp_path, replace(QUICK, **{name: MOVES[name]})).run()
    found = learned(tmp_path)
    assert any(found[n].shape != t.shape or (found[n] - t).abs().max() > 1e-6 for n, t in plain.items())


@pytest.mark.parametrize("name", SAME)
def test_a_setting_of_memory_changes_nothing_that_is_learned(tmp_path: Path, plain, name: str) -> None:
    tuning(tmp_path, replace(QUICK, **{name: SAME[name]})).run()
    assert all(torch.allclose(learned(tmp_path)[n], t, atol=1e-4) for n, t in plain.items())


def test_the_decoder_is_a_setting_of_the_direct_route(tmp_path: Path) -> None:
    """A crop is another gradient there, not of the pictures that it is judged by; the policy has none."""
    config = replace(DIRECT, sampling=SAMPLING.changed(height=8, width=8))
    for decoder in ("full", "crop:0.5"):
        tuning(tmp_path / decoder, replace(config, decoder=decoder)).run()
    assert not same(tmp_path / "full", tmp_path / "crop:0.5")
    starts = [records(tmp_path / name, "validation")[0]["reward"] for name in ("full", "crop:0.5")]
    assert starts[0] == starts[1]
    lora = load_text_lora(tmp_path / "crop:0.5" / "text-lora.safetensors")
    assert lora.provenance.notes["training"]["decoder"] == "crop:0.5"
    with pytest.raises(ValueError, match=r"decoder: got 'crop:0\.5', expected the route direct with it"):
        replace(QUICK, decoder="crop:0.5")
    replace(QUICK, decoder="recomputed")


def test_through_is_a_setting_of_the_direct_route(tmp_path: Path) -> None:
    for through in (0, 1):
        tuning(tmp_path / str(through), replace(DIRECT, through=through)).run()
    assert not same(tmp_path / "0", tmp_path / "1")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"route": "magic"}, "route: got 'magic', expected one of policy, direct"),
        ({"rank": 0}, "rank: got 0, expected 1 or more"),
        ({"timestep_fraction": 0.0}, "timestep_fraction: got 0.0, expected more than 0"),
        ({"timestep_fraction": 1.5}, "timestep_fraction: got 1.5"),
        ({"clip_range": 0.0}, "clip_range: got 0.0, expected more than 0"),
        ({"advantage_clip": float("nan")}, "advantage_clip: got nan"),
        ({"updates": 9}, "updates: got 9, expected at most the batch_size 8"),
        ({"samples_per_prompt": 3}, "samples_per_prompt: got 3, expected a divisor of the batch_size 8"),
        ({"statistics_minimum": 5}, "statistics_minimum: got 5, expected at most the statistics_buffer 4"),
        ({"window": (0, 5)}, r"window: got 0\.\.5, expected 0 <= first < last <= the steps 4"),
        ({"through": 5}, "through: got 5, expected at most the sampling.steps 4"),
        ({"learning_rate": float("inf")}, "learning_rate: got inf, expected a finite number"),
    ],
)
def test_what_cannot_be_is_said(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(QUICK, **settings)


def test_a_configuration_reads_back() -> None:
    assert TexForceConfig.from_mapping(QUICK.to_mapping()) == QUICK
    with pytest.raises(ConfigError, match="points: unknown setting"):
        TexForceConfig.from_mapping({"points": 1})


# going on


@ROUTES
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resume_equals_an_unbroken_run(tmp_path: Path, config: TexForceConfig, stop_after: int) -> None:
    whole = tuning(tmp_path / "whole", config).run()
    count = Steps(stop_after)
    broken = tuning(tmp_path / "run", config, observer=count, should_stop=count.enough).run()
    assert (broken.reason, broken.steps) == ("stopped", stop_after)
    resumed = tuning(tmp_path / "run", config, resume=True).run()
    assert same(tmp_path / "whole", tmp_path / "run") and resumed.lora.digest() == whole.lora.digest()
    for event, names in (("step", ("step", "reward", "gradient_norm")), ("validation", ("step", "reward", "best"))):
        pick = [[[r[n] for n in names] for r in records(tmp_path / run, event)] for run in ("whole", "run")]
        assert pick[0] == pick[1]


@ROUTES
def test_a_step_that_is_stopped_between_its_updates_is_not_counted(tmp_path: Path, config: TexForceConfig) -> None:
    """The first update has moved the LoRA already; the checkpoint has it as before the step."""
    tuning(tmp_path / "whole", config).run()

    class Late:
        polls = 0

        def __call__(self) -> bool:
            self.polls += 1
            return run.learner.updates % 2 == 1 and run.progress.step == 2

    run = tuning(tmp_path / "run", config, should_stop=Late())
    stopped = run.run()
    assert (stopped.reason, stopped.steps, run.learner.updates) == ("stopped", 2, 4)
    tuning(tmp_path / "run", config, resume=True).run()
    assert same(tmp_path / "whole", tmp_path / "run")


def test_a_killed_run_goes_on_from_its_last_good_checkpoint(tmp_path: Path) -> None:
    tuning(tmp_path / "whole").run()
    with pytest.raises(MemoryError):
        tuning(tmp_path / "run", observer=Steps(3, MemoryError())).run()
    newest = max((tmp_path / "run/checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-3])
    said: list[str] = []
    tuning(tmp_path / "run", resume=True, say=said.append).run()
    assert said and "is no whole checkpoint" in said[0], said
    assert same(tmp_path / "whole", tmp_path / "run") and steps_of(tmp_path / "run", "step") == [1, 2, 3, 4]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning(tmp_path / "whole").run()
    from reneg_core.training import state

    calls, write = [], state.write_tensors

    def full(path, *args):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", str(path))
        return write(path, *args)

    monkeypatch.setattr(state, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        tuning(tmp_path / "run").run()
    monkeypatch.setattr(state, "write_tensors", write)
    tuning(tmp_path / "run", resume=True).run()
    assert same(tmp_path / "whole", tmp_path / "run")


def test_another_run_is_refused_in_words(tmp_path: Path) -> None:
    tuning(tmp_path).run()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    changed = TunableSmall()
    changed.encoder.encoder.layers[0].self_attn.q_proj.weight += 0.1

    class Told(TunableSmall):
        def __init__(self, encoder) -> None:
            super().__init__()
            self.encoder = encoder

        def contents(self):
            return super().contents() | {
                "text encoder": str(sum(p.double().sum().item() for p in self.encoder.parameters()))
            }

    for one, words in (
        (
            lambda: tuning(tmp_path, replace(QUICK, rank=3), resume=True),
            "rank: the run was started with 2, now it is 3",
        ),
        (lambda: tuning(tmp_path, resume=True, reward=Counted()), "reward: the run was started with 'curved'"),
        (lambda: tuning(tmp_path, resume=True, prompts=[*PROMPTS, "x"]), "'x' was added since the run was started"),
    ):
        with pytest.raises(ValueError, match=words):
            one().run()
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    first = tmp_path / "told"
    tuning(first, replace(QUICK, steps=1), model=Told(copy.deepcopy(TunableSmall().encoder))).run()
    with pytest.raises(ValueError, match="model: the text encoder was"):
        tuning(first, replace(QUICK, steps=1), model=Told(changed.encoder), resume=True).run()


def test_another_start_or_negative_of_the_same_name_is_another_run(tmp_path: Path) -> None:
    model = TunableSmall()
    init, negative = tmp_path / "init.safetensors", tmp_path / "negative.safetensors"
    config = replace(QUICK, steps=1, init=str(init), negative=str(negative))

    def files(seed: int, text: str) -> None:
        random_lora(model.text_encoders(), 2, seed).save(init)
        NegativeEmbedding(model.encode([text]).tokens, model.family).save(negative, overwrite=True)

    files(0, "ugly")
    tuning(tmp_path / "run", config).run()
    assert tuning(tmp_path / "run", config, resume=True).run().steps == 1
    files(1, "ugly")
    with pytest.raises(
        ValueError, match=r"- init: the LoRA in init\.safetensors is not the one that the run was started"
    ):
        tuning(tmp_path / "run", config, resume=True).run()
    files(0, "grey")
    with pytest.raises(ValueError, match="- model: the negative embedding is not what the run was started with"):
        tuning(tmp_path / "run", config, resume=True).run()


def test_a_function_that_was_edited_is_another_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "judged_by_mean.py"
    file.write_text("def mean(images, prompts):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    one = replace(QUICK, steps=1)
    tuning(tmp_path / "run", one, reward=load_reward("judged_by_mean:mean")).run()
    file.write_text("def mean(images, prompts):\n    return -images.mean((1, 2, 3))\n")
    with pytest.raises(ValueError, match=r"- reward: the file judged_by_mean\.py is not what the run was started with"):
        tuning(tmp_path / "run", one, reward=load_reward("judged_by_mean:mean"), resume=True).run()


def test_more_steps_extend_a_run(tmp_path: Path) -> None:
    tuning(tmp_path).run()
    result = tuning(tmp_path, replace(QUICK, steps=6), resume=True).run()
    assert result.steps == 6 and steps_of(tmp_path, "step") == [1, 2, 3, 4, 5, 6]
    assert result.lora.provenance.notes["training"]["steps_changed"] == [[4, 4, 6]]


# many processes


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Over gloo; also where an update has fewer rows than there are processes."""
    script = tmp_path / "share.py"
    script.write_text(
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from reneg_core.training.workers import processes\nfrom tunable import QUICK, tuning\n"
        "with processes('cpu') as workers:\n"
        "    for name, config in (('policy', QUICK), ('thin', replace(QUICK, updates=8)),\n"
        "                         ('direct', replace(QUICK, route='direct'))):\n"
        "        tuning(Path(sys.argv[1]) / name, config, workers=workers).run()\n"
    )
    tests = Path(__file__).resolve().parents[1]
    paths = [str(tests.parent), str(tests), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "two")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, config in (
        ("policy", QUICK),
        ("thin", replace(QUICK, updates=8)),
        ("direct", replace(QUICK, route="direct")),
    ):
        tuning(tmp_path / "one" / name, config).run()
        one, two = learned(tmp_path / "one" / name), learned(tmp_path / "two" / name)
        assert all(torch.allclose(two[n], t, atol=2e-5) for n, t in one.items())


# what cannot be learned from


def test_a_reward_without_a_gradient_is_for_the_policy_alone(tmp_path: Path) -> None:
    words = "'counted' carries no gradient .* `reneg texforce train` learns from any reward"
    with pytest.raises(ValueError, match=words):
        tuning(tmp_path / "direct", DIRECT, reward=Counted()).run()
    with pytest.raises(ValueError, match=words):
        config = Session()
        from runs import QUICK as RENEG

        Trainer(SmallModel(), Counted(), (PROMPTS, PROMPTS), RENEG, tmp_path / "reneg", session=config).run()
    mixed = RewardMix({"curved": Curved(), "counted": Counted()}, {"curved": 1.0, "counted": 1.0})
    with pytest.raises(ValueError, match=r"'curved\*1 \+ counted\*1' carries no gradient"):
        tuning(tmp_path / "mix", DIRECT, reward=mixed).run()
    assert tuning(tmp_path / "policy", reward=mixed).run().reason == "done"


def test_a_model_whose_encoder_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Got the model small, whose text encoders cannot be tuned here"):
        tuning(tmp_path, model=SmallModel()).run()


def test_a_single_sampling_step_draws_nothing(tmp_path: Path) -> None:
    words = (
        r"of which the first {} draw noise, and none of them from step {} on\. Expected sampling\.steps of 2 or more"
    )
    with pytest.raises(ValueError, match=words.format(0, 0)):
        tuning(tmp_path, replace(QUICK, sampling=SAMPLING.changed(steps=1))).run()
    with pytest.raises(ValueError, match=words.format(3, 3)):
        tuning(tmp_path, replace(QUICK, window=(3, 4))).run()


def test_rewards_that_are_no_numbers_end_the_run_with_the_best_saved(tmp_path: Path) -> None:
    class Broken(Counted):
        calls = 0

        def _score(self, images, prompts):
            type(self).calls += 1
            return super()._score(images, prompts) * (float("nan") if self.calls == 4 else 1)

    with pytest.raises(FloatingPointError, match="The reward 'counted' gave nan for a sampled picture"):
        tuning(tmp_path, reward=Broken()).run()
    assert load_text_lora(tmp_path / "best.safetensors").rank == 2


def test_too_little_memory_halves_the_micro_batch(tmp_path: Path, plain) -> None:
    class Fragile(Wrapped):
        def encode(self, prompts, gradient=False):
            return self._model.encode(prompts, gradient)

        def denoise(self, x, sigma, conditioning, branches=None):
            if len(x) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return self._model.denoise(x, sigma, conditioning, branches)

    tuning(tmp_path, model=Fragile(TunableSmall())).run()
    assert [r["micro_batch"] for r in records(tmp_path, "out_of_memory")] == [1]
    assert all(torch.allclose(learned(tmp_path)[n], t, atol=1e-3) for n, t in plain.items())


def test_patience_and_equal_rewards(tmp_path: Path) -> None:
    config = replace(QUICK, patience=2, validate_every=1, weight_decay=0.0)
    result = tuning(tmp_path, config, reward=Constant()).run()
    assert (result.reason, result.steps, result.best_step) == ("patience", 2, 0)
    assert all(delta.abs().max() == 0 for delta in result.lora.deltas().values())


@ROUTES
def test_a_rehearsal_measures_and_learns_nothing(tmp_path: Path, config: TexForceConfig) -> None:
    run = tuning(tmp_path, config)
    found = rehearse(run, [])
    assert found.step > 0 and found.validation > 0 and found.kept > 0 and found.micro_batch == 4
    assert run.learner.updates == 0 and not tmp_path.joinpath("checkpoints").exists()
