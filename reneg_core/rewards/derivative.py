"""Scores together with their derivative by the pixels.

A picture's score depends on that picture alone, so the derivative of a batch's scores is one picture-sized tensor per
picture, and the chain rule needs nothing else. Taking it at once, pass by pass, means that no activation outlives its
pass: a memory budget bounds training as it bounds scoring, backward may be asked for twice, and neither an autocast
nor a recomputation around the backward pass reaches the network.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reneg_core.rewards.precision import GRADIENT_SCALE

Score = Callable[[Tensor, list[str]], Tensor]


def score_with_derivative(score: Score, images: Tensor, prompts: list[str], step: int) -> Tensor:
    """score(images, prompts) [B] in passes of `step` pictures, attached to the graph of `images` [B,3,H,W].

    The result can be differentiated once, not twice.
    """
    return _ScoreWithDerivative.apply(images, score, prompts, step)


class _ScoreWithDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, images: Tensor, score: Score, prompts: list[str], step: int) -> Tensor:
        passes = [
            _pass(score, images[start : start + step], prompts[start : start + step])
            for start in range(0, len(images), step)
        ]
        scores, derivatives = zip(*passes, strict=True)
        ctx.save_for_backward(torch.cat(derivatives))
        return torch.cat(scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (derivative,) = ctx.saved_tensors
        return derivative * gradient.view(-1, 1, 1, 1).to(derivative.dtype), None, None, None


def _pass(score: Score, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Scores [B] of one pass, and their derivative by its pixels."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        scores = score(leaf, prompts)
    (scaled,) = torch.autograd.grad(scores, leaf, torch.full_like(scores, GRADIENT_SCALE))
    return scores.detach(), scaled / GRADIENT_SCALE
