"""Train the tiny world's reward on drawn pictures, reconstructions, and the denoiser's one-step clean estimates.

The flaws of every drawn picture are known, and so is its quality: minus the sum of their strengths. Like any judge of
pictures it has seen more than this world's flaws: some pictures are soft, grainy or warped, and a third is overdone in
contrast and colour, since guidance tends to that; all of it counts against them. A reconstruction or a late estimate
bears the quality of the picture that it comes from, so that the little that the autoencoder loses is not held against
it. The independent measure is never consulted.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from reneg_core.rewards.tiny import RewardNetwork, raw_score
from reneg_core.tiny import prompts
from reneg_core.tiny.budget import Budget
from reneg_core.tiny.pictures import Pictures, draw

SEED = 2414
ATTACKED = 8  # of the 32 pictures in a step
BANK = 128 * 120
_OVERDONE = 1 / 3  # of the pictures
_WORN = 1 / 4  # of the pictures, for each kind of wear
_WARP, _BLUR, _GRAIN = 1.5, 1.2, 0.12  # at full strength: pixels (root mean square); pixels; standard deviation
_LATEST = 50  # of the 1000 diffusion steps: later than that an estimate is nearly as sharp as the finished picture
_ATTACK = 0.03  # root mean square, in the [0, 1] range, of the adversarial change to a picture


@dataclass
class Examples:
    """``images`` [N, 3, H, W] in [0, 1] with their ``quality`` [N] and ``combinations`` [N, 3]."""

    images: Tensor
    quality: Tensor
    combinations: Tensor


def quality(strength: Tensor, wear: Tensor, change: Tensor) -> Tensor:
    """Minus the summed ``strength`` [B, F] of a picture's flaws and of its ``wear`` [B, 3] (warping, softness, grain),
    and minus how far what was made of it was changed afterwards (``change`` [B, 3, H, W], judged in blocks of 4x4
    pixels). Of softness the square root counts: the first half pixel is what takes an edge its sharpness."""
    warping, softness, grain = wear.unbind(1)
    coarse = F.avg_pool2d(change, 4).square().mean((1, 2, 3)).sqrt()
    return -(strength.sum(1) + warping + softness.sqrt() + grain + 4 * coarse)


def worn(images: Tensor, wear: Tensor, generator: torch.Generator) -> Tensor:
    """``images`` [B, 3, H, W] warped, blurred and grainy by ``wear`` [B, 3] in [0, 1]."""
    images = blur(warp(images, wear[:, 0], generator), _BLUR * wear[:, 1])
    noise = torch.randn(len(images), 1, *images.shape[2:], generator=generator)
    return (images + _GRAIN * wear[:, 2, None, None, None] * noise).clamp(0, 1)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of ``images`` [B, C, H, W], one standard deviation per picture (``sigma`` [B], pixels)."""
    axis = torch.arange(images.shape[-1], dtype=torch.float32)
    squared = (axis[:, None] - axis[None, :]).square()
    matrix = torch.exp(-squared / (2 * sigma.clamp_min(1e-3).square()[:, None, None]))
    matrix = (matrix / matrix.sum(-1, keepdim=True))[:, None]
    return matrix @ images @ matrix.transpose(-1, -2)


