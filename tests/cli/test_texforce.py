"""``reneg texforce`` on the tiny world, in this process."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from reneg_core.cli import main
from reneg_core.commands.common import read_prompts
from reneg_core.texforce.lora import TextLora, load_text_lora
from reneg_core.texforce.prompts import PROMPT_SETS
from reneg_core.texforce.run_config import TexForceRunConfig
from reneg_core.training.run_config import load_run_config, recipe_names

QUICK = [
    "steps=2", "batch_size=4", "updates=1", "micro_batch=4", "sampling.steps=3", "sampling.spacing=trailing",
    "validation_pairs=2", "validate_every=1", "rank=2", "alpha=2", "device=cpu",
]  # fmt: skip
LAYER = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def test_a_tuning_writes_everything_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["texforce", "train", *QUICK, "reward=jpeg_compressibility", f"output={run}"]) == 0
    out = capsys.readouterr().out
    assert "done after 2 steps: validation reward" in out and f"LoRA:      {run}/text-lora.safetensors" in out
    assert {"config.yaml", "metrics.jsonl", "best.safetensors", "text-lora"} <= {p.name for p in run.iterdir()}
    assert yaml.safe_load((run / "config.yaml").read_text())["route"] == "policy"
    assert load_text_lora(run / "text-lora.safetensors").provenance.base_model == "tiny"
    assert main(["texforce", "train", *QUICK, f"output={run}"]) == 1
    assert "holds a run at step 2 already" in capsys.readouterr().err
    assert main(["texforce", "train", "--config", str(run / "config.yaml"), "--resume", "steps=3"]) == 0
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"step",' in line]
    assert steps == [1, 2, 3]


def test_what_it_would_take_is_measured_without_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["texforce", "train", *QUICK, f"output={tmp_path / 'run'}", "--dry-run", "route=direct"]) == 0
    out = capsys.readouterr().out
    assert "MiB activations a sample" in out and "s a step" in out and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["points=2"], "points: unknown setting"),
        (["route=direct", "reward=jpeg_compressibility"], "carries no gradient with respect to the pictures"),
        (["reward=no.such:function"], "which cannot be imported"),
        (["init=none.safetensors"], "No LoRA at"),
        (["prompts=nowhere"], "or one of the sets hand, face, color, count, comp, location"),
    ],
)
def test_bad_input_ends_in_a_sentence(words: list[str], sentence: str, tmp_path: Path, capsys) -> None:
    assert main(["texforce", "train", *QUICK, f"output={tmp_path / 'run'}", *words]) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "run" / "checkpoints").exists()


def test_renegs_training_points_to_it(tmp_path: Path, capsys) -> None:
    assert main(["train", "reward=jpeg_compressibility", f"output={tmp_path / 'run'}"]) == 1
    assert "`reneg texforce train` learns from any reward" in capsys.readouterr().err


def test_files_are_converted_and_fused(tmp_path: Path, capsys) -> None:
    torch.manual_seed(0)
    loras = [TextLora({LAYER: (torch.randn(2, 8), torch.randn(8, 2))}) for _ in range(2)]
    paths = [lora.save(tmp_path / f"{i}.safetensors") for i, lora in enumerate(loras)]
    target = tmp_path / "kohya.safetensors"
    assert main(["texforce", "convert", str(paths[0]), str(target), "--layout", "kohya"]) == 0
    assert "1 layers of text_encoder, rank 2" in capsys.readouterr().out
    assert main(["texforce", "convert", str(paths[0]), str(target)]) == 1
    assert "exists already. Try another name, or --overwrite" in capsys.readouterr().err
    both = tmp_path / "both.safetensors"
    assert main(["texforce", "fuse", str(target), "0.5", str(paths[1]), "-1", "--output", str(both)]) == 0
    expected = 0.5 * loras[0].deltas()[LAYER] - loras[1].deltas()[LAYER]
    assert torch.allclose(load_text_lora(both).deltas()[LAYER], expected, atol=1e-5)
    assert main(["texforce", "fuse", str(target), "--output", str(tmp_path / "x.safetensors")]) == 1
    assert "expected a weight behind every file" in capsys.readouterr().err
    assert main(["texforce", "fuse", str(target), "much", "--output", str(tmp_path / "x.safetensors")]) == 1
    assert "weight: " in capsys.readouterr().err


def test_the_recipes_can_be_read() -> None:
    names = recipe_names(TexForceRunConfig)
    assert {"single-prompt", "many-prompts"} <= {*names} and not {*names} & {*recipe_names()}
    for name in names:
        load_run_config(name, ["reward=tiny"], TexForceRunConfig)
    paper = load_run_config("single-prompt", [], TexForceRunConfig)
    assert len(paper.parts) == 64 and len(paper.parts[0]) == 8 and paper.clip_range == 1e-4
    assert paper.train_config() == TexForceRunConfig().train_config()


def test_a_negative_prompt_stays_text_beside_a_folder_of_its_name(tmp_path: Path, monkeypatch) -> None:
    for name in ("ugly", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    config = load_run_config("", ["negative=ugly", "init=adapter"], TexForceRunConfig).anchored()
    assert (config.negative, config.init) == ("ugly", str(tmp_path / "adapter"))
    config = load_run_config("", ["negative=bad.safetensors", "loras=adapter*0.5 + none"], TexForceRunConfig).anchored()
    assert (config.negative, config.loras) == (str(tmp_path / "bad.safetensors"), f"{tmp_path / 'adapter'}*0.5 + none")


def test_prompts_come_from_sets_and_from_lists_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_prompts("hand", "train", "sd15") == ["A photo of a hand"] and set(PROMPT_SETS) == {
        "hand", "face", "color", "count", "comp", "location",
    }  # fmt: skip
    (tmp_path / "list.json").write_text(json.dumps(["a", {"prompt": " b "}, {"text": "c"}, {"id": 1, "prompt": ""}]))
    assert read_prompts(str(tmp_path / "list.json"), "train", "sd15") == ["a", "b", "c"]
    (tmp_path / "bad.json").write_text('[{"id": 3}]')
    with pytest.raises(ValueError, match=r"Got None as prompt 1 of .*bad\.json, expected text"):
        read_prompts(str(tmp_path / "bad.json"), "train", "sd15")
    (tmp_path / "hand").write_text("my own\n")
    monkeypatch.chdir(tmp_path)
    assert read_prompts("hand", "train", "sd15") == ["my own"]


def test_the_published_lists_can_be_read(shared_data: Path) -> None:
    counts = {p.name: len(read_prompts(str(p), "train", "sd15")) for p in sorted((shared_data / "prompts").iterdir())}
    assert counts["drawbench.txt"] >= 199 and counts["imagereward_benchmark.json"] == 100 and min(counts.values()) > 0


def test_the_demonstration_leaves_a_report(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called again, it goes on where it was; its recipe is the tiny world's direct one."""
    for name, value in (("TEST_PROMPTS", 2), ("NOISES", 1), ("PICTURES", 1), ("LOSSES", 1)):
        monkeypatch.setattr(f"reneg_core.commands.demo.{name}", value)
    words = ["texforce", "demo", *QUICK, "steps=1", "--output", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    for name in ("report.html", "grid.png", "curve.png", "comparison.png", "report.json", "text-lora.safetensors"):
        assert f"{tmp_path / name}" in out and (tmp_path / name).stat().st_size > 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [mode for mode in ("none", "text", "texforce") if mode in report] == ["none", "text", "texforce"]
    assert report["run"]["config"]["route"] == "direct" and "texforce demo" in report["run"]["command"]
    assert main(words) == 0
