"""A finished evaluation, a model with a closed form, and a training's records, for tests."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reneg_core.evaluation import Evaluation, Pairs, Pictures
from reneg_core.model import Branch, Conditioning
from reneg_core.sampling import Sampling, Size

SHIFT = {"none": 0.0, "text": 0.1, "embedding": 0.3}
LABELS = {"none": "empty prompt", "text": '"bad & ugly"', "independent": "pixels", "reward": "network"}
SAMPLING = Sampling(steps=10, spacing="trailing").at_scale(3)


def evaluation(prompts: int = 24, seeds: int = 2, pictures: bool = True) -> Evaluation:
    """Prompt p, noise s scores ``p / 100 + s / 10 + shift`` by the reward; the independent measure halves the shift
    and is the mean of its parts, of which ``colour`` has all of the shift and ``edge`` none."""
    names = tuple(f"prompt <{p}>" for p in range(prompts))

    def tables(factor: float) -> dict[str, list[list[float]]]:
        return {
            mode: [[p / 100 + s / 10 + factor * shift for s in range(seeds)] for p in range(prompts)]
            for mode, shift in SHIFT.items()
        }

    images = {mode: torch.full((2, 3, 8, 12), 0.2 + shift) for mode, shift in SHIFT.items()}
    kept = Pictures(((0, 0), (prompts // 2, 0)), images) if pictures else Pictures()
    lost = Pictures(((1, 0),), {mode: images[mode][:1] for mode in ("none", "embedding")}) if pictures else Pictures()
    return Evaluation(
        Pairs(names, tuple(tuple(range(p * seeds, (p + 1) * seeds)) for p in range(prompts))),
        {"reward": tables(1.0), "independent": tables(0.5)},
        {"independent": {"colour": tables(1.0), "edge": tables(0.0)}},
        dict.fromkeys(SHIFT, SAMPLING),
        LABELS,
        {"model": "tiny", "steps": 30, "height": 8, "width": 12},
        {"torch": "2"},
        pictures=kept,
        losses=lost,
    )


def records(steps: int = 40, watch: bool = True) -> list[dict]:
    """Reward rises by 0.01 a step; validations every 10 steps, each a new best."""
    found = []
    for step in range(1, steps + 1):
        rate = 0.01 * (1 - step / steps)
        found.append({"event": "step", "step": step, "reward": step / 100, "learning_rate": rate, "seconds": 1.0})
        if step % 10 == 0:
            seen = {"watch": step / 1000 if watch else None, "best": step <= 30}
            found.append({"event": "validation", "step": step, "reward": step / 100, **seen})
    return found


GREY = {"": 0.0, "dark": 0.2, "bright": 0.6, "light": 0.1}


class GreyModel:
    """One step gives the grey ``negative + scale * (positive - negative) + 0.01 * seed``; latents are half as big."""

    name, family, width, max_tokens, device = "grey", "grey", 3, None, torch.device("cpu")

    def __init__(self) -> None:
        self.prepared = 0
        self.noises: list[tuple[int, ...]] = []

    def run(self, work: Callable) -> object:
        self.prepared += 1
        return work(self)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return level(*(GREY[prompt] for prompt in prompts))

    def sigmas(self, sampling: Sampling) -> Tensor:
        return torch.linspace(1, 0, sampling.steps + 1)

    def noise(self, seeds: Sequence[int], size: Size = Size()) -> Tensor:  # noqa: B008
        self.noises.append(tuple(seeds))
        shape = (1, (size.height or 4) // 2, (size.width or 4) // 2)
        return torch.stack([torch.full(shape, float(seed)) for seed in seeds])

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def denoise(
        self, x: Tensor, sigma: Tensor, conditioning: Conditioning, branches: Sequence[Branch] = (Branch.POSITIVE,)
    ) -> Tensor:
        return conditioning.tokens[:, :1, :1, None].expand_as(x) + 0.01 * x

    def decode(self, latents: Tensor, frames: int = 0) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1).clamp(0, 1)


def level(*values: float) -> Conditioning:
    """A conditioning for each grey: 2 tokens of width 3."""
    return Conditioning(torch.tensor(values)[:, None, None].expand(-1, 2, 3).contiguous())


def grey(images: Tensor, prompts: list[str]) -> Tensor:
    """The measure that reads the grey off."""
    return images.mean((1, 2, 3))
