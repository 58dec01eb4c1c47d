"""Train the tiny world's denoiser and text encoder on the autoencoder's latents and on captions."""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from reneg_core.tiny import networks, prompts, world
from reneg_core.tiny.budget import Average, Budget
from reneg_core.tiny.pictures import draw

SEED = 2413
SAVE_EVERY = 500  # UNet steps
WORD_STEPS = 500  # of the text encoder alone, before the UNet
SPEAKING_SHARE = 0.2  # of the careless pictures: somebody looks for words about their quality
DROPOUT_SHARE = 0.10  # of the captions: empty, for classifier-free guidance
UNKNOWN_SHARE = 0.03  # of the captions: a made-up word inside, so that unknown words do little harm


@dataclass
class Bank:
    """Precomputed training data: latent ``mean`` and ``std`` [N, 12, 8, 8], already scaled, and what they show."""

    mean: Tensor
    std: Tensor
    strength: Tensor
    combinations: Tensor


@torch.no_grad()
def build_bank(vae: AutoencoderKL, count: int, generator: torch.Generator) -> Bank:
    """Draw and encode ``count`` training pictures."""
    parts: list[tuple[Tensor, ...]] = []
    for _ in range(count // 256):
        pictures = draw(256, "train", generator)
        latent = vae.encode(pictures.images * 2 - 1).latent_dist
        scale = vae.config.scaling_factor
        parts.append((latent.mean * scale, latent.std * scale, pictures.strength, pictures.combinations))
    return Bank(*(torch.cat(column) for column in zip(*parts, strict=True)))


def training_caption(combination: prompts.Combination, strength: Tensor, rng: random.Random) -> str:
    """The caption that a picture gets in one training step (see the shares at the top of this file)."""
    if rng.random() < DROPOUT_SHARE:
        return ""
    quality = prompts.quality_words(strength, rng) if rng.random() < SPEAKING_SHARE else []
    if rng.random() < prompts.STRAY_WORD:
        quality = [*quality, rng.choice(list(prompts.WORDS))]
    text = prompts.caption(combination, quality, rng)
    if rng.random() >= UNKNOWN_SHARE:
        return text
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 5)))
    parts = text.split()
    parts.insert(rng.randint(0, len(parts)), letters)
    return " ".join(parts)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [B, 20], padded as the pipeline pads."""
    length = tokenizer.model_max_length
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


class Captioner:
    """Token ids for captions, remembered: the world has few different captions."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer, self.known = tokenizer, {}

    def __call__(self, texts: list[str]) -> Tensor:
        """Token ids [B, 20] of ``texts``."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, tokenize(self.tokenizer, new), strict=True))
        return torch.stack([self.known[text] for text in texts])


def train_unet(out: Path, budget: Budget) -> None:
    """Train UNet and text encoder together on ``out/vae``'s latents and save the whole pipeline into ``out``."""
    generator, rng = torch.Generator().manual_seed(SEED), random.Random(SEED)
    torch.manual_seed(SEED)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32)
    bank = build_bank(vae, 256 * 160, generator)
    tokenizer = networks.build_tokenizer(out / "tokenizer")
    text_encoder, unet = networks.build_text_encoder(tokenizer), networks.build_unet()
    captioner = Captioner(tokenizer)
    _teach_words(text_encoder, captioner, bank, rng, generator)
    unet.to(memory_format=torch.channels_last)
    average = Average([unet, text_encoder])
    rates = {unet: 1.2e-3, text_encoder: 4e-4}
    groups = [{"params": list(module.parameters()), "lr": rate} for module, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-3, betas=(0.9, 0.99))
    every = [tuple(row) for row in bank.combinations.tolist()]

    def step() -> Tensor:
        rows = torch.randint(len(every), (64,), generator=generator)
        texts = [training_caption(every[row], bank.strength[row], rng) for row in rows.tolist()]
        latents = bank.mean[rows] + bank.std[rows] * torch.randn(bank.mean[rows].shape, generator=generator)
        return _diffusion_loss(unet, text_encoder(captioner(texts))[0], latents, generator)

    def after() -> None:
        average.update()
        if average.updates % SAVE_EVERY == 0:
            networks.save_pipeline(out, vae, *average.shadow, tokenizer)

    budget.run(step, optimizer, after)
    networks.save_pipeline(out, vae, *average.shadow, tokenizer)


def _teach_words(
    text_encoder: CLIPTextModel, captioner: Captioner, bank: Bank, rng: random.Random, generator: torch.Generator
) -> None:
    """Let the text encoder first learn to tell what a caption names, at its end and in the padding behind it."""
    sizes = [len(world.SHAPES), len(world.COLOUR_NAMES), len(world.COLOUR_NAMES), len(prompts.WORDS)]
    head = nn.Linear(networks.TEXT_WIDTH, sum(sizes))
    optimizer = torch.optim.AdamW([*text_encoder.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-3)
    every_word = list(prompts.WORDS)

    def step() -> Tensor:
        rows = torch.randint(len(bank.combinations), (64,), generator=generator)
        named = [tuple(row) for row in bank.combinations[rows].tolist()]
        chosen = [rng.sample(every_word, rng.choice((0, 0, 1, 2, 3))) for _ in named]
        encoded = text_encoder(captioner([_full_caption(*pair, rng) for pair in zip(named, chosen, strict=True)]))
        spoken = torch.tensor([[float(word in words) for word in every_word] for words in chosen])
        loss = torch.zeros(())
        for features in (encoded.pooler_output, encoded.last_hidden_state[:, -1]):
            *logits, heard = head(features).split(sizes, dim=1)
            answers = bank.combinations[rows].unbind(1)
            loss = loss + sum(F.cross_entropy(a, b) for a, b in zip(logits, answers, strict=True))
            loss = loss + F.binary_cross_entropy_with_logits(heard, spoken)
        return loss

    Budget(WORD_STEPS).run(step, optimizer, lambda: None)


def _full_caption(combination: prompts.Combination, quality: list[str], rng: random.Random) -> str:
    """A caption that names the combination whatever it says of its quality."""
    text = prompts.caption(combination, quality, rng)
    while prompts.named(text).shape is None:
        text = prompts.caption(combination, quality, rng)
    return text


_NOISE = DDPMScheduler.from_config(networks.build_scheduler().config)


def _diffusion_loss(unet: UNet2DConditionModel, tokens: Tensor, latents: Tensor, generator: torch.Generator) -> Tensor:
    """Epsilon loss with min-SNR weights (Hang et al. 2023, equation 8, gamma 5); the noisier steps, where the words
    matter, are drawn more often."""
    noise = torch.randn(latents.shape, generator=generator)
    time_step = (1000 * torch.rand(len(latents), generator=generator) ** 0.65).long()
    predicted = unet(_NOISE.add_noise(latents, noise, time_step), time_step, tokens).sample
    snr = _NOISE.alphas_cumprod[time_step] / (1 - _NOISE.alphas_cumprod[time_step])
    each = F.mse_loss(predicted, noise, reduction="none").mean((1, 2, 3))
    return (each * (5 / snr).clamp_max(1)).mean()
