"""What is no supported model is refused by name, before it costs anything, and schedules follow their scheduler."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from builders import pipeline, pipeline_folder
from pipelines import LINEAR, build, dynamic_flow, sd3
from safetensors.torch import save_file

from reneg_core.backends import load_model, wrap
from reneg_core.backends.parameterisation import Flow, VariancePreserving
from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling, Size


def test_another_pipeline_is_refused_by_its_name_before_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MochiPipeline"}))
    with pytest.raises(ValueError, match=r"Got MochiPipeline in .*, which is not supported; expected .*Flux"):
        load_model(tmp_path, device="cpu")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"Got an unreadable .*model_index.json"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "without the parts of a whole checkpoint"),
        ("double_blocks.0.img_attn.qkv.weight", "a single file of Flux or Chroma; expected a whole checkpoint"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", "a single file of Stable Diffusion 3"),
        ("conditioner.embedders.0.model.ln_final.weight", "a single file of the Stable Diffusion XL refiner"),
        ("lora_unet_down.lora_up.weight", "without the parts of a whole checkpoint"),
    ],
)
def test_other_single_files_are_refused_by_name(tmp_path: Path, key: str, message: str) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "file.safetensors", device="cpu")


def test_a_flow_scheduler_in_an_architecture_of_discrete_steps_is_refused(tmp_path: Path) -> None:
    folder = pipeline_folder(tmp_path / "model")
    built = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    built.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    built.save_pretrained(folder)
    with pytest.raises(ValueError, match="Got the scheduler FlowMatchEulerDiscreteScheduler for an architecture"):
        load_model(folder, device="cpu")
    for other, message in (
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True), "UniPCMultistepScheduler with flow sigmas"),
        (diffusers.EDMEulerScheduler(), "Got the scheduler EDMEulerScheduler"),
        (diffusers.DDIMScheduler(prediction_type="flow"), "Got prediction type 'flow', expected epsilon"),
    ):
        with pytest.raises(ValueError, match=message):
            VariancePreserving(other)
    for other, message in (
        (diffusers.DDIMScheduler(), "Got the scheduler DDIMScheduler for a flow model"),
        (diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "with invert_sigmas for a flow model"),
    ):
        with pytest.raises(ValueError, match=message):
            Flow(other, to_zero=False)


def video_unet(built: Any) -> None:
    sizes = {"block_out_channels": (16, 16), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8}
    blocks = {"down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
    blocks |= {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}
    built.unet = diffusers.UNet3DConditionModel(sample_size=8, attention_head_dim=8, **sizes, **blocks)


def lacking(built: Any) -> None:
    built.text_encoder = None


def shifted(built: Any) -> None:
    built.vae.register_to_config(shift_factor=0.1)


def told_the_scale(built: Any) -> None:
    built.unet.register_to_config(time_cond_proj_dim=8)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sd15", video_unet, "Got a denoiser of class UNet3DConditionModel, expected UNet2DConditionModel"),
        ("sd15", shifted, "Got a VAE with shift_factor, which this family's pipeline does not use"),
        ("sdxl", told_the_scale, "Got a UNet that is told the guidance scale"),
        ("sdxl", lacking, "Got a StableDiffusionXLPipeline without text_encoder, expected a whole pipeline"),
        ("sdxl", lambda b: b.text_encoder_2.config.update({"projection_dim": 8}), "Got pooled of width 8 from the"),
        ("flux", lambda b: b.transformer.register_to_config(in_channels=24), "Got a denoiser with 24 input channels"),
    ],
)
def test_variants_and_mixed_up_parts_are_refused(name: str, change: Callable, message: str) -> None:
    built = build(name)
    change(built)
    with pytest.raises(ValueError, match=message):
        wrap(built, name)


def test_a_pipeline_of_another_class_is_not_wrapped() -> None:
    built = diffusers.StableDiffusionImg2ImgPipeline(**pipeline().components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="Got StableDiffusionImg2ImgPipeline in mine, which is not supported"):
        wrap(built, "mine")


def test_stable_diffusion_3_may_lack_t5() -> None:
    tokens = wrap(sd3(with_t5=False), "sd3").encode(["fox"]).tokens
    assert tokens.shape[2] == 64 and tokens[:, 16:].abs().max() == 0 and tokens[:, :16].abs().max() > 0


def test_what_the_denoiser_does_not_read_or_lacks_is_refused() -> None:
    sdxl, flow = wrap(build("sdxl"), "mine"), wrap(build("sd3"), "mine")
    for model, change, message in (
        (sdxl, {"pooled": None}, "Got no pooled vector, but mine reads one of width 16. Try an embedding"),
        (sdxl, {"pooled": torch.ones(1, 8)}, "Got a pooled vector of width 8, but mine reads one of width 16"),
        (flow, {"mask": torch.arange(40)[None] < 30}, "Got a mask that hides 10 tokens, which mine does not read"),
    ):
        with pytest.raises(ValueError, match=message):
            model.denoise(model.noise([0]), torch.tensor(0.5), replace(model.encode(["fox"]), **change))
    text, x = flow.encode(["fox"]), flow.noise([0])
    everything = Conditioning(text.tokens, torch.ones(1, 40, dtype=torch.int64), text.pooled)
    assert torch.equal(
        flow.denoise(x, torch.tensor(0.5), everything),
        flow.denoise(x, torch.tensor(0.5), replace(everything, mask=None)),
    )


def test_sizes_that_the_denoiser_cannot_take_are_refused() -> None:
    flux = wrap(build("flux"), "mine")
    with pytest.raises(ValueError, match=r"Got a picture of 16x18 pixels \(width x height\), expected multiples of 4"):
        flux.noise([0], Size(18, 16))
    with pytest.raises(ValueError, match="Got 9 frames for mine, which makes single pictures"):
        flux.sigmas(Sampling(size=Size(16, 16, 9)))
    assert flux.noise([0], Size(16, 32, 1)).shape == (1, 4, 8, 16)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DPMSolverSinglestepScheduler"]
)
def test_schedulers_that_leave_the_last_level_out_are_followed(kind: str, spacing: str) -> None:
    """The single-step one has a single spacing, and no word for it."""
    options = {} if "Single" in kind else {"timestep_spacing": spacing, "steps_offset": 1}
    own = getattr(diffusers, kind)(**LINEAR, **options)
    for steps in (4, 7, 20):
        own.set_timesteps(steps)
        found = VariancePreserving(own).sigmas(Sampling(steps=steps))
        assert torch.allclose(found[:-1], own.sigmas[:-1].float(), rtol=1e-5) and found[-1] == 0
    assert len(VariancePreserving(own).sigmas(Sampling(steps=1000))) == 1001


def test_a_scheduler_that_ends_at_its_lowest_level_is_followed() -> None:
    own = diffusers.EulerDiscreteScheduler(**LINEAR, timestep_spacing="leading", final_sigmas_type="sigma_min")
    own.set_timesteps(5)
    found = VariancePreserving(own).sigmas(Sampling(steps=5))
    assert torch.allclose(found, own.sigmas, rtol=1e-5) and found[-1] == pytest.approx(0.01, rel=1e-2)


def test_levels_that_are_not_followed_are_said_to_be() -> None:
    found = VariancePreserving(diffusers.EulerDiscreteScheduler(**LINEAR, use_karras_sigmas=True))
    with pytest.raises(ValueError, match=r"scheduler with use_karras_sigmas, which is not followed here\. Try"):
        found.sigmas(Sampling(steps=4))
    assert len(found.sigmas(Sampling(steps=4, spacing="karras"))) == 5


def test_a_flow_schedule_depends_on_the_size_and_the_spacing() -> None:
    flux, static = wrap(build("flux"), "flux"), wrap(build("sd3"), "sd3")
    small, large = (flux.sigmas(Sampling(steps=4, size=size)) for size in (Size(8, 8), Size(32, 32)))
    assert small[0] == large[0] == 1 and small[-1] == large[-1] == 0 and (large > small)[1:-1].all()
    own, linear = dynamic_flow(), torch.tensor([1.0, 0.75, 0.5, 0.25])
    own.set_timesteps(sigmas=linear.tolist(), mu=own.config.max_shift)
    assert torch.allclose(large, own.sigmas)
    levels = {spacing: static.sigmas(Sampling(steps=4, spacing=spacing)) for spacing in ("model", "trailing", "karras")}
    assert torch.allclose(levels["trailing"][:-1], 3 * linear / (1 + 2 * linear))
    assert levels["karras"][-2] == pytest.approx(static.parameterisation.scheduler.sigma_min, rel=1e-5)
    assert all(found[0] == 1 and found[-1] == 0 and (found.diff() < 0).all() for found in levels.values())
    with pytest.raises(
        ValueError, match="Got the spacing 'leading' for a flow model, expected model, trailing or karras"
    ):
        static.sigmas(Sampling(steps=4, spacing="leading"))
