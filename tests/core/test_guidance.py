"""Guidance as pure functions, with numbers worked out by hand."""

import pytest
import torch

from reneg_core.guidance import Guidance, cfg, rescale, strengthen


def test_cfg_by_hand() -> None:
    assert cfg(torch.tensor(3.0), torch.tensor(1.0), 2.5) == 6.0
    assert cfg(torch.tensor(3.0), torch.tensor(1.0), 1.0) == 3.0


def test_rescale_restores_the_spread() -> None:
    positive = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = 5 * positive + 1
    assert torch.equal(rescale(guided, positive, 0.0), guided)
    full = rescale(guided, positive, 1.0)
    assert torch.allclose(full.std((1, 2, 3)), positive.std((1, 2, 3)), rtol=1e-4)
    half = rescale(guided, positive, 0.5)
    assert torch.allclose(half, 0.5 * (guided + full), atol=1e-5)


def test_strength_is_exact_at_the_ends() -> None:
    null, negative = torch.rand(1, 4, 3), torch.rand(1, 4, 3)
    assert strengthen(null, negative, 1) is negative
    assert torch.equal(strengthen(null, negative, 0), null)
    assert torch.allclose(strengthen(null, negative, 2), 2 * negative - null)


def test_interval() -> None:
    guidance = Guidance(4.0, start=0.2, end=0.8)
    assert [guidance.active(p) for p in (0.0, 0.2, 0.5, 0.8)] == [False, True, True, False]
    assert not Guidance(1.0).active(0.5)


@pytest.mark.parametrize("options", [{"start": 0.5, "end": 0.5}, {"start": -0.1}, {"end": 1.1}])
def test_bad_interval(options: dict) -> None:
    with pytest.raises(ValueError, match="expected 0 <= start < end <= 1"):
        Guidance(**options)


def test_bad_rescale() -> None:
    with pytest.raises(ValueError, match="Got guidance rescale 2, expected a number from 0"):
        Guidance(rescale=2)
