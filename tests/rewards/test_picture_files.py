"""Picture files as they are found in the wild: read as they look, or refused by name, the others scored."""

import json
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from reneg_core.cli import main
from reneg_core.picture_files import PictureError, read_levels
from reneg_core.picture_metadata import read_prompt, read_scores, write_scores
from reneg_core.rewards import Reward, load_reward
from reneg_core.score import find_images, prompts_for, score_files

ORIENTATION = 0x0112


def save(path, value=128, size=(12, 10), **options):
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path, **options)
    return path


def png(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts)
    return b"\x89PNG\r\n\x1a\n" + body


BROKEN = {
    "no picture": (b"no", r"is not a picture that Pillow can read"),
    "cut": (png(8, 8, (b"IDAT", zlib.compress(bytes(200))[:6])), r"cannot be read as a picture \("),
    "cut in a length": (png(8, 8)[:35], r"cannot be read as a picture|is not a picture"),
    "bomb": (png(60_000, 60_000, (b"IDAT", b"")), r"more pixels than the 178,956,970 that are opened"),
    "text bomb": (png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))), r"cannot be read as a picture"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_by_name(tmp_path, kind):
    content, problem = BROKEN[kind]
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(PictureError, match=rf"x\.png .*({problem})|x\.png ({problem})"):
        read_levels(tmp_path / "x.png")


def test_an_odd_animation_is_its_first_frame_without_a_word(tmp_path):
    """Pillow warns of an animation of no frames; the suite turns warnings into errors."""
    rows = zlib.compress(b"".join(b"\0" + bytes(3 * 4) for _ in range(4)))
    (tmp_path / "x.png").write_bytes(png(4, 4, (b"acTL", struct.pack(">II", 0, 0)), (b"IDAT", rows)))
    assert torch.equal(read_levels(tmp_path / "x.png"), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_one_broken_picture_is_named_and_the_others_are_scored(tmp_path, capsys):
    for i in range(5):
        save(tmp_path / f"{i}.png", 40 * i)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:50])
    (tmp_path / "4.png").write_bytes(b"no")
    prompted = ["--prompt", "a fox"], []
    for options in prompted:
        assert main(["score", "--reward", "brightness", "--format", "json", *options, str(tmp_path)]) == 1
        out, err = capsys.readouterr()
        rows = json.loads(out)
        assert [row["image"][-5:] for row in rows] == ["0.png", "1.png", "3.png"]
        assert [row["score"] for row in rows] == pytest.approx([0, 40 / 255, 120 / 255], abs=1e-6)
        assert "2 of 5 pictures failed:" in err and "2.png cannot be read" in err and "4.png is not a picture" in err


def test_the_library_raises_without_a_place_for_failures(tmp_path):
    paths = [save(tmp_path / "a.png"), tmp_path / "b.png"]
    paths[1].write_bytes(b"no")
    with pytest.raises(PictureError, match=r"b\.png is not a picture"):
        score_files(load_reward("brightness"), paths, ["", ""])
    with pytest.raises(PictureError, match=r"b\.png is not a picture"):
        prompts_for(paths)


def test_only_the_picture_that_a_reward_refuses_fails(tmp_path):
    paths = [save(tmp_path / "wide.png", size=(4, 4)), save(tmp_path / "dot.png", size=(1, 1))]
    failed = {}
    results = score_files(load_reward("sharpness"), paths, [None, None], failed=failed)
    assert [r.image for r in results] == paths[:1]
    assert "dot.png cannot be scored (sharpness: got a 1x1 picture" in failed[paths[1]]


class Fussy(Reward):
    """Refuses a whole batch for one of its pictures, and gives NaN for another."""

    name, needs_prompt = "fussy", False

    def _score(self, images, prompts):
        mean = images.mean((1, 2, 3))
        if (mean > 0.9).any():
            raise ValueError("too bright")
        return torch.where(mean < 0.1, torch.nan, mean)


def test_a_refused_batch_is_scored_picture_by_picture(tmp_path):
    paths = [save(tmp_path / f"{value}.png", value) for value in (100, 250, 5, 150)]
    failed = {}
    results = score_files(Fussy(), paths, [None] * 4, failed=failed)
    assert [r.score for r in results] == pytest.approx([100 / 255, 150 / 255])
    assert "250.png cannot be scored (too bright)" in failed[paths[1]]
    assert "5.png cannot be scored (fussy gives nan" in failed[paths[2]]