def warp(images: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Bend ``images`` [B, 3, H, W] smoothly and at random, by ``_WARP`` pixels (root mean square along each axis) at
    ``strength`` [B] 1."""
    size = images.shape[-1]
    shift = torch.randn(len(images), 2, 6, 6, generator=generator)
    shift = F.interpolate(shift, (size, size), mode="bicubic", align_corners=True)
    shift = shift / shift.square().mean((2, 3), keepdim=True).sqrt()
    shift = shift * (_WARP * 2 / size * strength)[:, None, None, None]
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    straight = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    return F.grid_sample(images, straight + shift.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def overdo(images: Tensor, generator: torch.Generator) -> Tensor:
    """Raise contrast and saturation of a third of the ``images`` [B, 3, H, W] by up to a factor of 1.8, and shift their
    brightness by up to 0.15."""
    count = (len(images), 1, 1, 1)
    contrast, colour, shift = (torch.rand(count, generator=generator) for _ in range(3))
    luma = images.mean(1, keepdim=True)
    changed = luma + (1 + 0.8 * colour) * (images - luma)
    changed = 0.5 + (1 + 0.8 * contrast) * (changed - 0.5) + 0.15 * (2 * shift - 1)
    chosen = torch.rand(count, generator=generator) < _OVERDONE
    return torch.where(chosen, changed.clamp(0, 1), images)


@torch.no_grad()
def build_examples(pipeline: StableDiffusionPipeline, count: int, generator: torch.Generator) -> Examples:
    """Draw ``count`` pictures and keep, in equal parts, each as drawn, as reconstructed, or as estimated from noise."""
    rng = random.Random(generator.initial_seed())
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for index in range(count // 128):
        pictures = draw(128, "train", generator, weaken=True)
        wear = torch.rand(128, 3, generator=generator) * (torch.rand(128, 3, generator=generator) < _WORN)
        pictures.images = worn(pictures.images, wear, generator)
        images = (_drawn, _reconstructed, _estimated)[index % 3](pipeline, pictures, generator, rng)
        overdone = overdo(images, generator)
        parts.append((overdone, quality(pictures.strength, wear, overdone - images), pictures.combinations))
    return Examples(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _drawn(_: StableDiffusionPipeline, pictures: Pictures, *__: object) -> Tensor:
    return pictures.images


def _reconstructed(pipeline: StableDiffusionPipeline, pictures: Pictures, *_: object) -> Tensor:
    return _decode(pipeline, pipeline.vae.encode(pictures.images * 2 - 1).latent_dist.mean)


def _decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    return (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def _estimated(
    pipeline: StableDiffusionPipeline, pictures: Pictures, generator: torch.Generator, rng: random.Random
) -> Tensor:
    """Noise the latents to a random step below ``_LATEST`` and decode the guided estimate of the clean latents."""
    scale, scheduler = pipeline.vae.config.scaling_factor, DDPMScheduler.from_config(pipeline.scheduler.config)
    latents = pipeline.vae.encode(pictures.images * 2 - 1).latent_dist.mean * scale
    noise = torch.randn(latents.shape, generator=generator)
    step = torch.randint(1, _LATEST, (len(latents),), generator=generator)
    noisy = scheduler.add_noise(latents, noise, step)
    texts = [prompts.caption(tuple(row), [], rng) for row in pictures.combinations.tolist()]
    positive, negative = (pipeline.encode_prompt(t, "cpu", 1, False)[0] for t in (texts, [""] * len(texts)))
    guidance = 1 + 4 * torch.rand(len(latents), 1, 1, 1, generator=generator)
    away = pipeline.unet(noisy, step, negative).sample
    noise = away + guidance * (pipeline.unet(noisy, step, positive).sample - away)
    alpha = scheduler.alphas_cumprod[step][:, None, None, None]
    return _decode(pipeline, (noisy - (1 - alpha).sqrt() * noise) / alpha.sqrt() / scale)


def _attack(network: RewardNetwork, images: Tensor, generator: torch.Generator) -> Tensor:
    """The images moved a little in the direction that the network likes best: it must not believe in it."""
    images = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(network(images)[0].sum(), images)
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    amount = _ATTACK * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images.detach() + amount * gradient / size).clamp(0, 1)


def train_reward(out: Path, budget: Budget) -> None:
    """Train on the pipeline in ``out`` and save ``out/reward.safetensors`` with the statistics for standardising."""
    pipeline = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float32, local_files_only=True)
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    examples = build_examples(pipeline, BANK, generator)
    centre, spread = examples.quality.mean(), examples.quality.std()
    network = RewardNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)

    def step() -> Tensor:
        rows = torch.randint(len(examples.images), (32,), generator=generator)
        images = examples.images[rows]
        images[:ATTACKED] = _attack(network, images[:ATTACKED], generator)
        predicted, logits = network(images)
        loss = F.smooth_l1_loss(predicted, (examples.quality[rows] - centre) / spread)
        answers = examples.combinations[rows].unbind(1)
        return loss + 0.5 * sum(F.cross_entropy(a, b) for a, b in zip(logits, answers, strict=True))

    budget.run(step, optimizer, lambda: None)
    _save(network, out, generator)


@torch.no_grad()
def _save(network: RewardNetwork, out: Path, generator: torch.Generator) -> None:
    pictures = draw(2048, "train", generator)
    template = prompts.PLAIN_TEMPLATES[0]
    texts = [template.format(**prompts.words(tuple(row))) for row in pictures.combinations.tolist()]
    scores = raw_score(network, pictures.images, texts)
    state = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    save_file({**state, "mean": scores.mean(), "std": scores.std()}, out / "reward.safetensors")
