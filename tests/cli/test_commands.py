"""The command line on the tiny world and on small random pipelines, in this process."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from builders import pipeline, pipeline_folder
from PIL import Image

from reneg_core import Conditioning, NegativeEmbedding, load_embedding
from reneg_core.backends import load_model, wrap
from reneg_core.cli import COMMANDS, build_parser, main, parse
from reneg_core.commands.common import default_sampling, sampling_of
from reneg_core.embedding import Provenance
from reneg_core.evaluation import to_image
from reneg_core.guidance import Guidance
from reneg_core.sampling import Sampling, sample

QUICK = [
    "steps=2", "batch_size=2", "micro_batch=2", "sampling_steps=2", "window=[0,2]", "validation_pairs=2",
    "validate_every=1", "checkpoint_every=1", "guidance_scale=4",
]  # fmt: skip


def test_every_command_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0
        assert len(capsys.readouterr().out) > 200
    assert build_parser().prog == "reneg"


def test_train_writes_everything_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", *QUICK, f"output={run}"]) == 0
    assert "validation reward" in capsys.readouterr().out
    saved = load_embedding(run / "negative.safetensors")
    assert saved.provenance.base_model == "tiny" and saved.sampling == Sampling(steps=2).at_scale(4.0)
    assert yaml.safe_load((run / "config.yaml").read_text())["batch_size"] == 2
    assert sorted(p.name for p in (run / "previews").iterdir()) == [f"step-{i:06d}.png" for i in (0, 1, 2)]
    assert main(["train", *QUICK, f"output={run}"]) == 1
    assert "holds a run at step 2 already" in capsys.readouterr().err
    assert main(["train", "--config", str(run / "config.yaml"), "--resume"]) == 0


def test_dry_run_checks_and_estimates_without_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", *QUICK, f"output={run}", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "MiB activations a sample" in printed and "s a step" in printed and "output:" in printed
    assert not run.exists()


def test_dry_run_counts_activations_and_not_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tiny UNet keeps 1.4 MiB a sample and the decoder under 4; with the weights' views it would be 9."""
    found = {}
    for through in (1, 3):
        assert main(["train", f"through={through}", f"output={tmp_path}/run", "--dry-run"]) == 0
        found[through] = float(re.search(r"([\d,]+) MiB activations a sample", capsys.readouterr().out)[1])
    assert 3 <= found[1] <= 7
    assert found[1] + 3 <= found[3] <= 15


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert main(["train", *QUICK, f"output={tmp_path}/run", "tensorboard=true"]) == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "learning_rat=1"], "learning_rat: unknown setting, did you mean learning_rate"),
        (["train", "guidance_scale=1"], "at 1 the negative has no effect"),
        (["train", "--config", "nonsense"], "No configuration at nonsense. Expected a YAML file or one of the recipes"),
        (["train", "model=/no/such/folder", "prompts=p.txt"], "No prompt file at p.txt"),
        (["infer", "--prompt", "a"], "--prompt-type neg_emb needs --neg-embedding FILE"),
        (["inspect", "absent.safetensors"], "No embedding file at absent.safetensors"),
        (["evaluate", "--modes", "adapted"], "The mode adapted needs --embedding FILE"),
        (["infer", "--model", "x.ckpt.safetensors", "--prompt", "a", "--prompt-type", "only_pos"], "No model at"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["neg_emb", "neg_prompt", "only_pos"])
def test_infer_modes(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pipeline_folder(tmp_path / "model")
    torch.manual_seed(0)
    path = NegativeEmbedding(torch.randn(1, 16, 32)).save(tmp_path / "e.safetensors")
    out = tmp_path / "out"
    options = ["--model", str(folder), "--prompt-type", kind, "--steps", "2", "--output", str(out), "--prompt", "a fox"]
    assert main(["infer", *options, "--neg-embedding", str(path), "--images-per-prompt", "2"]) == 0
    files = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in files] == [f"0000{i}-{kind}-seed{42 + i}.png" for i in (0, 1)]
    with Image.open(files[1]) as picture:
        assert picture.size == (16, 16)
        assert json.loads(picture.text["reneg"])["seed"] == 43


def test_infer_refuses_another_models_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pipeline_folder(tmp_path / "model")
    path = NegativeEmbedding(torch.zeros(1, 77, 1024)).save(tmp_path / "sd2.safetensors")
    assert main(["infer", "--model", str(folder), "--neg-embedding", str(path), "--prompt", "a"]) == 1
    assert "Got an embedding for the text encoder openclip-h (Stable Diffusion 2.x" in capsys.readouterr().err


