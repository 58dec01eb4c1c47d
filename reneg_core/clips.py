"""Videos among pictures: a clip is ``[T,3,H,W]`` where a picture is ``[3,H,W]``; some of its frames are judged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

FRAMES = 4
"""Frames that a clip is judged and shown by unless a setting says otherwise."""


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` (0 = all) of ``count`` frames: the middle ones of as many equal parts of the clip."""
    most = min(most, count) if most else count
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]


def by_picture(judge: Callable[[Tensor, list[str]], Any], images: Tensor, prompts: Sequence[str]) -> Any:
    """What ``judge`` says of pictures ``[B,3,H,W]``, or of clips ``[B,T,3,H,W]`` as the mean over their frames.

    judge: pictures and as many prompts to numbers ``[B]``, or to several of them by name. Anything else that it
    returns is handed on as it is.
    """
    if images.ndim == 4:
        return judge(images, list(prompts))
    frames = images.shape[1]
    found = judge(images.flatten(0, 1), [prompt for prompt in prompts for _ in range(frames)])
    if isinstance(found, Mapping):
        return {name: _mean(values, frames, len(prompts)) for name, values in found.items()}
    return _mean(found, frames, len(prompts))


def _mean(scores: Any, frames: int, clips: int) -> Any:
    if not isinstance(scores, Tensor) or scores.shape != (frames * clips,):
        return scores
    return scores.unflatten(0, (clips, frames)).mean(1)
