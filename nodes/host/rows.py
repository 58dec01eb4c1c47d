"""Prompts of unequal lengths in one batch: padded with a mask where the core holds them, each by itself where the host
processes them, and passed together where the host's own rules allow it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from reneg_core.model import Conditioning, concat

Processed = Mapping[str, Any]
"""What the host's architecture makes of one prompt: its conditions (CONDRegular and the like) by name."""


def joined(parts: Sequence[Conditioning], padding: Tensor | None = None) -> Conditioning:
    """Prompts of one row each as one conditioning.

    padding: tokens ``[1,L,D]`` whose end pads shorter prompts, so that all have L at least; without it they are padded
    with zeros to the longest. A mask says which tokens are a prompt's own wherever any padding is, or may be, and
    where some prompts have one (encoders leave out a mask of ones).
    """
    length = max(part.tokens.shape[1] for part in parts)
    alike = len({part.mask is None for part in parts}) == 1
    if padding is None and alike and all(part.tokens.shape[1] == length for part in parts):
        return reduce(concat, parts)
    end = padding if padding is not None else parts[0].tokens[:, :0]
    return reduce(concat, (_padded(part, max(length, end.shape[1]), end) for part in parts))


def _padded(part: Conditioning, length: int, end: Tensor) -> Conditioning:
    own, (rows, count, width) = part.tokens, part.tokens.shape
    fill = torch.cat([end[:, count:].to(own), own.new_zeros(rows, length - max(count, end.shape[1]), width)], 1)
    mask = torch.ones(rows, count, dtype=torch.int64) if part.mask is None else part.mask
    mask = torch.cat([mask, mask.new_zeros(rows, length - count)], 1).to(own.device)
    return replace(part, tokens=torch.cat([own, fill], 1), mask=mask)


def attended(row: Conditioning, name: str) -> Conditioning:
    """One row without the tokens that its mask hides and without the mask: attending to the rest is the same.

    Errors: ValueError for a mask that hides any but the last tokens, whose place in the prompt would change.
    """
    if row.mask is None:
        return row
    live = row.mask[0] != 0
    count = int(live.sum())
    if not count or not bool(live[:count].all()):
        raise ValueError(
            f"Got a mask with {int((~live).sum())} tokens left out, which {name} does not read; expected none, or only "
            "the last ones. Try an embedding without its masked tokens."
        )
    return replace(row, tokens=row.tokens[:, :count], mask=None)


def groups(rows: Sequence[Sequence[Processed]]) -> list[list[int]]:
    """Numbers of the rows that the host can pass together; a row is what is processed of it for each branch."""
    found: list[list[int]] = []
    for number, row in enumerate(rows):
        for group in found:
            if all(_together(a, b) for a, b in zip(rows[group[0]], row, strict=True)):
                group.append(number)
                break
        else:
            found.append([number])
    return found


def _together(first: Processed, second: Processed) -> bool:
    return first.keys() == second.keys() and all(first[name].can_concat(second[name]) for name in first)


def merged(rows: Sequence[Processed]) -> dict[str, Any]:
    """Rows of one group as one condition, as the host joins them."""
    first, *others = rows
    return {
        name: part._copy_with(part.concat([other[name] for other in others])) if others else part
        for name, part in first.items()
    }