def interleaved(folder, count=60):
    sizes = [(40, 40), (48, 40), (40, 56)]
    return [save(folder / f"{i:02d}.png", i * 4, sizes[i % 3]) for i in range(count)]


def test_pictures_of_interleaved_sizes_share_passes(tmp_path, small_clip, monkeypatch):
    """60 pictures of 3 sizes: 4 passes of what is of one size after preprocessing, results in the order given."""
    paths = interleaved(tmp_path)
    reward, passes = load_reward("pickscore", weights=small_clip.folder), []
    tower = reward.tower.forward
    monkeypatch.setattr(reward.tower, "forward", lambda pixels: (passes.append(len(pixels)), tower(pixels))[1])
    done = []
    results = score_files(reward, paths, ["a fox"] * 60, progress=done.append)
    assert passes == [16, 16, 16, 12] and sum(done) == 60
    alone = [reward.score(read_levels(path).float() / 255, ["a fox"]).item() for path in paths]
    assert [r.image for r in results] == paths and [r.score for r in results] == pytest.approx(alone, abs=1e-5)


def test_a_reward_that_looks_at_pictures_as_they_are_gets_one_size_at_once(tmp_path, monkeypatch):
    paths, shapes = interleaved(tmp_path), []

    class Watching(Reward):
        name, needs_prompt = "watching", False

        def _score(self, images, prompts):
            shapes.append(tuple(images.shape))
            return images.mean((1, 2, 3))

    results = score_files(Watching(), paths, [None] * 60)
    assert len(shapes) == 6 and {shape[0] for shape in shapes} == {16, 4}
    assert [r.score for r in results] == pytest.approx([i * 4 / 255 for i in range(60)], abs=1e-6)
    shapes.clear()
    monkeypatch.setattr("reneg_core.score.WAITING_BYTES", 40 * 40 * 3 * 4 * 4)
    assert len(score_files(Watching(), paths, [None] * 60)) == 60
    assert max(shape[0] for shape in shapes) < 4, "few pictures wait where they are large"


def test_a_pass_takes_what_the_memory_budget_allows(tmp_path, small_clip, monkeypatch):
    paths = interleaved(tmp_path, 6)
    reward, passes = load_reward("pickscore", weights=small_clip.folder), []
    reward.memory_budget = 2 * reward.bytes_per_image(0, 0, gradient=False)
    tower = reward.tower.forward
    monkeypatch.setattr(reward.tower, "forward", lambda pixels: (passes.append(len(pixels)), tower(pixels))[1])
    score_files(reward, paths, ["a fox"] * 6)
    assert passes == [2, 2, 2]


def test_a_mix_shares_what_its_parts_look_at(tmp_path, aesthetic_folder):
    paths = interleaved(tmp_path, 7)
    mix = load_reward("clip_score*1 + aesthetic*0.5 + brightness", weights={"clip_score": aesthetic_folder,
                      "aesthetic": aesthetic_folder}, normalise="none")  # fmt: skip
    assert len(mix.preprocess(torch.rand(1, 3, 40, 40))) == 2
    results = score_files(mix, paths, ["a fox"] * 7)
    alone = [mix.score(read_levels(path).float() / 255, ["a fox"]).item() for path in paths]
    assert [r.score for r in results] == pytest.approx(alone, abs=1e-4)
    assert list(results[0].scores) == [mix.name, "clip_score", "aesthetic", "brightness"]


@pytest.mark.parametrize("value", [0, 128, 30_000, 65_535])
def test_16_bit_grey_keeps_its_brightness(tmp_path, value):
    Image.fromarray(np.full((4, 5), value, np.uint16)).save(tmp_path / "g.png")
    found = read_levels(tmp_path / "g.png")
    assert found.shape == (1, 3, 4, 5) and found.dtype == torch.uint8
    assert found.unique().tolist() == [round(value / 65_535 * 255)]
    score = score_files(load_reward("brightness"), [tmp_path / "g.png"], [None])[0].score
    assert score == pytest.approx(value / 65_535, abs=0.5 / 255)


