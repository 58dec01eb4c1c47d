"""Settings: nested, dotted and older names, faults all at once, and windows under jitter."""

import contextlib
import itertools
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reneg_core.guidance import Guidance
from reneg_core.sampling import Jitter, Sampling, Size
from reneg_core.training import AdaptConfig, ConfigError, TrainConfig, split_prompts
from reneg_core.training.run_config import RunConfig, load_run_config, recipe_names

OLD_CONFIG = """\
learning_rate: 0.02
betas:
- 0.9
- 0.999
sampling_steps: 10
window:
- 0
- 1
points: 1
through: 10
guidance_scale: 3.0
solver: dpmpp_2m
height: 64
width: null
checkpointing: false
steps: 100
batch_size: 16
micro_batch: 16
warmup: 0
weight_decay: 0.0
gradient_clip: 0.0
init: ''
norm_limit: 0.0
seed: 0
validate_every: 20
validation_pairs: 48
checkpoint_every: 20
keep_checkpoints: 2
patience: 0
watch_drop: null
model: tiny
model_config: ''
device: auto
dtype: auto
reward: tiny
reward_weights: ''
watch: ''
watch_weights: ''
prompts: ''
validation_prompts: ''
output: demo-output
tensorboard: false
"""


@pytest.fixture
def old(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(OLD_CONFIG)
    return str(path)


def test_a_configuration_of_an_older_version_is_read(old: str) -> None:
    config = load_run_config(old)
    assert config.sampling == Sampling("dpmpp_2m", 10, "model", Guidance(3.0), Size(64))
    assert (config.window, config.through, config.jitter) == ((0, 1), 10, Jitter())


def test_overrides_by_any_name_change_one_setting_of_the_mapping(old: str) -> None:
    overrides = ["sampling.steps=20", "guidance_scale=5", "sampling.spacing=karras", "sampling.guidance_end=0.9"]
    config = load_run_config(old, overrides)
    assert config.sampling == Sampling("dpmpp_2m", 20, "karras", Guidance(5.0, end=0.9), Size(64))
    assert load_run_config("fast", ["sampling_steps=20"]).sampling.spacing == "trailing"
    assert load_run_config("fast", ["sampling={steps: 7}"]).sampling.spacing == "trailing"
    jittered = load_run_config("fast", ["jitter.steps=[5, 20]", "jitter.spacing=[trailing, karras]"]).jitter
    assert jittered == Jitter(steps=(5, 20), spacing=("trailing", "karras"))


def test_yaml_round_trip_is_nested_and_equal(tmp_path: Path) -> None:
    config = load_run_config(
        "demo", ["steps=7", "init=blurry, bad", "jitter.guidance_scale=[2, 3.5]", "sampling.width=64"]
    )
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    values = yaml.safe_load(config.to_yaml())
    assert values["sampling"]["steps"] == 10 and values["jitter"]["guidance_scale"] == [2.0, 3.5]
    assert load_run_config(str(tmp_path / "c.yaml")) == config
    assert (config.steps, config.init, config.sampling.size) == (7, "blurry, bad", Size(width=64))


def test_recipes_are_valid_and_the_default_is_the_papers() -> None:
    assert set(recipe_names()) >= {"demo", "fast", "paper"}
    for name in recipe_names():
        load_run_config(name)
    paper = load_run_config("paper").train_config()
    assert paper == RunConfig().train_config() == TrainConfig()
    assert (paper.steps, paper.batch_size, paper.learning_rate) == (4000, 64, 5e-3)
    assert (paper.sampling.steps, paper.gradient_window, paper.sampling.guidance.scale) == (30, (20, 30), 7.5)
    assert (paper.through, paper.points, paper.sampling.spacing) == (1, 1, "model")


@pytest.mark.parametrize("value", [0, 1, 7, "leap"])
def test_through_is_a_number_of_steps_or_a_leap(value: object) -> None:
    config = TrainConfig.from_mapping({"through": value})
    assert config.through == value and type(config.through) is type(value)
    assert TrainConfig.from_mapping(config.to_mapping()) == config
    assert load_run_config(overrides=[f"through={value}"]).through == value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"through": "leaps"}, "through: got 'leaps', expected 0 or more, or leap."),
        ({"through": "3"}, "through: got '3', expected 0 or more, or leap."),
        ({"through": -1}, "through: got -1, expected 0 or more, or leap."),
        ({"through": True}, "through: got True, expected a whole number or text."),
        ({"through": None}, "through: got None, expected a whole number or text."),
        ({"through": 1.5}, "through: got 1.5, expected a whole number or text."),
        ({"draws": 0}, "draws: got 0, expected 1 to batch_size 64."),
        ({"draws": 5, "batch_size": 4}, "draws: got 5, expected 1 to batch_size 4."),
        ({"rollout_batch": -1}, "rollout_batch: got -1, expected 0 or more."),
    ],
)
def test_what_the_parts_of_a_step_refuse(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        TrainConfig.from_mapping(values)


def test_a_rollout_takes_four_micro_batches_where_nothing_is_said() -> None:
    assert (TrainConfig(micro_batch=3).rollout_rows, TrainConfig(rollout_batch=5).rollout_rows) == (12, 5)


def test_all_faults_of_a_configuration_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(steps=0, sampling=Sampling().at_scale(1.0), learning_rate=0, through=-1)
    text = str(caught.value)
    assert all(name in text for name in ("steps: got 0", "sampling.guidance_scale: got 1.0", "through: got -1"))
    assert "learning_rate: got 0" in text
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_mapping({"steps": "many", "solver": "heun", "sampling.spacing": "even", "stepps": 1})
    text = str(caught.value)
    assert (
        "steps: got 'many', expected a whole number" in text and "stepps: unknown setting, did you mean steps?" in text
    )
    assert "sampling: Got solver 'heun'" in text and "Got spacing 'even'" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1e-3}, "learning_rat: unknown setting, did you mean learning_rate"),
        ({"sampling.step": 3}, "sampling: step: unknown setting, did you mean steps"),
        ({"sampling": 3}, "sampling: Got 3, expected a mapping with some of solver, steps"),
        ({"jitter.steps": 10}, "jitter: steps: got 10, expected a list, each a whole number"),
        ({"jitter.solver": ["heun"]}, "jitter: Got solver 'heun'"),
        (
            {"sampling.guidance_scale": 1.0, "sampling.guidance_attention": 2.0, "jitter.guidance_scale": [2.0]},
            "- jitter.guidance_scale: expected none with attention guidance, which is for scale 1.",
        ),
        (
            {"sampling.guidance_scale": 1.0, "sampling.guidance_attention": 2.0, "points": 2, "jitter.steps": [1]},
            "- jitter.steps: points: got 2, expected at most the 1 steps",
        ),
        ({"learning_rate": -math.inf}, "- learning_rate: got -inf, expected a finite number"),
        ({"betas": [0.9, 1.0]}, r"- betas: got \(0.9, 1.0\), expected two numbers from 0 to below 1"),
        ({"window": [5, 5]}, r"window: got 5..5, expected 0 <= first < last <= sampling.steps 30"),
        ({"draws": 2, "batch_size": 1}, "- draws: got 2"),
        (
            {"sampling.guidance_scale": 1.0, "sampling.guidance_attention": 2.0, "points": 11},
            "- points: got 11, expected at most the 10 steps of the window",
        ),
        ({"jitter.guidance_scale": [1.0]}, "jitter.guidance_scale: got 1.0, expected more than 1"),
        ({"guidance_scale": float("nan")}, "expected a finite number"),
        ({"sampling.guidance_start": 2}, "sampling: Got the guidance interval 2.0..1.0"),
        ({"window": [5, 40]}, r"window: got 5..40, expected 0 <= first < last <= sampling.steps 30"),
        ({"points": 11}, "points: got 11, expected at most the 10 steps of the window"),
        ({"points": 5, "jitter.steps": [6]}, "jitter.steps: points: got 5, expected at most the 2 steps"),
        (
            {"window": [0, 6], "sampling.guidance_start": 0.5},
            "window: Got the window 0..6 of 30 steps, where guidance ne",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_mapping(values)


def test_as_many_draws_as_pictures_and_attention_at_scale_1_can_be() -> None:
    config = TrainConfig.from_mapping(
        {"draws": 4, "batch_size": 4, "sampling.guidance_scale": 1.0, "sampling.guidance_attention": 2.0}
    )
    assert (config.draws, config.sampling.guidance.attention) == (4, 2.0)
    assert type(TrainConfig().to_mapping()["betas"]) is list


def test_the_adaptation_knows_no_jitter() -> None:
    with pytest.raises(ConfigError, match="jitter: unknown setting"):
        AdaptConfig.from_mapping({"jitter": {}})


@pytest.mark.parametrize(
    ("window", "steps", "expected"),
    [
        (None, 10, (7, 10)), (None, 20, (13, 20)), (None, 30, (20, 30)), (None, 3, (2, 3)), (None, 1, (0, 1)),
        ((0, 3), 10, (0, 1)), ((0, 3), 60, (0, 6)), ((0, 1), 3, (0, 1)), ((29, 30), 5, (4, 5)), ((0, 30), 7, (0, 7)),
    ],
)  # fmt: skip
def test_the_window_follows_the_number_of_steps(window: tuple | None, steps: int, expected: tuple) -> None:
    config = TrainConfig(window=window)
    assert config.window_of(config.sampling.changed(steps=steps)) == expected


def test_the_window_keeps_to_where_guidance_acts() -> None:
    config = TrainConfig(sampling=Sampling(guidance=Guidance(5.0, start=0.1, end=0.8)), window=(0, 30))
    assert config.window_of(config.sampling) == (3, 24)
    assert config.window_of(config.sampling.changed(steps=10)) == (1, 8)


@pytest.mark.parametrize(("steps", "points"), [(30, 3), (10, 3), (6, 2), (2, 1), (1, 1)])
def test_an_adaptation_takes_the_points_that_the_steps_allow(steps: int, points: int) -> None:
    sampling = Sampling(steps=steps)
    config = AdaptConfig.for_sampling(sampling, micro_batch=2)
    assert (config.sampling, config.points, config.micro_batch) == (sampling, points, 2)
    assert AdaptConfig.for_sampling(sampling, window=[0, 1]).points == 1
    with pytest.raises(ConfigError, match="points: got 9"):
        AdaptConfig.for_sampling(sampling.changed(steps=8), points=9)


def test_splitting_prompts() -> None:
    prompts = [f"prompt {i}" for i in range(25)]
    train, held = split_prompts([*prompts, "  ", ""])
    assert list(held) == ["prompt 0", "prompt 10", "prompt 20"] and len(train) == 22
    assert not set(train) & set(held)
    assert split_prompts(prompts, ["x ", ""]) == (prompts, ["x"])
    assert split_prompts(prompts[:9]) == (prompts[:9], prompts[:9])
    with pytest.raises(ValueError, match="Got no training prompts"):
        split_prompts([" "], ["x"])


@pytest.mark.parametrize(
    "text", ["[deformed | disfigured], poorly drawn", "{a: b", "ugly: very", "*", "no", "1e3", "# x", "a 'b' c", "- x"]
)
def test_text_settings_are_taken_as_they_are(text: str) -> None:
    assert load_run_config("", [f"init={text}"]).init == text
    assert load_run_config("", [f"init='{text}'"]).init == text
    long = f"~{text} " * 60
    assert load_run_config("", [f"init={long}"]).anchored().init == long


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("window=[1", "Got no valid YAML in the value of window"),
        ("betas=&a [*a, *a]", "nested deeper than 8"),
        ("steps=" + "9" * 5000, "steps"),
        ("steps=0x" + "f" * 5000, "steps: got a int too large to show, expected a whole number"),
        ("steps=18446744073709551616", "steps: got 18446744073709551616, expected a whole number"),
        ("window=2020-01-01", "window: got datetime.date"),
    ],
)
def test_yaml_that_means_nothing_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_run_config("", [override])
    assert len(str(caught.value)) < 500


def test_yaml_that_multiplies_itself_is_refused(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, after in itertools.pairwise("abcdefg"):
        lines.append(f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]")
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"too many values|nested deeper"):
        load_run_config(str(tmp_path / "c.yaml"))


QUICK = settings(
    derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=9) | st.integers(), PLAIN, max_size=3)
NAMES = st.sampled_from(sorted(RunConfig().to_mapping())) | st.text(max_size=9) | st.integers()


@QUICK
@given(st.dictionaries(NAMES, VALUES, max_size=3))
def test_any_configuration_is_refused_or_reads_back_the_same(tmp_path: Path, values: dict) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=False), encoding="utf-8")
    try:
        config = load_run_config(str(path))
    except ConfigError:
        return
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load_run_config(str(path)) == config


@QUICK
@given(st.text(max_size=40))
def test_any_text_is_one_override(text: str) -> None:
    bare = text.strip("'\"")
    assert load_run_config("", [f"init={bare}"]).init == bare
    with contextlib.suppress(ConfigError):
        load_run_config("", [text])
