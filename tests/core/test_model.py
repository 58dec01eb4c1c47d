"""Conditionings: joined strictly, expanded and moved with all their parts."""

import pytest
import torch

from reneg_core.model import Conditioning, concat


def whole(rows: int = 1, length: int = 3) -> Conditioning:
    return Conditioning(torch.rand(rows, length, 4), torch.ones(rows, length, dtype=torch.int64), torch.rand(rows, 5))


def test_every_part_is_joined() -> None:
    first, second = whole(2), whole(3)
    both = concat(first, second)
    for name in ("tokens", "mask", "pooled"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(first, name), getattr(second, name)]))


@pytest.mark.parametrize("name", ["mask", "pooled"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_part_of_one_side_only_is_refused(name: str, turned: bool) -> None:
    pair = [whole(), Conditioning(**{**vars(whole()), name: None})]
    with pytest.raises(ValueError, match=f"Got one conditioning with {name} and one without"):
        concat(*reversed(pair) if turned else pair)


def test_unequal_token_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Got tokens of shapes \[1, 3, 4\] and \[1, 2, 4\]"):
        concat(whole(), whole(length=2))


def test_rows_keep_all_their_parts() -> None:
    both = whole(1).expand(4)
    assert len(both) == 4 and both.mask.shape == (4, 3) and both.pooled.shape == (4, 5)
    assert both[[1, 2]].pooled.shape == (2, 5)
    moved = both.to(torch.float64)
    assert moved.tokens.dtype == moved.pooled.dtype == torch.float64 and moved.mask.dtype == torch.int64
    with pytest.raises(ValueError, match="Got conditioning for 2 prompts, expected 1 or 3"):
        whole(2).expand(3)
