"""The shipped pipeline: it loads as Stable Diffusion does, and its pictures are what was promised."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel

from reneg_core import tiny
from reneg_core.backends import DiffusersModel, load_model
from reneg_core.sampling import Sampling, sample
from reneg_core.tiny import prompts, world
from reneg_core.tiny.rivals import rivals
from reneg_core.training.run_config import load_run_config

FOLDER = tiny.pipeline_path()
DEMO = load_run_config("demo").sampling


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def tiny_model() -> DiffusersModel:
    return load_model(str(FOLDER), device="cpu")


@torch.no_grad()
@torch.no_grad()
def _pictures(model: DiffusersModel, texts: list[str], negative: str, sampling: Sampling = DEMO) -> torch.Tensor:
    noise = model.noise(range(len(texts)))
    return model.decode(sample(model, model.encode(texts), model.encode([negative]), noise, sampling))


def test_the_parts_are_those_of_stable_diffusion_in_float32(pipeline: StableDiffusionPipeline):
    kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    for name, kind in kinds.items():
        part = getattr(pipeline, name)
        assert type(part) is kind and {p.dtype for p in part.parameters()} == {torch.float32}
    assert type(pipeline.scheduler) is DDIMScheduler and pipeline.safety_checker is None
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"


def test_everything_that_ships_is_small_and_names_no_folder_of_a_machine():
    files = [*FOLDER.rglob("*"), FOLDER.parent / "reward.safetensors"]
    assert sum(file.stat().st_size for file in files if file.suffix == ".safetensors") <= 12_000_000
    for file in FOLDER.rglob("*.json"):
        assert not json.loads(file.read_text(encoding="utf-8")).get("_name_or_path"), file


def test_every_known_word_is_one_token_and_no_caption_is_cut(pipeline: StableDiffusionPipeline):
    tokenizer = pipeline.tokenizer
    for word in prompts.vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    longest = "a picture of a purple triangle on a yellow background, watermark, lines, double, bad"
    assert len(tokenizer(longest).input_ids) <= tokenizer.model_max_length
    assert tokenizer.unk_token_id not in tokenizer("Overexposed, ugly!").input_ids[1:-1]


def test_latents_have_unit_variance(pipeline: StableDiffusionPipeline):
    generator = torch.Generator().manual_seed(0)
    clean = world.render(world.place(prompts.combinations("test"), generator))
    images = world.spoil(clean, world.sample_strength(len(clean), world.CARELESS_SHARE, generator), generator)
    with torch.no_grad():
        latents = pipeline.vae.encode(images * 2 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
    assert abs(latents.std().item() - 1) < 0.1 and abs(latents.mean().item()) < 0.1


def test_the_autoencoder_keeps_good_and_bad_pictures_apart(pipeline: StableDiffusionPipeline):
    generator = torch.Generator().manual_seed(0)
    clean = world.render(world.place(prompts.combinations("test"), generator))
    spoilt = world.spoil(clean, world.sample_strength(len(clean), 1.0, generator), generator)
    scores = []
    for images in (clean, spoilt):
        with torch.no_grad():
            decoded = pipeline.vae.decode(pipeline.vae.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5
        scores.append(tiny.measure(decoded.clamp(0, 1), tiny.test_prompts()).mean().item())
    assert scores[0] > 0.96 and scores[0] - scores[1] > 0.2


def test_other_programs_can_load_the_networks(pipeline: StableDiffusionPipeline):
    for part in (pipeline.vae, pipeline.unet):
        groups = {module.num_groups for module in part.modules() if isinstance(module, torch.nn.GroupNorm)}
        assert groups == {32}


def test_prompts_that_no_training_saw_are_drawn_better_than_by_chance(tiny_model: DiffusersModel):
    texts = tiny.test_prompts()[::3]
    images = _pictures(tiny_model, texts, "", DEMO.at_scale(rivals()["none"].guidance_scale))
    own, other = tiny.measure(images, texts).mean(), tiny.measure(images, texts[1:] + texts[:1]).mean()
    assert own > 0.78 and own - other > 0.3


def test_guidance_alone_leaves_the_flaws(tiny_model: DiffusersModel):
    texts = tiny.test_prompts()
    flawless = world.render(world.place(prompts.combinations("test"), torch.Generator().manual_seed(0)))
    with torch.no_grad():
        latents = tiny_model.pipeline.vae.encode(flawless * 2 - 1).latent_dist.mean
        kept = (tiny_model.pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    best = max(tiny.measure(_pictures(tiny_model, texts, "", DEMO.at_scale(s)), texts).mean() for s in (3.0, 5.0, 7.0))
    assert tiny.measure(kept, texts).mean() - best > 0.1


def test_more_steps_hardly_change_the_empty_prompts_mean(tiny_model: DiffusersModel):
    texts, double = tiny.test_prompts(), DEMO.changed(steps=2 * DEMO.steps)
    means = [tiny.measure(_pictures(tiny_model, texts, "", sampling), texts).mean() for sampling in (DEMO, double)]
    assert abs(means[0] - means[1]) < 0.02


def test_the_words_help(tiny_model: DiffusersModel):
    texts = tiny.test_prompts()
    negatives = "", tiny.HANDWRITTEN_NEGATIVE
    plain, helped = (tiny.measure(_pictures(tiny_model, texts, negative), texts) for negative in negatives)
    assert (helped - plain).mean() > 0.004


def test_importing_the_world_needs_no_diffusers():
    code = "import reneg_core.tiny, sys; sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parents[2]).returncode == 0
