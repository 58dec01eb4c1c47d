"""Asking a reward, and saying in words what is wrong where it fails."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..clips import by_picture
from ..rewards import Reward
from .memory import is_out_of_memory

PROBE = 64
FAILURES = (TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, NotImplementedError, RuntimeError)


class PicturesNotFinite(FloatingPointError):
    """Pictures with NaN or infinite pixels, which no reward can judge."""


def score(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """``reward.score`` of pictures ``[B,3,H,W]``, of clips ``[B,T,3,H,W]`` its mean over the frames: ``[B]``,
    differentiable where the reward is.

    Errors: :class:`PicturesNotFinite`; ValueError naming the reward for what its own code raises, and for scores
    without a gradient of pictures that need one. Running out of memory and a host's interruption pass unchanged.
    """
    if not torch.isfinite(images.detach()).all():
        raise PicturesNotFinite(
            "Got pictures with NaN or infinite pixels, expected finite ones. Try fp32 instead of half precision, or a "
            "lower learning rate."
        )
    try:
        scores = by_picture(reward.score, images, prompts)
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"The reward {reward.name!r} failed on {len(images)} pictures of {images.shape[-1]}x{images.shape[-2]} "
            f"pixels ({type(error).__name__}: {str(error)[:200]}). Expected one number per picture; try "
            "`reneg score` with it on a picture."
        ) from error
    if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
        raise ValueError(_without_gradient(reward))
    return scores


def _without_gradient(reward: Reward) -> str:
    return (
        f"The reward {reward.name!r} carries no gradient with respect to the pictures, so nothing can be learned "
        "from it by its gradient. Expected torch operations from pixels to score; it can still be watched, and "
        "`reneg texforce train` learns from any reward."
    )


def check_reward(reward: Reward, prompt: str, device: torch.device, gradient: bool = True) -> None:
    """Find out on one picture of noise, before long work, whether ``reward`` judges and, where that is needed, whether
    all of it has a gradient (ValueError)."""
    if gradient and not getattr(reward, "differentiable", True):
        raise ValueError(_without_gradient(reward))
    image = torch.rand(1, 3, PROBE, PROBE, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.set_grad_enabled(gradient):
        score(reward, image.requires_grad_(gradient), [prompt])


def require_finite(reward: Reward, scores: Tensor, prompts: Sequence[str], kind: str = "validation") -> None:
    """FloatingPointError naming a picture whose score is NaN or infinite; kind: what pictures they are."""
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        raise FloatingPointError(
            f"The reward {reward.name!r} gave {scores[bad[0]].item()} for a {kind} picture of {prompts[bad[0]]!r} "
            f"({len(bad)} of {len(scores)} pictures). Expected finite numbers, or nothing can be told to be the best."
        )
