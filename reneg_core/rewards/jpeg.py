"""How well a picture compresses: rewards that no gradient passes through (DDPO, arXiv 2305.13301, section 4)."""

import io

import torch
from torch import Tensor

from reneg_core.rewards.base import Reward

QUALITY = 95
KILOBYTE = 1000.0


class JpegCompressibility(Reward):
    """Minus the size of the picture as a JPEG file of quality 95, in units of 1000 bytes."""

    name = "jpeg_compressibility"
    needs_prompt = False
    differentiable = False
    sign = -1.0

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        sizes = [jpeg_size(image) for image in images.detach().float().cpu()]
        return torch.tensor([self.sign * size / KILOBYTE for size in sizes], device=images.device)


class JpegIncompressibility(JpegCompressibility):
    """The size of the picture as a JPEG file of quality 95, in units of 1000 bytes."""

    name = "jpeg_incompressibility"
    sign = 1.0


def jpeg_size(image: Tensor) -> int:
    """Bytes of ``image [3,H,W]`` in [0,1] as a JPEG file."""
    from PIL import Image

    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell()
