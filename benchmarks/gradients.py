"""What a gradient is worth on the tiny world: how far it scatters, and how near it is to that of the finished picture.

    python benchmarks/gradients.py

Draws: the gradient of every picture at every step of the window, one-step estimates; of these, batches are put together
as a training draws them, with 1 to 16 draws of the gradient point in a batch. *scatter*: the mean squared distance of a
batch's gradient from the mean of all, over the mean's own square; *of the points*: the part of it that is there for one
and the same batch. Reach: cosine with the gradient through all steps, and the recorded passes.
"""

import argparse
from typing import Any

import torch
from lab import recipe, world
from measure import publish, table
from torch import Tensor

from reneg_core.sampling import Sampling
from reneg_core.tiny import train_prompts
from reneg_core.training import Batch, Reach, reward_gradient
from reneg_core.training.config import recorded_passes
from reneg_core.training.schedule import points_of

PICTURES, AT_ONCE, BATCH, WINDOW = 48, 16, 16, (2, 10)
DRAWS, BATCHES, AGAIN = (1, 2, 4, 8, 16), 400, 8
POINTS, REACHES = (0, 2, 5), (1, 2, 3, "leap")


def by_picture(sampling: Sampling, reach: Reach, first: int = 0, count: int = AT_ONCE) -> Tensor:
    """The gradient by a negative of each picture's own, ``[count, L*D]``."""
    model, reward = world()
    prompts = [train_prompts()[i % len(train_prompts())] for i in range(first, first + count)]
    batch = Batch(prompts, model.encode(prompts), model.noise(range(first, first + count)))
    negative = model.encode([recipe().init]).expand(count)
    return reward_gradient(model, reward, batch, negative, sampling, reach).tokens.flatten(1)


def scatter(sampling: Sampling) -> dict[str, Any]:
    """By the number of draws, the scatter of batches and the part of it that the points make."""
    at = [
        torch.cat([by_picture(sampling, Reach([point]), first) for first in range(0, PICTURES, AT_ONCE)])
        for point in range(*WINDOW)
    ]
    every = torch.stack(at, 1)  # [pictures, points, L*D]
    mean = every.mean((0, 1))
    found = {}
    for draws in DRAWS:
        config = recipe(window=WINDOW, points=1, through=1, batch_size=BATCH, draws=draws)
        batches = torch.stack([batch_gradients(every, config, number) for number in range(BATCHES)])
        whole = (batches - mean).square().sum(-1).mean() / mean.square().sum()
        points = (batches - batches.mean(1, keepdim=True)).square().sum(-1).mean() * AGAIN / (AGAIN - 1)
        found[str(draws)] = {"scatter": whole.item(), "of_points": (points / mean.square().sum()).item()}
    return found


def batch_gradients(every: Tensor, config: Any, number: int) -> Tensor:
    """One batch of pictures with its points drawn several times, ``[AGAIN, L*D]``."""
    rows = torch.randint(len(every), (BATCH,), generator=torch.Generator().manual_seed(number))
    drawn = [
        torch.tensor(points_of(config, config.sampling, AGAIN * number + i, range(BATCH)))[:, 0] for i in range(AGAIN)
    ]
    return torch.stack([every[rows, points - WINDOW[0]].mean(0) for points in drawn])


def reaches(sampling: Sampling) -> dict[str, Any]:
    """By point and reach, the cosine with the gradient to the end."""
    found: dict[str, Any] = {}
    for point in POINTS:
        end = by_picture(sampling, Reach([point], 0)).sum(0)
        found[str(point)] = {
            str(through): {
                "cosine": torch.cosine_similarity(
                    by_picture(sampling, Reach([point], through)).sum(0), end, dim=0
                ).item(),
                "passes": recorded_passes(through, sampling.steps - point),
            }
            for through in REACHES
        }
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sampling = recipe("fast").sampling
    near, far = reaches(sampling), scatter(sampling)
    rows = [(n, f"{one['scatter']:.3f}", f"{one['of_points']:.3f}") for n, one in far.items()]
    print(table(rows, ("draws", "scatter", "of the points")))
    rows = [(point, *(f"{one['cosine']:.3f}" for one in ways.values())) for point, ways in near.items()]
    print(table(rows, ("from step", *(f"through {way}" for way in REACHES))))
    publish("gradients", {"sampling": sampling.describe(), "pictures": PICTURES, "scatter": far, "reach": near})


if __name__ == "__main__":
    main()
