"""One training step against the plainly written version of the same recipe, on the same weights.

    python benchmarks/training_step.py [--model tiny|FOLDER] [--batch 16] [--repeat 7] [--part 4]

Plain: batched CFG, the graph kept for both branches of the last step, no checkpointing. Ours: the graph for the
negative branch only; optionally activation checkpointing; optionally several gradient points per rollout; the batch
cut into micro-batches altogether, and only where a graph is kept.
"""

import argparse
from collections.abc import Callable

import torch
from gradient_part import backward, our_x0, plain_x0
from measure import in_turn, peak_bytes, publish, table
from torch import Tensor

from reneg_core.backends import load_model
from reneg_core.rewards import load_reward
from reneg_core.sampling import Sampling, Size, State, advance, guided_denoise
from reneg_core.training import Batch, Reach, reward_gradient
from reneg_core.training.objective import Parts

POINT, POINTS, SCALE, STEPS = 24, 4, 5.0, 30


class Setting:
    """Inputs that every variant shares."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = load_model(args.model)
        self.reward = load_reward(args.reward, weights=args.weights, device=self.model.device)
        self.prompts = ["a red circle on a blue background"] * args.batch
        self.positive = self.model.encode(self.prompts)
        self.negative = self.model.encode([""])
        self.sampling = Sampling(steps=STEPS, size=Size(args.size, args.size)).at_scale(SCALE)
        self.sigmas = self.model.sigmas(self.sampling)
        self.noise = self.model.noise(range(args.batch), self.sampling.size)
        with torch.no_grad():
            self.x = self.roll()

    def roll(self) -> Tensor:
        """The states before the gradient point, without gradient: the same in every variant."""
        state = State(self.model.start(self.noise, self.sigmas[0]))
        for index in range(POINT):
            sigma = self.sigmas[index]
            x0 = guided_denoise(self.model, state.x, sigma, self.positive, self.negative, self.sampling.guidance)
            state = advance(state, x0, self.sigmas, "euler")
        return state.x

    def leaf(self) -> Tensor:
        return self.negative.tokens.clone().requires_grad_()

    def plain_x0(self, leaf: Tensor) -> Tensor:
        return plain_x0(self.model, self.x, self.sigmas[POINT], self.positive, leaf, SCALE)

    def our_x0(self, leaf: Tensor) -> Tensor:
        return our_x0(self.model, self.x, self.sigmas[POINT], self.positive, leaf, SCALE)

    def unet_part(self, x0_of: Callable[[Tensor], Tensor]) -> None:
        leaf = self.leaf()
        backward(x0_of(leaf), leaf)

    def gradient_part(self, x0_of: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = self.leaf()
        scores = self.reward.score(self.model.decode(x0_of(leaf)), self.prompts)
        return torch.autograd.grad(scores.sum(), leaf)[0]

    def plain_step(self) -> Tensor:
        with torch.no_grad():
            self.roll()
        return self.gradient_part(self.plain_x0)

    def our_step(self, points: list[int], together: int | None = None, part: int | None = None) -> Tensor:
        """In rollouts of ``together`` pictures, with graphs of ``part`` of them."""
        count, total = len(self.prompts), torch.zeros_like(self.negative.tokens)
        size = together or count
        for rows in (slice(first, first + size) for first in range(0, count, size)):
            batch = Batch(self.prompts[rows], self.positive[rows], self.noise[rows])
            total += reward_gradient(
                self.model, self.reward, batch, self.negative, self.sampling, Reach(points), Parts(part)
            ).tokens
        return total

    def light_part(self) -> Tensor:
        """Our gradient part with activation checkpointing of denoiser and decoder."""
        self.model.checkpointing(True)
        try:
            return self.gradient_part(self.our_x0)
        finally:
            self.model.checkpointing(False)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--reward", default="tiny")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--size", type=int, default=None, help="pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--part", type=int, default=4, help="pictures of a micro-batch")
    return parser.parse_args()


def main() -> None:
    args = parse()
    s = Setting(args)
    points = [6, 12, 18, POINT]
    works = {
        "UNet part, plain": lambda: s.unet_part(s.plain_x0),
        "UNet part, ours": lambda: s.unet_part(s.our_x0),
        "gradient part, plain": lambda: s.gradient_part(s.plain_x0),
        "gradient part, ours": lambda: s.gradient_part(s.our_x0),
        "gradient part, ours checkpointed": s.light_part,
        "rollout": torch.no_grad()(s.roll),
        "whole step, plain": s.plain_step,
        "whole step, ours": lambda: s.our_step([POINT]),
        f"whole step, ours, {POINTS} points": lambda: s.our_step(points),
        "whole step, ours, in micro-batches": lambda: s.our_step([POINT], args.part),
        "whole step, ours, the gradient in micro-batches": lambda: s.our_step([POINT], None, args.part),
    }
    plain, ours = s.plain_step(), s.our_step([POINT])
    agreement = torch.nn.functional.cosine_similarity(plain.flatten(), ours.flatten(), dim=0).item()
    times = in_turn(works, args.repeat)
    memory = {name: peak_bytes(work) / 2**20 for name, work in works.items()}
    print(table([(name, f"{times[name]:.3f}", f"{memory[name]:.1f}") for name in works], ("part", "s", "peak MiB")))
    ratios = {
        "unet_time": times["UNet part, ours"] / times["UNet part, plain"],
        "unet_memory": memory["UNet part, ours"] / memory["UNet part, plain"],
        "gradient_part_memory_checkpointed": memory["gradient part, ours checkpointed"]
        / memory["gradient part, plain"],
        "whole_time": times["whole step, ours"] / times["whole step, plain"],
        "cut_time": times["whole step, ours, the gradient in micro-batches"]
        / times["whole step, ours, in micro-batches"],
        "time_per_gradient": times[f"whole step, ours, {POINTS} points"] / POINTS / times["whole step, ours"],
    }
    print(table([(name, f"{value:.3f}") for name, value in ratios.items()], ("ours / plain", "")))
    setting = {
        "model": args.model,
        "batch": args.batch,
        "part": args.part,
        "point": POINT,
        "points": points,
        "gradient_cosine": agreement,
    }
    publish(
        f"training_step_{args.model.rstrip('/').split('/')[-1]}",
        {**setting, "seconds": times, "peak_mib": memory, "ratios": ratios},
    )


if __name__ == "__main__":
    main()
