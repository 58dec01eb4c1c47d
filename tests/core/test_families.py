"""Every model family on a small random pipeline of its real architecture: pictures equal to those of diffusers' own
pipeline, gradients equal to finite differences, and a note of what is read beside the tokens."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from doubles import Curved
from pipelines import BUILDERS, build
from torch import Tensor

from reneg_core.backends import DiffusersModel, wrap
from reneg_core.model import Conditioning
from reneg_core.sampling import Sampling, Size, sample
from reneg_core.training import Batch, Reach, reward_gradient

PROMPTS, NEGATIVE, SCALE = ["a red circle", "blue"], "ugly blur", 4.0
SIZE = Size(16, 32)
DPM = {"pixart", "pixart_told", "pixart_sigma"}
PIXART = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": 24}
OPTIONS = {
    **dict.fromkeys(DPM, PIXART),
    "sd3": {"max_sequence_length": 24},
    "chroma": {"max_sequence_length": 24},
    "flux": {"max_sequence_length": 24, "true_cfg_scale": SCALE, "guidance_scale": 3.5},
    "flux_guided": {"max_sequence_length": 24, "true_cfg_scale": SCALE, "guidance_scale": 3.5},
}


@pytest.fixture(scope="module", params=[name for name in BUILDERS if not name.startswith("sd1")])
def family(request: pytest.FixtureRequest) -> Iterator[DiffusersModel]:
    """SD1.x has tests of its own in this folder."""
    return wrap(build(request.param), request.param)


def sampling_of(model: DiffusersModel, **changes: object) -> Sampling:
    """Four steps on the pipeline's own grid with the solver that it has."""
    return Sampling("dpmpp_2m" if model.name in DPM else "euler", 4, size=SIZE).at_scale(SCALE).changed(**changes)


def negative_of(model: DiffusersModel) -> Conditioning:
    """As a learned one may be: every token moved and attended to, the pooled vector too."""
    null, source = model.encode([""]), torch.Generator().manual_seed(5)
    moved = null.map(lambda t: t + 0.3 * torch.randn(t.shape, generator=source) if t.is_floating_point() else t)
    return replace(moved, mask=None if null.mask is None else torch.ones_like(null.mask))


def ours(model: DiffusersModel, negative: Conditioning, sampling: Sampling) -> Tensor:
    return model.decode(sample(model, model.encode(PROMPTS), negative, model.noise([3, 4], sampling.size), sampling))


def theirs(model: DiffusersModel, steps: int, **text: object) -> Tensor:
    pipe = model.pipeline
    pipe.set_progress_bar_config(disable=True)
    options = {"guidance_scale": SCALE, "height": SIZE.height, "width": SIZE.width, **OPTIONS.get(model.name, {})}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    found = pipe(num_inference_steps=steps, generator=generators, output_type="pt", **options, **text)
    return found.images.float()


def as_options(model: DiffusersModel, positive: Conditioning, negative: Conditioning) -> dict[str, Tensor]:
    """Conditionings as diffusers' pipelines take them."""
    found = {}
    for prefix, part in (("", positive), ("negative_", negative.expand(2))):
        mask = part.mask.float() if model.name == "chroma" else part.mask
        names = {"prompt_embeds": part.tokens, "prompt_attention_mask": mask, "pooled_prompt_embeds": part.pooled}
        found |= {f"{prefix}{name}": tensor for name, tensor in names.items() if tensor is not None}
    return found | ({"negative_prompt": None} if model.name in DPM else {})


@pytest.mark.parametrize("kind", ["text", "embedding"])
def test_pictures_equal_the_pipelines_own(family: DiffusersModel, kind: str) -> None:
    negative = family.encode([NEGATIVE]) if kind == "text" else negative_of(family)
    if kind == "text":
        options = {"prompt": PROMPTS, "negative_prompt": [NEGATIVE] * 2}
    else:
        options = as_options(family, family.encode(PROMPTS), negative)
    found, expected = ours(family, negative, sampling_of(family)), theirs(family, 4, **options)
    assert found.shape == (2, 3, SIZE.height, SIZE.width)
    assert (found - expected).abs().max() <= 1e-3
    assert (found - ours(family, family.encode([""]), sampling_of(family))).abs().max() > 1e-2


def value(model: DiffusersModel, negative: Conditioning, through: int, of: str = "") -> tuple[float, Tensor | None]:
    """The reward of the estimate ``through`` steps on, from pure noise, and its gradient."""
    batch = Batch(PROMPTS, model.encode(PROMPTS), model.noise([1, 2], SIZE))
    found = reward_gradient(model, Curved(), batch, negative, sampling_of(model), Reach([0], through))
    return found.rewards.double().sum().item(), getattr(found, of, None)


def moved(negative: Conditioning, of: str, by: Tensor) -> Conditioning:
    return replace(negative, **{of: getattr(negative, of) + by})


@pytest.mark.parametrize("through", [1, 2])
@pytest.mark.parametrize("of", ["tokens", "pooled"])
def test_gradient_equals_central_differences(family: DiffusersModel, of: str, through: int) -> None:
    """Along the gradient itself, which a wrong direction cannot pass either."""
    negative = negative_of(family)
    if getattr(negative, of) is None:
        assert "pooled" not in family.widths
        return
    _, gradient = value(family, negative, through, of)
    norm = gradient.norm().item()
    step = 0.01 * getattr(negative, of).norm() / norm * gradient
    up, down = (value(family, moved(negative, of, sign * step), through)[0] for sign in (1, -1))
    assert norm > 1e-4
    assert (up - down) / (2 * step.norm().item()) == pytest.approx(norm, rel=0.02)