def test_deeper_pictures_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(PictureError, match=r"i\.tiff .*grey levels from 1048576 to 1048576; expected 8 or 16 bits"):
        read_levels(tmp_path / "i.tiff")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(PictureError, match="32-bit floating point without a known range"):
        read_levels(tmp_path / "f.tiff")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_is_turned_as_its_exif_says(tmp_path, suffix):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255  # bright on the left
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / f"e.{suffix}", exif=exif)
    found = read_levels(tmp_path / f"e.{suffix}")
    assert found.shape == (1, 3, 16, 8)
    assert found[0, :, :7].float().mean() > 250 and found[0, :, 9:].float().mean() < 5, "bright above"


def text_picture(path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": '{"a":' * 100_000},
        {"prompt": json.dumps({"1": {"inputs": [1, 2]}, "2": {"inputs": {"positive": ["1", 0]}}})},
        {"prompt": json.dumps({"1": 5, "2": {"inputs": {"positive": ["2", 0], "guider": [[], {}]}}})},
        {"reneg": '{"prompt": 5}'},
        {"reneg": "[" * 100_000},
    ],
)
def test_odd_metadata_is_no_prompt(tmp_path, texts):
    path = text_picture(tmp_path / "odd.png", **texts)
    assert read_prompt(path) is None and read_scores(path) == {}


def test_damage_in_the_metadata_names_the_file(tmp_path):
    path = save(tmp_path / "x.png")
    path.write_bytes(path.read_bytes()[:-14])
    with pytest.raises(ValueError, match=r"x\.png, which ends before its IEND chunk"):
        write_scores(path, {"a": 1.0})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.png"]
    path.write_bytes(b"no")
    for read in (read_prompt, read_scores):
        with pytest.raises(PictureError, match=r"x\.png is not a picture"):
            read(path)


def test_scores_are_printed_before_they_are_written(tmp_path, capsys):
    whole, cut = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    cut.write_bytes(cut.read_bytes()[:-12])
    assert main(["score", "--reward", "brightness", "--prompt", "", "--write-metadata", str(whole), str(cut)]) == 1
    out, err = capsys.readouterr()
    assert out.count("0.5020") == 2 and "b.png: the scores could not be written" in err
    assert read_scores(whole) == pytest.approx({"brightness": 128 / 255})


def test_patterns_are_expanded(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("in/b.png", "in/a.png", "c[1].png"):
        save(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("")
    assert [p.name for p in find_images([f"{tmp_path}/in/*"])] == ["a.png", "b.png"]
    assert [p.name for p in find_images([f"{tmp_path}/**/*.png"])] == ["c[1].png", "a.png", "b.png"]
    assert find_images([tmp_path / "c[1].png"]) == [tmp_path / "c[1].png"]
    with pytest.raises(FileNotFoundError, match=r"\*\.gif matches no pictures; expected picture files"):
        find_images([f"{tmp_path}/*.gif"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sort", "x"], "--sort: got 'x', expected one of brightness"),
        (["--vocab", "v.txt"], "reward 'brightness' takes no vocab"),
        (["--weights", "w.pt"], "reward 'brightness' takes no weights"),
    ],
)
def test_bad_options_are_refused_before_a_picture_is_read(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr("reneg_core.score.read_levels", lambda path: pytest.fail("a picture was read"))
    path = save(tmp_path / "a.png")
    assert main(["score", "--reward", "brightness", "--prompt", "x", *options, str(path)]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no valid JSON"), ("[1]", "expected text"), ('"x"', "with str, expected a list of prompts")],
)
def test_a_bad_prompt_file_is_named(tmp_path, text, message):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=rf"p\.json.*{message}"):
        prompts_for([tmp_path / "a.png"], prompt_file=tmp_path / "p.json")


PEAK = """
import resource, sys
from pathlib import Path
from reneg_core.score import load_reward, score_files
reward = load_reward("image_reward", weights=Path(sys.argv[2]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score_files(reward, [Path(sys.argv[1])], ["a fox"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(resource, "RUSAGE_SELF"), reason="kibibytes on Linux only")
def test_a_large_picture_needs_little_more_than_its_file_decoded(tmp_path, small_blip):
    """3000 x 4000: 36 MB decoded; as float32 it would be 144 MB, and twelve times that in the resize."""
    save(tmp_path / "large.png", 100, (3000, 4000), compress_level=1)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "large.png"), str(small_blip.folder)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert peak < 330e6
