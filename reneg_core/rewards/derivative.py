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

    The result can be differentiated once, not twice; it has no graph if `score` gives none.
    """
    return _ScoreWithDerivative.apply(images, score, prompts, step)


class _ScoreWithDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, images: Tensor, score: Score, prompts: list[str], step: int) -> Tensor:
        derivative, scores, differentiable = torch.zeros_like(images), [], False
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            found, part = _pass(score, images[rows], prompts[rows])
            scores.append(found)
            if part is not None:
                derivative[rows], differentiable = part, True
        scores = torch.cat(scores)
        if differentiable:
            ctx.save_for_backward(derivative)
        else:
            ctx.mark_non_differentiable(scores)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (derivative,) = ctx.saved_tensors
        return derivative * gradient.view(-1, 1, 1, 1).to(derivative.dtype), None, None, None


def _pass(score: Score, images: Tensor, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
    """Scores [B] of one pass, and their derivative by its pixels, None if they do not depend on them in autograd."""
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        scores = score(leaf, prompts)
    if not scores.requires_grad:
        return scores, None
    (scaled,) = torch.autograd.grad(scores, leaf, torch.full_like(scores, GRADIENT_SCALE), allow_unused=True)
    return scores.detach(), None if scaled is None else scaled / GRADIENT_SCALE
