"""Loading: a folder, a single checkpoint, and one clear sentence for everything else."""

from pathlib import Path

import pytest
import torch
from builders import pipeline, pipeline_folder, scheduler
from ldm import save_checkpoint
from pipelines import build

from reneg_core.backends import DiffusersModel, load_model, wrap
from reneg_core.backends.devices import pick_device, pick_dtype
from reneg_core.model import Conditioning, DiffusionModel
from reneg_core.sampling import Sampling, Size, sample


def picture(model: DiffusersModel) -> torch.Tensor:
    positive, negative = model.encode(["fox"]), model.encode([""])
    return model.decode(sample(model, positive, negative, model.noise([0]), Sampling(steps=3).at_scale(4.0)))


@pytest.mark.parametrize(("name", "family"), [("sd15", "clip-l"), ("sdxl", "width-48")])
def test_folder_and_single_file_are_the_same_model(tmp_path: Path, name: str, family: str) -> None:
    built = pipeline(width=768) if name == "sd15" else build(name)
    folder = tmp_path / "folder"
    built.save_pretrained(folder)
    file = save_checkpoint(built, tmp_path / "model.safetensors")
    first = load_model(folder, device="cpu")
    second = load_model(file, device="cpu", config=folder)
    assert first.digest() == second.digest() and len(first.digest()) == 64
    assert (picture(first) - picture(second)).abs().max() <= 1e-6
    assert isinstance(first, DiffusionModel) and first.family == family and first.max_tokens == 16


def test_weights_are_frozen_and_latents_stay_float32(tmp_path: Path) -> None:
    model = load_model(pipeline_folder(tmp_path / "m"), device="cpu", dtype="bf16")
    assert model.dtype == torch.bfloat16 and not any(p.requires_grad for p in model.pipeline.unet.parameters())
    images = picture(model)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    close = load_model(tmp_path / "m", device="cpu", dtype="fp32")
    assert (images - picture(close)).abs().mean() < 0.02


def test_v_prediction_is_another_answer(model, v_model) -> None:
    x, sigma, text = model.noise([0]), torch.tensor(2.0), model.encode(["fox"])
    unet = v_model.pipeline.unet
    timestep = model.parameterisation.timestep(sigma)
    v = unet(x / 5**0.5, timestep, encoder_hidden_states=text.tokens).sample
    assert torch.allclose(v_model.denoise(x, sigma, text), x / 5 - 2 / 5**0.5 * v, atol=1e-5)
    eps = model.pipeline.unet(x / 5**0.5, timestep, encoder_hidden_states=text.tokens).sample
    assert torch.allclose(model.denoise(x, sigma, text), x - 2 * eps, atol=1e-5)


def test_noise_depends_on_its_own_seed_only(model) -> None:
    together, alone = model.noise([7, 8, 9]), model.noise([8])
    assert torch.equal(together[1:2], alone)
    assert model.noise([0], Size(32, 48)).shape == (1, 4, 16, 24)
    with pytest.raises(ValueError, match=r"Got a picture of 16x33 pixels \(width x height\), expected multiples of 2"):
        model.noise([0], Size(height=33))


def levels(model: DiffusersModel, steps: int, spacing: str = "model") -> torch.Tensor:
    return model.sigmas(Sampling(steps=steps, spacing=spacing))


def test_schedule_is_the_models_own(model) -> None:
    sigmas = levels(model, 30)
    assert len(sigmas) == 31 and (sigmas[:-1] > sigmas[1:]).all()
    assert sigmas[-1] == pytest.approx(0.0292, abs=1e-4)
    to_zero = pipeline()
    to_zero.scheduler = scheduler(set_alpha_to_one=True)
    assert levels(wrap(to_zero, "zero"), 30)[-1] == 0
    with pytest.raises(ValueError, match="Got 1001 sampling steps, expected 1 to 1000"):
        levels(model, 1001)


def test_spacings_begin_and_end_where_they_say(model) -> None:
    own = {spacing: levels(model, 10, spacing) for spacing in ("model", "leading", "trailing", "karras")}
    assert torch.equal(own["model"], own["leading"])
    assert [round(s[0].item(), 1) for s in own.values()] == [8.4, 8.4, 14.6, 14.6]
    assert [round(s[-1].item(), 3) for s in own.values()] == [0.029, 0.029, 0, 0]
    assert own["karras"][-2] == pytest.approx(0.0292, abs=1e-4) and own["trailing"][-2] == pytest.approx(
        0.342, abs=1e-3
    )


