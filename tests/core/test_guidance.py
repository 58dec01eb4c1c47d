"""Guidance as pure functions, with numbers worked out by hand."""

import pytest
import torch

from reneg_core.guidance import ALPHA, TAU, Guidance, attend, cfg, rescale, strengthen
from reneg_core.sampling import require_attention


def test_cfg_by_hand() -> None:
    assert cfg(torch.tensor(3.0), torch.tensor(1.0), 2.5) == 6.0
    assert cfg(torch.tensor(3.0), torch.tensor(1.0), 1.0) == 3.0


def test_rescale_restores_the_spread() -> None:
    positive = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = 5 * positive + 1
    assert torch.equal(rescale(guided, positive, 0.0), guided)
    full = rescale(guided, positive, 1.0)
    assert torch.allclose(full.std((1, 2, 3)), positive.std((1, 2, 3)), rtol=1e-4)
    uneven = guided * torch.tensor([1.0, 4.0, 9.0])[:, None, None]
    assert torch.allclose(rescale(uneven, positive, 1.0).std((1, 2, 3)), positive.std((1, 2, 3)), rtol=1e-4), (
        "one factor for all channels"
    )
    factors = (rescale(uneven, positive, 1.0) / uneven).flatten(1)
    assert torch.allclose(factors, factors[:, :1], rtol=1e-4) and (factors[0, 0] - factors[1, 0]).abs() > 1e-3
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


def test_attention_features_are_moved_away_and_kept_in_length() -> None:
    """[1, 1] from [0.9, 1.1] by 4 is [1.4, 0.6], short of the limit; from [-3, 9] it is [17, -31], of length 48 where
    2.5 times 2 is allowed."""
    assert (TAU, ALPHA) == (2.5, 0.5)
    positive, negative = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]]), torch.tensor([[[0.9, 1.1]], [[-3.0, 9.0]]])
    expected = [[1.2, 0.8], [0.5 * 17 * 5 / 48 + 0.5, 0.5 * -31 * 5 / 48 + 0.5]]
    assert torch.allclose(attend(positive, negative, 4.0)[:, 0], torch.tensor(expected))
    small = attend(positive / 100, negative / 100, 4.0)[:, 0]
    assert torch.allclose(small, torch.tensor(expected) / 100), "small features are treated alike"
    assert torch.allclose(attend(positive, negative, 0.0), positive)
    assert torch.equal(attend(positive * 0, negative * 0, 1.0), positive * 0), "nothing to divide by"


def test_attention_guidance_acts_alone_and_in_its_interval() -> None:
    guidance = Guidance(1.0, end=0.5, attention=4.0)
    assert [guidance.active(p) for p in (0.0, 0.4, 0.5)] == [True, True, False]
    with pytest.raises(ValueError, match="attention guidance 4 with the guidance scale 3, expected scale 1"):
        Guidance(3.0, attention=4.0)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"Got attention guidance {wrong}, expected a finite number of 0"):
            Guidance(1.0, attention=wrong)


def test_a_model_without_guided_attention_is_refused() -> None:
    class Plain:
        name = "plain"

    class Guided(Plain):
        def attended(self) -> None:
            """Found, not called."""

    model = Guided()
    assert require_attention(model) == model.attended
    with pytest.raises(ValueError) as error:
        require_attention(Plain())
    assert str(error.value) == (
        "Got attention guidance for plain, whose attention cannot be guided here; expected a model with "
        "cross-attention (Stable Diffusion 1, 2, XL). Try a guidance scale above 1 instead."
    )
