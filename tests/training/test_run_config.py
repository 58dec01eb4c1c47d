"""A whole job as text: paths that mean the same from everywhere, overrides, and what cannot be read, word for word."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from reneg_core.texforce.run_config import TexForceRunConfig
from reneg_core.training.config import ConfigError
from reneg_core.training.run_config import RECIPES, RunConfig, load_run_config, parse_override, recipe_names

MEMORY = Path(__file__).parents[2] / "benchmarks" / "results" / "memory.json"
PATHS = ("model", "model_config", "reward_weights", "watch_weights", "prompts", "validation_prompts")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("there", "e.safetensors", "e.bin", "judge.py", "odd.py:", "home/here", "tiny", "words.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("name", PATHS)
def test_paths_that_exist_are_anchored(folder: Path, name: str) -> None:
    for given, found in [
        ("there", folder / "there"),
        ("~/here", folder / "home" / "here"),
        (str(folder / "there"), folder / "there"),
        ("gone", "gone"),
        ("", ""),
        ("x" * 3000, "x" * 3000),
    ]:
        assert getattr(RunConfig(**{name: given}).anchored(), name) == str(found)


def test_the_tiny_model_is_no_path(folder: Path) -> None:
    assert RunConfig(model="tiny").anchored().model == "tiny", "even beside a file of that name"


@pytest.mark.parametrize("name", ["reward", "watch"])
def test_rewards_are_names_unless_they_are_python_files(folder: Path, name: str) -> None:
    for given, found in [
        ("judge.py", str(folder / "judge.py")),
        ("judge.py:Judge", f"{folder / 'judge.py'}:Judge"),
        ("judge.py:a.py:b", f"{folder / 'judge.py'}:a.py:b"),
        ("gone.py:Judge", "gone.py:Judge"),
        ("there", "there"),
        ("hpsv2.1*1.0 + tiny", "hpsv2.1*1.0 + tiny"),
    ]:
        assert getattr(RunConfig(**{name: given}).anchored(), name) == found


def test_a_start_is_words_unless_it_is_an_embedding_file(folder: Path) -> None:
    for given, found in [
        ("e.safetensors", str(folder / "e.safetensors")),
        ("e.bin", str(folder / "e.bin")),
        ("there", "there"),
        ("words.txt", "words.txt"),
        ("judge.py:Judge", "judge.py:Judge"),
        ("gone.safetensors", "gone.safetensors"),
        ("blurry", "blurry"),
    ]:
        assert RunConfig(init=given).anchored().init == found


def test_loras_are_anchored_each_with_its_weight(folder: Path) -> None:
    found = RunConfig(loras="e.safetensors*0.5 + gone.safetensors + ~/here*2").anchored().loras
    assert found == f"{folder / 'e.safetensors'}*0.5 + gone.safetensors + {folder / 'home' / 'here'}*2"
    assert RunConfig().anchored().loras == ""
    with pytest.raises(ConfigError, match=r"loras: .*'e\.safetensors\*much'"):
        RunConfig(loras="e.safetensors*much")


def test_a_tunings_negative_is_words_unless_it_is_an_embedding_file(folder: Path) -> None:
    for given, found in [("e.bin", str(folder / "e.bin")), ("words.txt", "words.txt"), ("blurry", "blurry"), ("", "")]:
        assert TexForceRunConfig(negative=given).anchored().negative == found
    assert "negative" not in RunConfig().anchored().to_mapping()


def test_the_output_is_anchored_whether_it_is_there_or_not(folder: Path) -> None:
    for given, found in [
        ("new/run", folder / "new" / "run"),
        ("~/run", folder / "home" / "run"),
        ("a/../b", folder / "b"),
    ]:
        assert RunConfig(output=given).anchored().output == str(found)


def test_anchoring_changes_nothing_else(folder: Path) -> None:
    one = RunConfig(steps=7, reward_dtype="bf16", tensorboard=True)
    assert replace(one.anchored(), output=one.output) == one and one.anchored().anchored() == one.anchored()


def test_text_of_a_configuration_is_in_the_order_of_its_settings() -> None:
    names = [line.partition(":")[0] for line in RunConfig().to_yaml().splitlines() if line[0] not in " -"]
    assert names == list(RunConfig().to_mapping()) and names != sorted(names)


def test_faults_of_the_job_and_of_the_trainer_come_together() -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(steps=-1, reward_dtype="fp8")
    assert "steps" in str(error.value)
    assert "reward_dtype: got 'fp8', expected one of fp32, bf16, fp16." in str(error.value)


def test_an_override_ends_at_its_first_equals_sign() -> None:
    assert parse_override(" init =a=b", {"init"}) == ("init", "a=b")
    assert parse_override("steps=7") == ("steps", 7) and parse_override("steps=") == ("steps", "")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("'a b'", "a b"),
        ('"a b"', "a b"),
        ("''", ""),
        ("'", "'"),
        ("'a\"", "'a\""),
        ("XaX", "XaX"),
        ("a'", "a'"),
        ("", ""),
    ],
)
def test_quotes_around_the_whole_text_are_left_out(value: str, found: str) -> None:
    assert parse_override(f"init={value}", {"init"}) == ("init", found)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "Got the override 'steps', expected name=value, for example learning_rate=1e-2."),
        ("steps=[", "Got no valid YAML in the value of steps ("),
        (
            "steps=" + "[" * 9 + "1" + "]" * 9,
            "Got no valid YAML in the value of steps (nested deeper than 8), expected",
        ),
        (f"steps={[[1] * 101] * 101}", "Got no valid YAML in the value of steps (too many values), expected"),
    ],
)
def test_an_override_that_cannot_be_is_said(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_override(override)
    assert str(error.value).startswith(message) and len(str(error.value)) < 320


def test_the_largest_value_that_is_read() -> None:
    assert len(parse_override(f"steps={[1] * 10_000}")[1]) == 10_000
    with pytest.raises(ConfigError, match="too many values"):
        parse_override(f"steps={[1] * 10_001}")
    assert parse_override("steps=" + "[" * 7 + "1" + "]" * 7)[1] == [[[[[[[1]]]]]]]


def test_no_source_is_the_default_and_a_wrong_one_is_said(tmp_path: Path) -> None:
    assert load_run_config() == RunConfig() and load_run_config("", ["steps=7"]).steps == 7
    message = f"No configuration at gone. Expected a YAML file or one of the recipes {', '.join(recipe_names())}."
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        load_run_config("gone")
    path = tmp_path / "list.yaml"
    path.write_text("- 1")
    with pytest.raises(ConfigError, match=f"^Got list in {re.escape(str(path))}, expected one 'name: value' per line"):
        load_run_config(str(path))
    path.write_text("steps: [")
    with pytest.raises(ConfigError, match=f"^Got no valid YAML in {re.escape(str(path))} "):
        load_run_config(str(path))
    path.write_text("#" + "x" * 2**18)
    with pytest.raises(ValueError, match=re.escape(os.fspath(path))):
        load_run_config(str(path))


@pytest.mark.parametrize("name", ["sdxl", "sd3", "pixart", "chroma", "ltx-video", "zeroscope"])
def test_a_familys_recipe_fits_what_was_computed_for_it(name: str) -> None:
    """The size in the recipe is the one of the memory that its first line states."""
    config = load_run_config(name)
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    models = json.loads(MEMORY.read_text(encoding="utf-8"))["models"]
    found = models["ltx_short" if name == "ltx-video" else name]
    assert config.sampling.size.width == found["pixels"] and config.checkpointing and config.micro_batch == 1
    assert f": {found['gib']['recomputed']['peak'] / 2**30:.0f} GiB" in text.splitlines()[0]
    assert f"--config {name} " in text and config.sampling.guidance.scale > 1
