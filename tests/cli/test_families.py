"""Every model family through the command line: a folder on disk, a training, a comparison and pictures."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence
from pipelines import build

from reneg_core import Conditioning, load_embedding
from reneg_core.backends import load_model
from reneg_core.cli import main
from reneg_core.clip_files import write_clip
from reneg_core.evaluation import to_image
from reneg_core.files import write_picture
from reneg_core.sampling import sample

TRAIN = [
    "steps=2", "batch_size=2", "micro_batch=2", "window=[0,2]", "validation_pairs=2", "validate_every=2",
    "guidance_scale=4", "learning_rate=0.05", "reward=sharpness", "through=2", "weight_decay=0",
    "sampling.steps=2", "sampling.height=16", "sampling.width=32",
]  # fmt: skip
READS = {
    "sdxl": ("pooled",),
    "koala": ("pooled",),
    "pixart": ("mask",),
    "pixart_sigma": ("mask",),
    "sd3": ("pooled",),
    "flux": ("pooled",),
    "chroma": ("mask",),
    "ltx": ("mask",),
    "zeroscope": (),
}
VIDEO = ("ltx", "zeroscope")


@pytest.fixture(params=READS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A pipeline folder called as its family is, with prompts beside it."""
    build(request.param).save_pretrained(tmp_path / request.param)
    (tmp_path / "prompts.txt").write_text("a red fox\nthe blue sea\nsun\nrain\n")
    return tmp_path / request.param


def test_train_evaluate_and_infer(folder: Path) -> None:
    run, prompts = folder.parent / "run", str(folder.parent / "prompts.txt")
    frames = ["sampling.frames=3", "judged_frames=2"] if folder.name in VIDEO else []
    assert main(["train", *TRAIN, *frames, f"model={folder}", f"prompts={prompts}", f"output={run}"]) == 0
    file, model = run / "negative.safetensors", load_model(folder, device="cpu")
    learned, null = load_embedding(file), model.encode([""])
    assert learned.family == model.family and learned.length == null.tokens.shape[1]
    moved = {"tokens": learned.tokens - null.tokens}
    if "pooled" in READS[folder.name]:
        moved["pooled"] = learned.pooled - null.pooled
    assert all(part.abs().flatten(0, -2).max(-1).values.min() > 1e-3 for part in moved.values())
    assert (learned.mask is not None) == ("mask" in READS[folder.name])
    assert learned.mask is None or (learned.mask.all() and not null.mask.all())
    compare(folder, file, prompts)
    assert drawn_by_infer(folder, file) == drawn(model, learned.conditioning(), learned.sampling, folder.parent)


def compare(folder: Path, file: Path, prompts: str) -> None:
    out = folder.parent / "report"
    options = ["--modes", "none", "text", "embedding", "adapted", "--noises", "1", "--pictures", "1", "--losses", "0"]
    options += ["--prompts", prompts, "--reward", "sharpness", "--output", str(out), "--negative-prompt", "ugly"]
    assert main(["evaluate", "--model", str(folder), "--embedding", str(file), *options]) == 0
    report = json.loads((out / "report.json").read_text())
    means = {mode: report[mode]["reward_mean"] for mode in ("none", "text", "embedding", "adapted")}
    assert len({round(mean, 7) for mean in means.values()}) == 4 and means["adapted"] >= means["embedding"]


def drawn_by_infer(folder: Path, file: Path) -> list[bytes]:
    out = folder.parent / "out"
    command = ["infer", "--model", str(folder), "--prompt", "a fox", "--neg-embedding", str(file)]
    assert main([*command, "--output", str(out)]) == 0
    [path] = out.iterdir()
    assert path.suffix == (".gif" if folder.name in VIDEO else ".png")
    return frames_of(path)


@torch.no_grad()
def drawn(model, negative: Conditioning, sampling, folder: Path) -> list[bytes]:
    latents = sample(model, model.encode(["a fox"]), negative, model.noise([42], sampling.size), sampling)
    images = model.decode(latents)
    if images.ndim == 5:
        assert images.shape[1] == 3
        return frames_of(write_clip(folder / "clip.gif", images[0], model.frame_rate))
    return frames_of(write_picture(folder / "picture.png", to_image(images[0])))


def frames_of(path: Path) -> list[bytes]:
    with Image.open(path) as picture:
        return [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(picture)]