@pytest.mark.parametrize("configured", ["leading", "trailing", "linspace"])
def test_the_models_own_spacing_is_its_schedulers(configured: str) -> None:
    built = pipeline()
    built.scheduler = scheduler(timestep_spacing=configured, set_alpha_to_one=True)
    model = wrap(built, configured)
    own = scheduler(timestep_spacing=configured)
    for steps in (7, 10, 30):
        own.set_timesteps(steps)
        alphas = own.alphas_cumprod[own.timesteps].double()
        assert torch.allclose(levels(model, steps)[:-1], ((1 - alphas) / alphas).sqrt().float())


@pytest.mark.parametrize("spacing", ["model", "leading", "trailing", "karras"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 500, 999, 1000])
def test_every_number_of_steps_has_a_schedule(model, spacing: str, steps: int) -> None:
    sigmas = levels(model, steps, spacing)
    assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
    assert (sigmas[:-2] > sigmas[1:-1]).all() and sigmas[-2] >= sigmas[-1]


def test_a_level_between_two_timesteps_goes_to_the_nearer_one(model) -> None:
    grid = levels(model, 1000, "trailing")[:-1].flip(0)
    between = torch.exp(torch.lerp(grid[500].log(), grid[501].log(), 0.4))
    nearest, asked = model.parameterisation.timestep, (grid[500], between, grid[501], grid[-1] * 2, grid[0] / 2)
    assert [nearest(level).item() for level in asked] == [500, 500, 501, 999, 0]


def test_zero_terminal_snr_stays_finite() -> None:
    built = pipeline("v_prediction")
    built.scheduler = scheduler("v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    model = wrap(built, "zero-snr")
    assert levels(model, 4)[0] == pytest.approx(4096) and model.parameterisation.timestep(levels(model, 4)[0]) == 999
    assert torch.isfinite(picture(model)).all()


def test_a_mask_reaches_the_network(model) -> None:
    x, sigma, text = model.noise([0]), torch.tensor(1.0), model.encode(["fox"])
    plain = model.denoise(x, sigma, text)
    everything = model.denoise(x, sigma, Conditioning(text.tokens, torch.ones(1, 16, dtype=torch.int64)))
    assert torch.allclose(plain, everything, atol=1e-6)
    first = torch.zeros(1, 16, dtype=torch.int64)
    first[:, :3] = 1
    masked = model.denoise(x, sigma, Conditioning(text.tokens, first))
    assert (masked - plain).abs().max() > 1e-4
    assert torch.allclose(masked, model.denoise(x, sigma, Conditioning(text.tokens[:, :3])), atol=1e-5)


def test_a_part_that_the_network_does_not_read_is_refused(model) -> None:
    pooled = Conditioning(model.encode(["fox"]).tokens, None, torch.ones(1, 8))
    with pytest.raises(ValueError, match="Got a pooled vector of width 8, but random reads none"):
        model.denoise(model.noise([0]), torch.tensor(1.0), pooled)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.ckpt").write_bytes(b"x")
    (tmp_path / "cut.safetensors").write_bytes(b"x" * 100)
    for source, error, message in (
        (tmp_path / "empty", ValueError, "without a model_index.json, expected a diffusers pipeline folder"),
        (tmp_path / "model.ckpt", ValueError, r"expected a .safetensors checkpoint: pickled checkpoints can run code"),
        (tmp_path / "absent", FileNotFoundError, "No model at"),
        (tmp_path / "cut.safetensors", ValueError, "Could not load"),
    ):
        with pytest.raises(error, match=message):
            load_model(source, device="cpu")


def test_mixed_up_parts_are_refused() -> None:
    inpainting, mixed = pipeline(), pipeline()
    inpainting.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="Got a denoiser with 9 input channels and 4 latent channels"):
        wrap(inpainting, "inpainting")
    mixed.unet.register_to_config(cross_attention_dim=1024)
    with pytest.raises(
        ValueError, match="Got tokens of width 32 from the text encoders and a denoiser that expects 1024"
    ):
        wrap(mixed, "mixed")


def test_devices_and_precisions() -> None:
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    with pytest.raises(ValueError, match="Got precision 'int8', expected one of auto, fp32, bf16, fp16"):
        pick_dtype("int8", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="Got device 'cuda', which this torch cannot use here"):
            pick_device("cuda")
