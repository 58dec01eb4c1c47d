"""``reneg evaluate``: which modes, noises and samplings its options mean, and what it refuses before the work."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
import torch

from reneg_core import NegativeEmbedding
from reneg_core.backends import load_model
from reneg_core.cli import main
from reneg_core.commands import evaluate as command
from reneg_core.embedding import Provenance
from reneg_core.evaluation import Evaluation, Pairs, Words
from reneg_core.sampling import Sampling


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two embeddings for the tiny world: the empty prompt, which says how it was learned, and "blurry"."""
    folder, model = tmp_path_factory.mktemp("embeddings"), load_model("tiny", device="cpu")
    learned = Sampling(steps=2, spacing="trailing").at_scale(4)
    rows = {"null": ("", learned.to_mapping()), "blur": ("blurry", {})}
    for name, (text, sampling) in rows.items():
        provenance = Provenance(base_model="tiny", sampling=sampling)
        tokens = model.encode([text]).tokens
        NegativeEmbedding(tokens, model.family, provenance=provenance).save(folder / f"{name}.safetensors")
    return [str(folder / f"{name}.safetensors") for name in rows]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle on a blue background\na green ring on a black background\n")
    return str(path)


def options(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["evaluate", *arguments])


def test_every_kind_of_mode_in_one_report(tmp_path: Path, files: list[str], prompts: str) -> None:
    out = tmp_path / "out"
    arguments = ["--best-text", "noisy faded", "2.5", "--best-text", "faded", "1", "--embedding", *files]
    arguments += ["--modes", "none", "text", "best_text", "embedding", "--scale", "none=2.5", "--losses", "2"]
    assert main(["evaluate", *arguments, "--prompts", prompts, "--noises", "2", "--output", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    names = ["none", "text", "best_text", "best_text_2", "embedding", "embedding_2"]
    assert [name for name in report if name in names] == names
    assert report["pairs"] == 4 and report["shared_noise"] is False
    assert len({seed for row in report["seeds"] for seed in row}) == 4
    assert report["best_text"]["label"] == "“noisy faded” × 2.5" and report["embedding_2"]["label"] == "learned (blur)"
    assert report["none"]["sampling"]["guidance_scale"] == 2.5 and report["text"]["sampling"]["guidance_scale"] == 4
    assert report["text"]["sampling"]["steps"] == 2, "as the first embedding was learned"
    assert set(report["none"]["independent_parts"]) >= {"colour", "shape"}
    assert report["none"]["independent_mean"] != report["embedding"]["independent_mean"]
    assert report["win_rate"]["independent"]["embedding>none"]["halves"].keys() == {"lower", "upper"}
    assert Evaluation.from_json(report).pairs.prompts[0] == "a red circle on a blue background"


def test_empty_prompt_and_its_embedding_score_the_same(tmp_path: Path, files: list[str], prompts: str) -> None:
    out = tmp_path / "out"
    arguments = ["--embedding", files[0], "--modes", "none", "embedding", "--seeds", "2", "--noise-seed", "5"]
    assert main(["evaluate", *arguments, "--prompts", prompts, "--output", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["seeds"] == [[5, 6]] * 2 and report["shared_noise"] is True
    assert report["none"]["reward_mean"] == pytest.approx(report["embedding"]["reward_mean"])


def test_adapted_starts_from_the_first_embedding(files: list[str]) -> None:
    args = options("--embedding", *files, "--modes", "none", "adapted", "--scale", "adapted=5", "--batch-size", "7")
    sampling = Sampling(steps=9).at_scale(3)
    embeddings = {"embedding": "first", "embedding_2": "second"}
    rivals = command.chosen_rivals(args, ["none", "adapted"], embeddings, sampling, {})
    assert rivals.adapted_from == "first" and rivals.embeddings == {} and rivals.names == ["none", "adapted"]
    assert rivals.adapted.sampling == sampling.at_scale(5) and rivals.adapted.micro_batch == 7
    assert rivals.adapted.points == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["none", "text"]),
        (["--best-text", "x", "2"], ["none", "text", "best_text"]),
        (["--embedding", "e"], ["none", "text", "embedding", "adapted"]),
        (["--embedding", "e", "--modes", "embedding", "none"], ["none", "embedding"]),
    ],
)
def test_modes_are_all_that_the_options_allow(arguments: list[str], expected: list[str]) -> None:
    args = options(*arguments)
    assert command.chosen_modes(args.modes, args.best_text, args.embedding) == expected


def test_texts_are_those_asked_for() -> None:
    args = options("--negative-prompt", "", "--best-text", "a", "2", "--best-text", "b", "-0.5")
    rivals = command.chosen_rivals(args, ["text", "best_text"], {}, Sampling(), {})
    assert rivals.texts == {"text": Words(""), "best_text": Words("a", 2.0), "best_text_2": Words("b", -0.5)}
    assert not rivals.none and command.chosen_rivals(args, ["none"], {}, Sampling(), {}).texts == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Pairs.own(["a", "b"], 4)),
        (["--noises", "3", "--noise-seed", "9"], Pairs.own(["a", "b"], 3, 9)),
        (["--protocol", "hpsv2"], Pairs.own(["a", "b"], 1)),
        (["--seeds", "3"], Pairs.shared(["a", "b"], [0, 1, 2])),
    ],
)
def test_noises(arguments: list[str], expected: Pairs) -> None:
    assert command.chosen_pairs(options(*arguments), ["a", "b"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "2", "--noises", "2"], "Got --noises and --seeds, expected one of them"),
        (["--modes", "best_text"], "The mode best_text needs --best-text TEXT STRENGTH"),
        (["--modes", "embedding"], "The mode embedding needs --embedding FILE"),
        (["--embedding", "a.safetensors", "a.safetensors"], "expected different files"),
        (["--best-text", "noisy", "much"], "--best-text: got 'much', expected a finite number"),
        (["--best-text", "noisy", "nan"], "--best-text: got 'nan', expected a finite number"),
        (["--scale", "3"], "Got --scale 3, expected MODE=SCALE"),
        (["--scale", "text=strong"], "--scale: got 'strong', expected a finite number"),
        (["--scale", "embedding=3"], "Got a sampling for the mode 'embedding', expected one of none, text"),
        (["--baseline", "best_text"], "Got the baseline 'best_text', expected one of the modes none, text"),
        (["--prompts", "nowhere.txt"], "No prompt file at nowhere.txt"),
    ],
)
def test_mistakes_are_found_before_the_work(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_model_of", lambda args: pytest.fail("loaded the model"))
    assert main(["evaluate", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_empty_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--seeds", ""])
    assert "argument --seeds: got '', expected a whole number from 1 to 10,000" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", [[], ["--protocol", "prompt-set", "--from-pictures"]])
def test_output_is_tried_out_before_the_work(
    tmp_path: Path, protocol: list[str], prompts: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A file where the folder should be: found before a model or a reward is loaded."""
    (tmp_path / "file").write_text("")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    command_line = ["evaluate", "--prompts", prompts, "--output", str(tmp_path / "file"), *protocol]
    if protocol:
        from PIL import Image

        Image.new("RGB", (8, 8)).save(pictures / "0.png")
        command_line.append(str(pictures))
    monkeypatch.setattr(command, "load_model_of", lambda args: pytest.fail("loaded the model"))
    monkeypatch.setattr(command, "load_reward", lambda *args, **options: pytest.fail("loaded a reward"))
    assert main(command_line) == 1
    assert "Try another folder" in capsys.readouterr().err


def test_another_models_embedding_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = NegativeEmbedding(torch.zeros(1, 77, 1024)).save(tmp_path / "sd2.safetensors")
    assert main(["evaluate", "--embedding", str(path), "--output", str(tmp_path / "out")]) == 1
    assert "Got an embedding for the text encoder openclip-h" in capsys.readouterr().err
