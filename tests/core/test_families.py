"""Every model family on a small random pipeline of its real architecture: pictures equal to those of diffusers' own
pipeline, gradients equal to finite differences."""

from collections.abc import Iterator

import pytest
import torch
from agreement import CLIPS, NEGATIVE, SIZE, gradient_error, negative_of, ours, picture_difference, sampling_of
from pipelines import BUILDERS, build

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.conventions import FAMILIES


@pytest.fixture(scope="module", params=[name for name in BUILDERS if not name.startswith("sd1")])
def family(request: pytest.FixtureRequest) -> Iterator[DiffusersModel]:
    """SD1.x has tests of its own in this folder."""
    return wrap(build(request.param), request.param)


@pytest.mark.parametrize("kind", ["text", "embedding"])
def test_pictures_equal_the_pipelines_own(family: DiffusersModel, kind: str) -> None:
    assert picture_difference(family, kind) <= 1e-3


def test_a_prompt_is_encoded_by_the_convention(family: DiffusersModel) -> None:
    """The small tokenizers are shorter than the convention's length."""
    convention, found = FAMILIES[family.conventions[0]], family.encode([NEGATIVE, ""])
    assert (found.mask is not None, found.pooled is not None) == (convention.masked, convention.pooled > 0)
    assert found.tokens.shape[2] == family.width and found.tokens.dtype == torch.float32
    assert found.mask is None or (found.mask.sum(1).diff() < 0).all()


def test_the_negative_is_seen_in_the_picture(family: DiffusersModel) -> None:
    text, learned, null = (
        ours(family, negative, sampling_of(family))
        for negative in (family.encode([NEGATIVE]), negative_of(family), family.encode([""]))
    )
    size = CLIPS.get(family.name, SIZE)
    assert text.shape == (2, *([size.frames] if size.frames else []), 3, size.height, size.width)
    assert (text - null).abs().max() > 1e-2 and (learned - null).abs().max() > 1e-2


@pytest.mark.parametrize("through", [1, 2])
def test_gradient_equals_central_differences(family: DiffusersModel, through: int) -> None:
    assert gradient_error(family, "tokens", through) <= 0.02
    if "pooled" in family.widths:
        assert gradient_error(family, "pooled", through) <= 0.02


def test_recomputing_activations_leaves_the_gradient_as_it_is(family: DiffusersModel) -> None:
    family.checkpointing(True)
    try:
        assert gradient_error(family, "tokens", 2) <= 0.02
    finally:
        family.checkpointing(False)


@pytest.mark.parametrize(
    ("name", "tokenizer", "length"),
    [
        ("pixart", "tokenizer", 120),
        ("pixart_sigma", "tokenizer", 300),
        ("sd3", "tokenizer_3", 16 + 256),
        ("flux", "tokenizer_2", 512),
        ("chroma", "tokenizer", 512),
        ("ltx", "tokenizer", 128),
    ],
)
def test_prompts_are_padded_to_the_conventions_length(name: str, tokenizer: str, length: int) -> None:
    """With a tokenizer as long as published ones; the small CLIP tokenizer of SD3 keeps its 16."""
    built = build(name)
    getattr(built, tokenizer).model_max_length = 512
    assert wrap(built, name).encode(["fox"]).tokens.shape[1] == length


def test_a_vae_that_overflows_in_half_precision_is_kept_in_single() -> None:
    half = wrap(build("sdxl").to(torch.float16), "half")
    assert half.dtype == torch.float16 and half.pipeline.vae.dtype == torch.float32
