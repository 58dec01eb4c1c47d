"""Which prompts are trained on and which are kept aside to decide what is best."""

from collections.abc import Sequence
from typing import NamedTuple

HELD_OUT = 10  # every tenth


class Prompts(NamedTuple):
    """Training and validation prompts; neither is empty where :func:`split_prompts` made them."""

    train: Sequence[str]
    validation: Sequence[str]


def split_prompts(prompts: Sequence[str], validation: Sequence[str] = ()) -> Prompts:
    """Training and validation prompts, without empty lines; without ``validation`` every tenth prompt is kept aside.

    Fewer than ten prompts are used for both. Errors: ValueError if nothing is left to train on.
    """
    kept, held = _nonempty(prompts), _nonempty(validation)
    if not kept:
        raise ValueError("Got no training prompts, expected at least one non-empty line.")
    if held:
        return Prompts(kept, held)
    if len(kept) < HELD_OUT:
        return Prompts(kept, kept)
    return Prompts([prompt for i, prompt in enumerate(kept) if i % HELD_OUT], kept[::HELD_OUT])


def _nonempty(prompts: Sequence[str]) -> list[str]:
    return [prompt.strip() for prompt in prompts if prompt.strip()]
