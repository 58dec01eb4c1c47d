"""`reneg score` and `reneg rewards`: files, prompts, metadata, output."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reneg_core.cli import main
from reneg_core.commands.score import as_csv
from reneg_core.picture_files import PictureError, read_unit
from reneg_core.picture_metadata import (
    prompt_of_graph,
    prompt_of_parameters,
    read_prompt,
    read_scores,
    write_scores,
)
from reneg_core.rewards import load_reward
from reneg_core.score import ScoredImage, find_images, load_rewards, prompts_for, score_files

GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {"model": ["4", 0], "positive": ["10", 0], "negative": ["7", 0], "latent_image": ["5", 0], "seed": 1},
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 8}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "a red fox"}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "ugly"}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {"class_type": "ControlNetApply", "inputs": {"conditioning": ["6", 0], "image": ["11", 0]}},
    "11": {"class_type": "LoadImage", "inputs": {"image": "pose.png"}},
}
PARAMETERS = (
    "a red fox, <lora:detail:0.8> (sharp:1.2)\nsecond line\nNegative prompt: ugly\n"
    "Steps: 20, Sampler: Euler a, CFG scale: 7"
)


def save(path, value=128, text=None, size=(12, 10)):
    info = PngInfo()
    for key, entry in (text or {}).items():
        info.add_text(key, entry)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path, pnginfo=info)
    return path


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "dark.png", 20)
    save(tmp_path / "bright.png", 220, size=(9, 9))
    (tmp_path / "inner").mkdir()
    save(tmp_path / "inner" / "middle.png", 120)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_prompt_of_a_comfyui_graph_is_the_positive_one():
    assert prompt_of_graph(GRAPH) == "a red fox"


def test_prompt_is_followed_through_links_and_guiders():
    graph = dict(GRAPH)
    graph["6"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": ["20", 0]}}
    graph["20"] = {"class_type": "PrimitiveString", "inputs": {"value": "typed elsewhere"}}
    assert prompt_of_graph(graph) == "typed elsewhere"
    graph["3"] = {"class_type": "SamplerCustomAdvanced", "inputs": {"guider": ["21", 0], "latent_image": ["5", 0]}}
    graph["21"] = {"class_type": "BasicGuider", "inputs": {"model": ["4", 0], "conditioning": ["6", 0]}}
    assert prompt_of_graph(graph) == "typed elsewhere"
    assert prompt_of_graph({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}) is None


def test_a_graph_with_a_cycle_ends():
    assert (
        prompt_of_graph(
            {
                "1": {"inputs": {"a": ["2", 0]}},
                "2": {"inputs": {"a": ["1", 0]}},
                "3": {"inputs": {"positive": ["1", 0]}},
            }
        )
        is None
    )


def test_prompt_of_a1111_parameters():
    assert prompt_of_parameters(PARAMETERS) == "a red fox,  (sharp:1.2)\nsecond line"
    assert prompt_of_parameters("a fox\nSteps: 20, Sampler: Euler") == "a fox"
    assert prompt_of_parameters("Steps: 20, Sampler: Euler") == ""
    assert prompt_of_parameters("Negative prompt: ugly\nSteps: 2") == ""


def test_read_prompt_from_every_kind_of_metadata(tmp_path):
    assert read_prompt(save(tmp_path / "c.png", text={"prompt": json.dumps(GRAPH)})) == "a red fox"
    assert read_prompt(save(tmp_path / "a.png", text={"parameters": "a fox\nSteps: 1"})) == "a fox"
    assert read_prompt(save(tmp_path / "r.png", text={"reneg": json.dumps({"prompt": "ours"})})) == "ours"
    assert read_prompt(save(tmp_path / "n.png")) is None
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a café\nSteps: 1".encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / "j.jpg", exif=exif)
    assert read_prompt(tmp_path / "j.jpg") == "a café"


def test_scores_are_written_into_the_png_and_nothing_else_changes(tmp_path):
    path = save(tmp_path / "p.png", text={"prompt": json.dumps(GRAPH), "workflow": "{}"})
    pixels, length = np.array(Image.open(path)), path.stat().st_size
    write_scores(path, {"image_reward": 1.25})
    write_scores(path, {"image_reward": 0.5})
    assert read_scores(path) == {"image_reward": 0.5} and read_prompt(path) == "a red fox"
    with Image.open(path) as picture:
        picture.verify()
        assert set(picture.info) == {"prompt", "workflow", "reneg_scores"}
    assert np.array_equal(np.array(Image.open(path)), pixels)
    assert path.stat().st_size - length == 12 + len("reneg_scores") + 1 + len('{"image_reward": 0.5}')
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="incomplete"):
        write_scores(path, {})


def test_find_images(folder):
    assert [p.name for p in find_images([folder])] == ["bright.png", "dark.png", "middle.png"]
    assert find_images([folder / "dark.png"]) == [folder / "dark.png"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_images([folder / "none"])
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        find_images([folder / "empty"])


def test_prompts_from_option_lines_and_json(folder, tmp_path):
    paths = find_images([folder])
    assert prompts_for(paths, prompt="x") == ["x"] * 3
    lines = tmp_path / "p.txt"
    lines.write_text("a\nb\nc\n")
    assert prompts_for(paths, prompt_file=lines) == ["a", "b", "c"]
    lines.write_text("a\nb\n")
    with pytest.raises(ValueError, match="has 2 prompts for 3 pictures"):
        prompts_for(paths, prompt_file=lines)
    mapping = tmp_path / "p.json"
    mapping.write_text(json.dumps({"dark.png": "night", str(paths[0]): "day"}))
    assert prompts_for(paths, prompt_file=mapping) == ["day", "night", None]


def test_scores_of_files_equal_scores_of_tensors_whatever_the_batch(small_clip, folder):
    reward = load_reward("pickscore", weights=small_clip.folder)
    paths = find_images([folder])
    prompts = ["a fox", "snow", "a boat"]
    expected = [reward.score(read_unit(path), [prompt]).item() for path, prompt in zip(paths, prompts, strict=True)]
    for size in (1, 16):
        results = score_files(reward, paths, prompts, batch_size=size)
        assert [r.score for r in results] == pytest.approx(expected, abs=1e-5)
        assert [r.image for r in results] == paths and [r.prompt for r in results] == prompts


def test_pictures_without_prompt_are_named_before_anything_is_scored(small_clip, folder):
    reward = load_reward("pickscore", weights=small_clip.folder)
    with pytest.raises(ValueError, match=r"2 of 3 pictures carry no prompt.*dark\.png"):
        score_files(reward, find_images([folder]), ["x", None, None])
    assert len(score_files(load_reward("brightness"), find_images([folder]), [None] * 3)) == 3


def test_several_rewards_stand_side_by_side_a_mix_has_a_total(folder):
    paths = find_images([folder / "dark.png"])
    both = load_rewards(["brightness", "sharpness"])
    result = score_files(both, paths, [None], side_by_side=True)[0]
    assert result.scores == pytest.approx({"brightness": 20 / 255, "sharpness": 0.0}, abs=1e-6)
    assert result.score == result.scores["brightness"]
    mix = load_rewards(["brightness*2 + sharpness"])
    result = score_files(mix, paths, [None])[0]
    assert result.score == pytest.approx(2 * (20 / 255 - 0.5) * 12**0.5, abs=1e-5)
    assert list(result.scores) == ["brightness*2 + sharpness*1", "brightness", "sharpness"]


def run(capsys, *arguments):
    assert main(["score", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_command_json(capsys, small_blip, tmp_path):
    path = save(tmp_path / "p.png", text={"parameters": "a red fox in the snow\nSteps: 1"}, size=(40, 50))
    rows = json.loads(run(capsys, "--reward", "image_reward", "--weights", small_blip.folder, "--format", "json", path))
    expected = load_reward("image_reward", weights=small_blip.folder).score(read_unit(path), ["a red fox in the snow"])
    assert rows == [
        {
            "image": str(path),
            "prompt": "a red fox in the snow",
            "score": pytest.approx(expected.item()),
            "scores": {"image_reward": pytest.approx(expected.item())},
            "truncated": False,
        }
    ]


def test_command_csv_sort_and_top(capsys, folder):
    out = run(
        capsys,
        "--reward",
        "sharpness",
        "--reward",
        "brightness",
        "--format",
        "csv",
        "--sort",
        "brightness",
        "--top",
        2,
        folder,
    )
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["image"].rsplit("/", 1)[-1] for row in rows] == ["bright.png", "middle.png"]
    assert float(rows[0]["brightness"]) == pytest.approx(220 / 255)


def test_csv_holds_no_formulas(tmp_path):
    """What a spreadsheet would run or recalculate gets an apostrophe; numbers and other texts stay as they are."""
    names = ["=cmd.png", "+1.png", "-1.png", "@x.png", "plain=.png"]
    prompts = ["=1+1", "\ttab", "a red fox", "", "-"]
    results = [
        ScoredImage(Path(name), prompt, -0.5, {"=reward": -0.5}, False)
        for name, prompt in zip(names, prompts, strict=True)
    ]
    header, *rows = csv.reader(io.StringIO(as_csv(results)))
    assert header == ["image", "'=reward", "truncated", "prompt"]
    assert [row[0] for row in rows] == ["'=cmd.png", "'+1.png", "'-1.png", "'@x.png", "plain=.png"]
    assert [row[3] for row in rows] == ["'=1+1", "'\ttab", "a red fox", "", "'-"]
    assert {row[1] for row in rows} == {"-0.5"}


def test_command_sorts_by_number_not_by_text(capsys, tmp_path):
    user = tmp_path / "big.py"
    user.write_text(
        "from reneg_core.rewards import Reward\nclass Big(Reward):\n    name = 'big'\n"
        "    needs_prompt = False\n    def _score(self, images, prompts):\n"
        "        return images.mean((1, 2, 3)) * 25.5 * 4\n"
    )
    for value, name in ((22, "a"), (25, "b"), (230, "c")):  # 8.8, 10, 92
        save(tmp_path / f"{name}.png", value)
    out = run(capsys, "--reward", user, "--sort", "--format", "csv", tmp_path)
    assert [row["image"][-5] for row in csv.DictReader(io.StringIO(out))] == ["c", "b", "a"]


def test_command_table_and_written_metadata(capsys, folder):
    out = run(capsys, "--reward", "brightness", "--write-metadata", folder / "dark.png")
    assert "0.0784" in out and "brightness" in out
    assert read_scores(folder / "dark.png") == pytest.approx({"brightness": 20 / 255})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reward", "hpsv2"], "name the version: hpsv2.0, hpsv2.1"),
        (["--reward", "image_reward", "--weights", "/nowhere"], "does not exist"),
        (["--reward", "brightness", "--sort", "x"], "--sort: got 'x', expected one of brightness"),
    ],
)
def test_command_errors_are_one_sentence(capsys, folder, arguments, message):
    assert main(["score", *arguments, str(folder / "dark.png")]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_write_metadata_refuses_other_formats_before_scoring(capsys, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    assert main(["score", "--reward", "brightness", "--write-metadata", str(tmp_path / "a.jpg")]) == 1
    assert "is not a PNG" in capsys.readouterr().err


def test_rewards_command_says_what_is_missing_and_where(capsys, small_blip, monkeypatch):
    monkeypatch.delenv("RENEG_REWARD_MODELS", raising=False)
    assert main(["rewards", "--format", "json", "--search-dir", str(small_blip.folder)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["image_reward"]["ready"] and not rows["hpsv2.1"]["ready"] and rows["brightness"]["ready"]
    assert rows["image_reward"]["found"]["ImageReward.pt"].endswith("ImageReward.safetensors")
    assert rows["hpsv2.1"]["missing"][0]["page"] == "https://huggingface.co/xswu/HPSv2"
    assert main(["rewards"]) == 0
    out = capsys.readouterr().out
    assert "missing HPSv2/HPS_v2.1_compressed.pt: https://huggingface.co/xswu/HPSv2 (about 1.97 GB)" in out


def test_a_picture_that_is_none_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no")
    with pytest.raises(PictureError, match=r"a\.png is not a picture"):
        read_unit(tmp_path / "a.png")
    transparent = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    transparent.save(tmp_path / "t.png")
    assert torch.equal(read_unit(tmp_path / "t.png")[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
