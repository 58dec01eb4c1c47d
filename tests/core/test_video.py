"""Models of video: frames in sizes, noise, schedules and pictures, and what is refused."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding
from PIL import Image
from pipelines import build, ltx_vae, unet_3d
from safetensors.torch import load_file, save_file

from reneg_core.backends import load_model, wrap
from reneg_core.clip_files import write_clip
from reneg_core.clips import evenly
from reneg_core.embedding import NegativeEmbedding
from reneg_core.evaluation import to_image
from reneg_core.sampling import Sampling, Size, sample

SHAPES = {"zeroscope": (4, 3, 8, 16), "ltx": (8, 2, 4, 8)}


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_of_noise_depends_on_its_seed_alone(name: str) -> None:
    model, size = wrap(build(name), name), Size(16, 32, 3)
    both = model.noise([1, 2], size)
    assert both.shape == (2, *SHAPES[name]) and torch.equal(both[1:], model.noise([2], size))


def test_sizes_that_are_not_asked_for_are_the_pipelines_own() -> None:
    zeroscope, ltx = wrap(build("zeroscope"), "z"), wrap(build("ltx"), "l")
    assert zeroscope.noise([0]).shape == (1, 4, 16, 8, 8)
    assert ltx._latent_sides(Size()) == (81, 512 // 4, 704 // 4)


def test_frames_and_sides_that_cannot_be_are_refused() -> None:
    ltx, zeroscope = wrap(build("ltx"), "mine"), wrap(build("zeroscope"), "mine")
    with pytest.raises(ValueError, match="Got 4 frames for mine, expected one more than a multiple of 2"):
        ltx.noise([0], Size(16, 32, 4))
    with pytest.raises(ValueError, match=r"Got a picture of 32x18 pixels \(width x height\), expected multiples of 4"):
        ltx.sigmas(Sampling(size=Size(18, 32, 3)))
    with pytest.raises(ValueError, match="Got -1 frames for mine"):
        zeroscope.noise([0], Size(16, 16, -1))


def test_the_schedule_shifts_with_the_frames() -> None:
    model = wrap(build("ltx"), "mine")
    short, long = (model.sigmas(Sampling(steps=4, size=Size(16, 32, frames))) for frames in (1, 9))
    assert short[0] == long[0] == 1 and (long[1:-1] > short[1:-1]).any() and short[-1] == long[-1] == 0
    tokens = 5 * 4 * 8
    pipe = diffusers.pipelines.ltx.pipeline_ltx
    pipe.retrieve_timesteps(
        own := model.pipeline.scheduler, 4, "cpu", sigmas=[1.0, 0.75, 0.5, 0.25],
        mu=pipe.calculate_shift(tokens, 4, 64, 0.95, 2.05),
    )  # fmt: skip
    assert torch.allclose(long, own.sigmas, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_some_frames_are_those_of_the_whole_clip(name: str) -> None:
    model = wrap(build(name), name)
    latents = model.noise([1, 2], Size(16, 32, 7))
    whole = model.decode(latents)
    assert whole.shape == (2, 7, 3, 16, 32) and whole.min() >= 0 and whole.max() <= 1
    assert torch.allclose(model.decode(latents, 2), whole[:, [1, 5]], atol=1e-6)


def test_zeroscope_decodes_no_other_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = wrap(build("zeroscope"), "mine"), []
    decode = model.pipeline.vae.decode
    monkeypatch.setattr(model.pipeline.vae, "decode", lambda x, **options: seen.append(len(x)) or decode(x, **options))
    model.decode(model.noise([1, 2], Size(16, 16, 9)), 3)
    assert seen == [2 * 3]


def test_a_negative_of_another_length_than_the_prompts_is_taken_by_ltx() -> None:
    """As the published PixArt-alpha file: its tokens all attended to, and no mask."""
    model = wrap(build("ltx"), "mine")
    embedding = NegativeEmbedding(torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(0)), "width-32")
    embedding.require(model.family, model.width, model.max_tokens)
    sampling = Sampling(steps=2, size=Size(16, 32, 3)).at_scale(3.0)
    noise, positive = model.noise([1], sampling.size), model.encode(["fox"])
    found, null = (sample(model, positive, n, noise, sampling) for n in (embedding.conditioning(), model.encode([""])))
    assert found.shape == noise.shape and (found - null).abs().max() > 1e-3


def test_a_vae_that_adds_noise_is_refused_and_one_that_reads_a_time_is_not() -> None:
    built = build("ltx")
    built.vae = ltx_vae(timestep_conditioning=True)
    model = wrap(built, "mine")
    latents = model.noise([1], Size(16, 32, 3))
    vae = built.vae
    mean, std = (part[None, :, None, None, None] for part in (vae.latents_mean, vae.latents_std))
    expected = vae.decode(latents * std + mean, torch.zeros(1), return_dict=False)[0]
    assert torch.allclose(model.decode(latents), (expected / 2 + 0.5).clamp(0, 1).transpose(1, 2), atol=1e-6)
    built.vae.register_to_config(decoder_inject_noise=(True, False, False))
    with pytest.raises(ValueError, match=r"Got a VAE that adds noise of its own to each decoding \(LTX-Video 0.9.1\)"):
        wrap(built, "mine")


def test_recomputing_is_switched_off_again() -> None:
    model = wrap(build("zeroscope"), "mine")
    blocks = [*model.network.down_blocks, model.network.mid_block]
    model.checkpointing(True)
    model.checkpointing(True)
    assert all("forward" in vars(block) for block in blocks) and model.pipeline.vae.is_gradient_checkpointing
    model.checkpointing(False)
    assert not any("forward" in vars(block) for block in blocks) and not model.pipeline.vae.is_gradient_checkpointing
    model.checkpointing(False, True)
    assert not any("forward" in vars(block) for block in blocks) and model.pipeline.vae.is_gradient_checkpointing


def test_the_pixels_that_are_decoded_are_counted() -> None:
    """A VAE that looks at frames together decodes all of them, the other those that are asked for."""
    ltx, zeroscope, still = (wrap(build(name), name) for name in ("ltx", "zeroscope", "sd15"))
    assert ltx.pixels(Size(16, 32, 9)) == ltx.pixels(Size(16, 32, 9), 2) == 9 * 16 * 32
    assert ltx.pixels() == 161 * 512 * 704
    assert [zeroscope.pixels(Size(16, 32, 9), frames) for frames in (0, 2, 99)] == [n * 16 * 32 for n in (9, 2, 9)]
    assert zeroscope.pixels(frames=4) == 4 * 16 * 16
    assert still.pixels(Size(16, 32), 4) == 16 * 32 and still.pixels() == still.decode(still.noise([0]))[0, 0].numel()


def test_a_clip_is_shown_as_a_sheet() -> None:
    clip = torch.arange(9)[:, None, None, None].expand(9, 3, 2, 4) / 10
    image = to_image(clip)
    assert image.size == (8, 4)
    levels = [image.getpixel(place)[0] for place in ((0, 0), (4, 0), (0, 2), (4, 2))]
    assert levels == [round(25.5 * frame) for frame in evenly(9, 4)]
    three = to_image(clip[:3])
    assert three.size == (8, 4) and three.getpixel((4, 2)) == (255, 255, 255)
    assert to_image(clip[:1]).size == (4, 2)
    with pytest.raises(ValueError, match=r"Got a picture of shape \[9, 1, 2, 4\]"):
        to_image(clip[:, :1])


def test_a_gif_has_every_frame_and_says_how_it_was_made(tmp_path: Path) -> None:
    clip = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 8, 16)
    path = write_clip(tmp_path / "clip.gif", clip, 25.0, "made so")
    with Image.open(path) as found:
        assert (found.n_frames, found.size, found.info["duration"]) == (5, (16, 8), 40)
        assert found.info["comment"] == b"made so"
        for frame in range(5):
            found.seek(frame)
            assert abs(found.convert("RGB").getpixel((3, 3))[0] - 63.75 * frame) < 1.5


def test_an_mp4_has_every_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: MP4 is not tested")
    clip = torch.linspace(0.1, 0.9, 5)[:, None, None, None].expand(5, 3, 16, 33)
    with av.open(str(write_clip(tmp_path / "clip.mp4", clip, 8.0, "made so"))) as found:
        assert (found.metadata["comment"], found.streams.video[0].average_rate) == ("made so", 8)
        frames = [frame.to_ndarray(format="rgb24") for frame in found.decode(video=0)]
    assert [frame.shape for frame in frames] == [(16, 34, 3)] * 5
    assert all(abs(float(f.mean()) - 255 * (0.1 + 0.2 * i)) < 4 for i, f in enumerate(frames))


def test_clips_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = torch.zeros(2, 3, 4, 4)
    for name, tensor, rate, message in (
        ("clip.avi", clip, 8, "Got the clip format 'avi', expected one of gif, mp4"),
        ("clip.gif", clip[0], 8, r"Got a clip of shape \[3, 4, 4\], expected"),
        ("clip.gif", clip, 0, "Got 0 frames a second, expected more than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            write_clip(tmp_path / name, tensor, rate)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"The package av is missing; it writes MP4 files. Try: pip install av"):
        write_clip(tmp_path / "clip.mp4", clip, 8)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def videocrafter(tmp_path: Path) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """ZeroScope's folder, a UNet's folder in the converted layout, and the weights of its frame rate's embedding."""
    build("zeroscope").save_pretrained(tmp_path / "zeroscope")
    torch.manual_seed(7)
    unet, rate = unet_3d(), TimestepEmbedding(16, 64)
    unet.save_pretrained(tmp_path / "unet")
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    config |= {"_class_name": "UNet3DVideoCrafterConditionModel", "fps_cond": True}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    weights = {f"fps_embedding.{name}": tensor for name, tensor in rate.state_dict().items()}
    save_file(unet.state_dict() | weights, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    return tmp_path / "zeroscope", tmp_path / "unet", rate


def test_videocrafter_is_its_denoiser_in_zeroscopes_pipeline(videocrafter: tuple[Path, Path, Any]) -> None:
    pipeline, folder, rate = videocrafter
    model = load_model(folder, config=pipeline, device="cpu")
    assert model.name == str(folder) and model.digest() != load_model(pipeline, device="cpu").digest()
    torch.manual_seed(7)
    unet = unet_3d().eval()
    unet.time_embedding.register_forward_hook(
        lambda module, inputs, output: output + rate(unet.time_proj(torch.tensor([28])))
    )
    x, tokens = model.noise([1], Size(16, 16, 2)), model.encode(["fox"])
    with torch.no_grad():
        expected = unet(x, torch.tensor([500]), encoder_hidden_states=tokens.tokens).sample
        assert torch.allclose(model._predict(x, torch.tensor([500]), tokens), expected, atol=1e-5)
        plain = load_model(pipeline, device="cpu")._predict(x, torch.tensor([500]), tokens)
    assert (plain - expected).abs().max() > 1e-2


def test_a_denoiser_alone_or_of_another_layout_is_refused(videocrafter: tuple[Path, Path, Any], tmp_path: Path) -> None:
    pipeline, folder, _ = videocrafter
    with pytest.raises(ValueError, match=r"Got .*unet, a video denoiser alone, .* Try --model-config FOLDER"):
        load_model(folder, device="cpu")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match=r"Got StableDiffusionPipeline in .* expected TextToVideoSDPipeline"):
        load_model(folder, config=tmp_path / "other", device="cpu")
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for changed in (weights | {"more": torch.ones(1)}, weights | {"conv_out.bias": torch.ones(5)}):
        save_file(changed, file)
        with pytest.raises(ValueError, match=r"differ from diffusers' UNet3DConditionModel in 1 keys, for example '"):
            load_model(folder, config=pipeline, device="cpu")
    file.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model.bin"):
        load_model(folder, config=pipeline, device="cpu")
