"""``reneg transfer``: the verdicts, and the comparison on the models that fit."""

import json
from pathlib import Path

import pytest
import torch
from pipelines import build

from reneg_core.cli import main
from reneg_core.embedding import NegativeEmbedding

OPTIONS = ["--reward", "sharpness", "--steps", "2", "--guidance-scale", "4", "--height", "16", "--width", "16"]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("sd15", "sdxl", "zeroscope"):
        build(name).save_pretrained(tmp_path / name)
    source = torch.Generator().manual_seed(0)
    NegativeEmbedding(torch.randn(1, 16, 32, generator=source), "width-32").save(tmp_path / "e.safetensors")
    (tmp_path / "prompts.txt").write_text("a red fox\nthe sea\n")
    return tmp_path


def test_every_model_gets_a_verdict(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(folders / name) for name in ("sd15", "sdxl", "nothing")]
    assert main(["transfer", "--from", str(folders / "e.safetensors"), "--to", *models]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{models[0]} (StableDiffusionPipeline, width-32): fits"
    assert lines[1] == f"{models[1]} (StableDiffusionXLPipeline, width-48): does not fit"
    assert lines[2] == "  convention: it is of width-32, the model reads width-48"
    assert f"{models[2]}: cannot be read" in lines and lines[-1].startswith("  No model at")
    assert main(["transfer", "--from", str(folders / "e.safetensors"), "--to", *models, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[name]["fits"] for name in models] == [True, False, None]


def test_models_that_fit_are_compared(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(folders / name) for name in ("sd15", "sdxl", "zeroscope")]
    out = folders / "out"
    command = ["transfer", "--from", str(folders / "e.safetensors"), "--to", *models, *OPTIONS]
    command += ["--prompts", str(folders / "prompts.txt"), "--output", str(out), "--device", "cpu"]
    assert main([*command, "--frames", "3"]) == 0
    found = json.loads((out / "transfer.json").read_text())
    assert [name for name, facts in found.items() if "scores" in facts] == [models[0], models[2]]
    for name in (models[0], models[2]):
        scores, [report] = found[name]["scores"], out.glob(f"*{Path(name).name}/report.json")
        written = json.loads(report.read_text())
        assert scores["embedding"] == written["embedding"]["reward_mean"] != written["none"]["reward_mean"]
        assert (report.parent / "grid.png").exists()
    [clip] = out.glob("*/comparison.gif")
    assert clip.parent.name.endswith("zeroscope")
    assert "reward sharpness" in capsys.readouterr().out