def test_published_embedding_on_a_model_with_its_text_encoder(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pipeline_folder(tmp_path / "sd15", width=768, tokens=77)
    options = ["infer", "--model", str(folder), "--prompt", "a fox", "--steps", "2", "--output", str(tmp_path / "out")]
    published = [str(shared_data / "reneg" / f"sd{version}_reneg_emb.bin") for version in ("1.5", "2.1")]
    assert main(["inspect", published[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"].startswith("clip-l")
    assert main([*options, "--neg-embedding", published[0]]) == 0
    assert main([*options, "--prompt-type", "only_pos"]) == 0
    learned, empty = (Image.open(tmp_path / "out" / f"00000-{kind}-seed42.png") for kind in ("neg_emb", "only_pos"))
    assert learned.tobytes() != empty.tobytes()
    assert main([*options, "--neg-embedding", published[1]]) == 1
    message = capsys.readouterr().err
    assert "openclip-h (Stable Diffusion 2.x" in message and "clip-l (Stable Diffusion 1.x" in message


def test_inspect_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(torch.randn(1, 120, 4096), tmp_path / "plain.bin")
    target = tmp_path / "ltx.safetensors"
    assert main(["convert", str(tmp_path / "plain.bin"), str(target), "--layout", "ltx"]) == 0
    assert main(["convert", str(tmp_path / "plain.bin"), str(target)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["inspect", str(target), "--compare", str(tmp_path / "plain.bin"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] == 120 and facts["family"].startswith("t5-xxl")
    assert facts[f"against {tmp_path / 'plain.bin'}"]["cosine"] == pytest.approx(1, abs=1e-6)


def test_adapt_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from reneg_core.backends import load_model

    model = load_model("tiny", device="cpu")
    path = NegativeEmbedding(model.encode([""]).tokens, model.family).save(tmp_path / "start.safetensors")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle on a blue background\n\na green ring on a black background\n")
    quick = ["--set", "steps=1", "--set", "sampling.steps=2", "--set", "window=[0,2]", "--set", "points=1"]
    out = tmp_path / "adapted"
    options = ["--embedding", str(path), "--prompts", str(prompts)]
    assert main(["adapt", *options, "--output", str(out), *quick]) == 0
    rows = json.loads((out / "adapted.json").read_text())
    assert len(rows) == 2 and all(row["reward"] >= row["start"] for row in rows)
    assert load_embedding(out / "00001.safetensors").width == model.width
    report = tmp_path / "report"
    assert main(["evaluate", *options, "--modes", "none", "text", "embedding", "--steps", "2", "--seeds", "2",
                 "--output", str(report)]) == 0  # fmt: skip
    found = json.loads((report / "report.json").read_text())
    assert found["pairs"] == 4 and found["none"]["reward_mean"] == pytest.approx(found["embedding"]["reward_mean"])
    assert 0 <= found["none"]["independent_mean"] <= 1


@pytest.fixture
def hpsv2_prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmark"
    folder.mkdir()
    for style, colour in (("anime", "red"), ("photo", "green")):
        shapes = ("circle", "square", "ring")
        listed = [f"a {colour} {shape} on a blue background" for shape in shapes]
        (folder / f"{style}.json").write_text(json.dumps(listed))
    return folder


def test_evaluate_by_the_hpsv2_protocol(
    tmp_path: Path, hpsv2_prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "--protocol", "hpsv2", "--prompts", str(hpsv2_prompts), "--limit", "2", "--steps", "2",
                 "--output", str(out)]) == 0  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert report["pairs"] == 4 and report["prompts"][2] == "a green circle on a blue background"
    rows = report["scores"]["reward"]["none"]
    table = json.loads((out / "protocol.json").read_text())["tables"]["reward"]["none"]
    assert [row["style"] for row in table["rows"]] == ["anime", "photo"]
    assert table["rows"][1]["mean"] == pytest.approx(50 * (rows[2][0] + rows[3][0]))
    assert table["average"] == pytest.approx(25 * sum(row[0] for row in rows))
    assert "anime" in capsys.readouterr().out


def test_protocols_score_pictures_made_elsewhere(tmp_path: Path, hpsv2_prompts: Path) -> None:
    for style, grey in (("anime", 51), ("photo", 102)):
        (tmp_path / "pictures" / style).mkdir(parents=True)
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / "pictures" / style / "00001.png")
    common = ["evaluate", "--reward", "brightness", "--output", str(tmp_path / "out")]
    pictures = ["--from-pictures", str(tmp_path / "pictures")]
    assert main([*common, "--protocol", "hpsv2", "--prompts", str(hpsv2_prompts), *pictures]) == 0
    table = json.loads((tmp_path / "out" / "protocol.json").read_text())["tables"]["brightness"]["pictures"]
    assert [row["mean"] for row in table["rows"]] == pytest.approx([20.0, 40.0])
    assert table["average"] == pytest.approx(30.0)


def test_a_limit_counts_prompts_and_not_pictures(
    tmp_path: Path, hpsv2_prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for number, grey in ((0, 51), (2, 102)):
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / "pictures" / f"{number}.png")
    options = ["evaluate", "--protocol", "prompt-set", "--prompts", str(hpsv2_prompts / "anime.json")]
    options += ["--from-pictures", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")]
    assert main([*options, "--reward", "brightness"]) == 0
    row = json.loads((tmp_path / "out" / "protocol.json").read_text())["tables"]["brightness"]["pictures"]
    assert row["count"] == 2 and row["mean"] == pytest.approx(0.3)
    (tmp_path / "pictures" / "0.png").unlink()
    assert main([*options, "--limit", "2", "--reward", "image_reward"]) == 1  # before any weights are looked for
    assert "no picture of the first 2 prompts" in capsys.readouterr().err


def test_evaluate_by_the_prompt_set_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "parti.tsv"
    prompts.write_text("Prompt\tCategory\na red circle on a blue background\tx\na green ring on white\ty\n")
    out = tmp_path / "out"
    assert main(["evaluate", "--protocol", "prompt-set", "--prompts", str(prompts), "--steps", "2", "--modes", "none",
                 "--output", str(out)]) == 0  # fmt: skip
    row = json.loads((out / "protocol.json").read_text())["tables"]["independent"]["none"]
    scores = json.loads((out / "report.json").read_text())["scores"]["independent"]["none"]
    assert row["count"] == 2 and row["mean"] == pytest.approx((scores[0][0] + scores[1][0]) / 2)
    assert "standard error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "3"], "give --protocol too"),
        (["--protocol", "hpsv2"], "--protocol hpsv2 needs --prompts"),
        (["--protocol", "hpsv2", "--prompts", "nowhere"], "a JSON list of prompts per style"),
        (["--measure", "tiny"], "expected different ones in --reward and --measure"),
    ],
)
def test_evaluate_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_training_takes_the_sampling_by_nested_and_by_older_names(tmp_path: Path) -> None:
    """The run's own config.yaml is nested and reads back; a jittered run records the sets that it drew from."""
    run = tmp_path / "run"
    nested = ["sampling.spacing=trailing", "sampling.solver=dpmpp_2m", "jitter.steps=[2, 3]"]
    assert main(["train", *QUICK, *nested, f"output={run}"]) == 0
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert values["sampling"]["guidance_scale"] == 4 and values["jitter"]["steps"] == [2, 3]
    saved = load_embedding(run / "negative.safetensors")
    assert saved.sampling == Sampling("dpmpp_2m", 2, "trailing").at_scale(4.0)
    assert saved.provenance.notes["training"]["jitter"]["steps"] == [2, 3]


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """A random pipeline's embedding that says that it was learned for five Karras steps."""
    pipeline_folder(tmp_path / "model")
    torch.manual_seed(0)
    provenance = Provenance(sampling=Sampling("dpmpp_2m", 5, "karras").at_scale(4.0).to_mapping())
    return NegativeEmbedding(torch.randn(1, 16, 32), provenance=provenance).save(tmp_path / "learned.safetensors")


def infer(folder: Path, *options: str) -> tuple[dict, bytes]:
    """The settings that the picture's file names, and its pixels."""
    out = folder / "out"
    assert main(["infer", "--model", str(folder / "model"), "--prompt", "a fox", "--output", str(out), *options]) == 0
    [path] = out.iterdir()
    with Image.open(path) as picture:
        found = json.loads(picture.text["reneg"]), picture.tobytes()
    path.unlink()
    return found


def drawn(folder: Path, negative: Conditioning, sampling: Sampling) -> bytes:
    """The picture of the core's own sampler."""
    model = load_model(folder / "model", device="cpu")
    latents = sample(model, model.encode(["a fox"]), negative, model.noise([42]), sampling)
    return to_image(model.decode(latents)[0]).tobytes()


def test_infer_samples_as_the_embedding_was_learned(tmp_path: Path, learned: Path, capsys) -> None:
    embedding = load_embedding(learned)
    settings, pixels = infer(tmp_path, "--neg-embedding", str(learned))
    assert Sampling.from_mapping({k: settings[k] for k in embedding.provenance.sampling}) == embedding.sampling
    assert pixels == drawn(tmp_path, embedding.conditioning(), embedding.sampling)
    said = capsys.readouterr().err
    assert "sampling: 5 DPM-Solver++(2M) steps, karras spacing, guidance scale 4 (as the embedding was learned)" in said
    assert "note:" not in said


def test_options_win_over_what_the_embedding_was_learned_for(tmp_path: Path, learned: Path, capsys) -> None:
    options = ["--spacing", "trailing", "--guidance-end", "0.8", "--guidance-rescale", "0.5", "--guidance-start", "0.1"]
    settings, pixels = infer(tmp_path, "--neg-embedding", str(learned), *options)
    expected = Sampling("dpmpp_2m", 5, "trailing", Guidance(4.0, 0.1, 0.8, 0.5))
    assert pixels == drawn(tmp_path, load_embedding(learned).conditioning(), expected)
    assert settings["spacing"] == "trailing" and settings["guidance_end"] == 0.8
    said = capsys.readouterr().err
    assert "(as asked for)" in said and said.count("note: the embedding was learned for 5 DPM-Solver++(2M) steps") == 1


def test_adapt_samples_as_the_embedding_was_learned(tmp_path: Path, learned: Path) -> None:
    options = ["--embedding", str(learned), "--model", str(tmp_path / "model"), "--prompt", "a fox"]
    options += ["--reward", "brightness", "--output", str(tmp_path / "adapted"), "--set", "steps=1"]
    for more, expected in (([], {}), (["--set", "guidance_scale=2", "--set", "sampling.steps=4"], {"steps": 4})):
        assert main(["adapt", *options, *more]) == 0
        found = load_embedding(tmp_path / "adapted" / "00000.safetensors").sampling
        assert found == load_embedding(learned).sampling.at_scale(2.0 if more else 4.0).changed(**expected)


@pytest.mark.parametrize(("options", "where"), [([], "(the default; the"), (["--solver", "euler"], "(as asked for)")])
def test_an_embedding_that_does_not_say_gets_the_default(
    tmp_path: Path, learned: Path, options: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    path = NegativeEmbedding(torch.randn(1, 16, 32)).save(tmp_path / "plain.safetensors")
    _, pixels = infer(tmp_path, "--neg-embedding", str(path), *options)
    assert pixels == drawn(tmp_path, load_embedding(path).conditioning(), Sampling("ddim", 30, "model"))
    said = capsys.readouterr().err
    assert "steps, model spacing, guidance scale 7.5" in said and where in said


def test_the_default_of_the_tiny_world_is_its_own_scale() -> None:
    args = build_parser().parse_args(["infer"])
    assert sampling_of(args, default_sampling("tiny")) == Sampling("ddim").at_scale(3.0)
    assert sampling_of(args, default_sampling("folder")) == Sampling("ddim").at_scale(7.5)


def test_infer_keeps_the_mask_of_an_embedding_and_refuses_a_pooled_vector(
    tmp_path: Path, learned: Path, capsys
) -> None:
    mask = torch.ones(1, 16)
    mask[:, 3:] = 0
    torch.manual_seed(0)
    masked = NegativeEmbedding(torch.randn(1, 16, 32), mask=mask)
    path = masked.save(tmp_path / "masked.safetensors")
    _, pixels = infer(tmp_path, "--neg-embedding", str(path), "--steps", "4")
    assert pixels == drawn(tmp_path, masked.conditioning(), Sampling(steps=4))
    assert pixels != drawn(tmp_path, Conditioning(masked.tokens), Sampling(steps=4))
    pooled = NegativeEmbedding(torch.randn(1, 16, 32), pooled=torch.ones(1, 4)).save(tmp_path / "pooled.safetensors")
    assert main(["infer", "--model", str(tmp_path / "model"), "--prompt", "a", "--neg-embedding", str(pooled)]) == 1
    assert "Got a pooled vector for the negative and none for the positive" in capsys.readouterr().err


def test_infer_strength_goes_from_the_empty_prompt_through_the_embedding(tmp_path: Path, learned: Path) -> None:
    embedding, null = load_embedding(learned), load_model(tmp_path / "model", device="cpu").encode([""])
    for strength in (0.0, 0.5, 2.0):
        negative = Conditioning(null.tokens + strength * (embedding.tokens - null.tokens))
        _, pixels = infer(tmp_path, "--neg-embedding", str(learned), "--strength", str(strength))
        assert pixels == drawn(tmp_path, negative, embedding.sampling)


def test_inspect_says_what_an_embedding_was_learned_for(tmp_path: Path, learned: Path, capsys) -> None:
    assert main(["inspect", str(learned)]) == 0
    assert "learned for: 5 DPM-Solver++(2M) steps, karras spacing, guidance scale 4\n" in capsys.readouterr().out
    assert main(["inspect", str(learned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["sampling"]["spacing"] == "karras"
    notes = {"training": {"window": [0, 1], "jitter": {"solver": ["euler", "dpmpp_2m"]}}}
    plain = NegativeEmbedding(torch.ones(1, 2, 4), provenance=Provenance(notes=notes)).save(tmp_path / "p.safetensors")
    assert main(["inspect", str(plain)]) == 0
    printed = capsys.readouterr().out
    assert "learned for: unknown" in printed and "window: 0 1" in printed and "solver: euler dpmpp_2m" in printed


def test_settings_stand_before_between_and_after_the_options() -> None:
    args = parse(["train", "steps=3", "--dry-run", "batch_size=4", "--config", "fast", "seed=2"])
    assert args.overrides == ["steps=3", "batch_size=4", "seed=2"] and args.dry_run and args.config == "fast"


def test_an_error_at_the_start_of_a_training_stands_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *QUICK, f"output={run}"]) == 0
    capsys.readouterr()
    assert main(["train", *QUICK, f"output={run}"]) == 1
    said = capsys.readouterr().err
    assert "learning" not in said and said.splitlines()[-1].startswith("reneg train: ")


def test_a_preview_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "previews").write_text("a file where the folder should be")
    assert main(["train", *QUICK, f"output={run}"]) == 0
    assert capsys.readouterr().err.count("note: previews are left out: Could not write") == 1
    assert (run / "negative.safetensors").exists()


def test_infer_leaves_no_half_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline_folder(tmp_path / "model")
    out = tmp_path / "out"
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # the trial of the folder and the first picture pass
            raise OSError(28, "No space left on device")

    options = ["--model", str(tmp_path / "model"), "--prompt-type", "only_pos", "--steps", "1", "--output", str(out)]
    monkeypatch.setattr(os, "fsync", full)
    assert main(["infer", *options, "--prompt", "a", "--prompt", "b", "--batch-size", "1"]) == 1
    assert all(path.stat().st_size > 50 for path in out.iterdir()) and len(list(out.iterdir())) <= 1


def test_a_folder_that_cannot_be_written_is_said_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    options = ["--model", "/no/such/folder", "--prompt", "a", "--output", str(tmp_path / "file" / "out")]
    assert main(["infer", "--prompt-type", "only_pos", *options]) == 1
    assert "Could not write" in capsys.readouterr().err


def test_inspect_prints_no_escapes_and_json_that_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = {"a": "\x1b[2J", "b": "\ud800", "c": float("nan")}
    provenance = Provenance("\x9b1m", notes=notes)
    path = NegativeEmbedding(torch.ones(1, 2, 4), provenance=provenance).save(tmp_path / "e.safetensors")
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "\\u001b[2J" in printed and "\\ud800" in printed and "\\u009b1m" in printed and "\x1b" not in printed
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert found["provenance"]["notes"] == {**notes, "c": None}


def test_a_model_with_a_part_missing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = pipeline()
    parts.text_encoder = None
    with pytest.raises(ValueError, match="Got a StableDiffusionPipeline without text_encoder, expected"):
        wrap(parts, "x")
    folder = pipeline_folder(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": [None, None]}))
    options = ["--prompt-type", "only_pos", "--prompt", "a", "--output", str(tmp_path)]
    assert main(["infer", "--model", str(folder), *options]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("reneg infer: Could not load") and "text_encoder" in said


def test_strength_needs_an_embedding_as_long_as_the_empty_prompt(
    tmp_path: Path, learned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = NegativeEmbedding(torch.ones(1, 3, 32)).save(tmp_path / "short.safetensors")
    options = ["--model", str(tmp_path / "model"), "--prompt", "a", "--steps", "1", "--output", str(tmp_path / "out")]
    assert main(["infer", *options, "--neg-embedding", str(short), "--strength", "0.5"]) == 1
    assert "Got embeddings of 16 and 3 tokens, expected equal lengths" in capsys.readouterr().err
    assert main(["infer", *options, "--neg-embedding", str(short)]) == 0
