"""Train the tiny world's autoencoder on drawn pictures."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from reneg_core.tiny import networks
from reneg_core.tiny.budget import Average, Budget
from reneg_core.tiny.pictures import draw

SEED = 2412


def _edges(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


def _reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """L1, L2 and edges."""
    difference = decoded - target
    edge = sum(part.abs().mean() for part in _edges(difference))
    return difference.abs().mean() + difference.square().mean() + 0.5 * edge


def train_vae(out: Path, budget: Budget) -> None:
    """Train the autoencoder on drawn pictures and save it into ``out/vae``, its latents centred with unit variance."""
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    vae = networks.build_vae().to(memory_format=torch.channels_last)
    average = Average([vae])
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=1e-4)

    def step() -> Tensor:
        target = draw(16, "train", generator).images * 2 - 1
        posterior = vae.encode(target).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / networks.LATENT_CHANNELS / networks.LATENT_SIZE**2
        return _reconstruction_loss(decoded, target) + 2e-4 * kl

    budget.run(step, optimizer, average.update)
    (vae,) = average.shadow
    _standardise(vae, draw(2048, "train", generator).images)
    vae.save_pretrained(out / "vae")


@torch.no_grad()
def _standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Centre the latents and give every channel the same spread, inside the 1x1 convolutions around them."""
    means = torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in images.split(128)])
    centre, spread = means.mean((0, 2, 3)), means.std((0, 2, 3))
    common = spread.square().mean().sqrt()
    gain, channels = common / spread, len(centre)
    into, back = vae.quant_conv, vae.post_quant_conv
    into.weight[:channels] *= gain[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - centre) * gain
    into.bias[channels:] += 2 * gain.log()
    back.bias += back.weight[:, :, 0, 0] @ centre
    back.weight /= gain[None, :, None, None]
    vae.register_to_config(scaling_factor=round(1 / common.item(), 5))
