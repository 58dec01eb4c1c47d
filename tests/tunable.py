"""A small model whose text encoder can be tuned, and quick tunings of it: whole runs in milliseconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from doubles import Curved
from small import SmallModel
from torch import Tensor, nn

from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling
from reneg_core.texforce import TexForce, TexForceConfig, TextLora
from reneg_core.texforce.adapter import attached
from reneg_core.training import Prompts, Session

LAYER = "text_encoder.text_model.encoder.layers.{}.self_attn.q_proj"
PROMPTS = ["a red fox", "blue", "sun over sea", "an old door", "ice"]
SAMPLING = Sampling(steps=4).at_scale(3.0)
QUICK = TexForceConfig(
    sampling=SAMPLING, steps=4, batch_size=8, micro_batch=4, updates=2, samples_per_prompt=2, learning_rate=0.02,
    rank=2, alpha=2.0, validate_every=2, validation_pairs=3, statistics_minimum=2, statistics_buffer=4,
)  # fmt: skip


class Attention(nn.Module):
    """The four projections of a CLIP layer, joined by something that is not linear in any."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(torch.tanh(self.q_proj(x) * self.k_proj(x)) + self.v_proj(x))


class Encoder(nn.Module):
    """A layer under the names that CLIP's have."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([nn.Module()])
        self.encoder.layers[0].self_attn = Attention(width)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = 0.7 * torch.randn(parameter.shape, generator=generator)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.encoder.layers[0].self_attn(x)


class TunableSmall(SmallModel):
    """:class:`SmallModel` with an encoder behind its prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def text_encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.encoder}

    def encode(self, prompts: Sequence[str], gradient: bool = False) -> Conditioning:
        with torch.set_grad_enabled(gradient):
            return Conditioning(self.encoder(super().encode(prompts).tokens))


def tuning(
    folder: Path, config: TexForceConfig = QUICK, *, model: Any = None, reward: Any = None, watch: Any = None,
    prompts: list[str] = PROMPTS, **session: Any,
) -> TexForce:  # fmt: skip
    listed = Prompts(prompts, PROMPTS[:2])
    return TexForce(
        model or TunableSmall(), reward or Curved(), listed, config, folder, watch=watch, session=Session(**session)
    )


def random_lora(encoders: dict, rank: int = 3, seed: int = 0, size: float = 0.3) -> TextLora:
    """One that changes every projection."""
    with attached(encoders, rank, 2.0 * rank, seed) as adapter:
        generator = torch.Generator().manual_seed(seed)
        tensors = {n: size * torch.randn(p.shape, generator=generator) for n, p in adapter.parameters.items()}
        return adapter.lora(tensors)


def encoded(model, lora: TextLora | None = None, prompts: tuple[str, ...] = ("a fox", "sun")) -> Tensor:
    """Tokens under the LoRA as it is tuned."""
    if lora is None:
        return model.encode(prompts).tokens
    with attached(model.text_encoders(), lora.rank, 1.0, 0) as adapter:
        adapter.load(adapter.tensors_of(lora))
        return model.encode(prompts).tokens
