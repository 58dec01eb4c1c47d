"""The published ReNeg files drive the models that they are for: small random denoisers of the full text width."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import pipeline
from pipelines import ltx, pixart, zeroscope

from reneg_core import load_embedding
from reneg_core.backends import wrap
from reneg_core.sampling import Sampling, Size, sample

STABLE = {768: partial(pipeline, width=768, tokens=77), 1024: partial(pipeline, "v_prediction", 1024, tokens=77)}
PAIRS: dict[str, tuple[str, Callable[[], Any], Size]] = {
    "SD1.4": ("sd1.4", STABLE[768], Size(16, 16)),
    "SD1.5": ("sd1.5", STABLE[768], Size(16, 16)),
    "SD2.1": ("sd2.1", STABLE[1024], Size(16, 16)),
    "PixArt-alpha": ("pixart-alpha", partial(pixart, width=4096), Size(16, 16)),
    "ZeroScope and VideoCrafter2": ("sd2.1", partial(zeroscope, 1024, 77), Size(16, 16, 2)),
    "LTX-Video": ("pixart-alpha", partial(ltx, 4096), Size(32, 32, 3)),
}


@pytest.mark.parametrize("target", PAIRS)
def test_a_published_file_drives_its_models(shared_data: Path, target: str) -> None:
    name, built, size = PAIRS[target]
    torch.manual_seed(0)
    model = wrap(built(), target)
    embedding = load_embedding(shared_data / "reneg" / f"{name}_reneg_emb.bin")
    embedding.require(model.family, model.width, model.max_tokens)
    positive, noise = model.encode(["fox"]), model.noise([1], size)
    sampling = Sampling(steps=2, size=size).at_scale(4.0)
    negatives = {"none": model.encode([""]), "published": embedding.conditioning()}
    found = {kind: model.decode(sample(model, positive, n, noise, sampling)) for kind, n in negatives.items()}
    assert found["published"].isfinite().all() and found["published"].std() > 1e-3
    assert (found["published"] - found["none"]).abs().max() > 1e-3


def test_the_file_that_the_abstract_names_does_not_fit_video(shared_data: Path) -> None:
    model = wrap(zeroscope(1024, 77), "zeroscope")
    embedding = load_embedding(shared_data / "reneg" / "sd1.5_reneg_emb.bin")
    with pytest.raises(ValueError, match=r"the text encoder clip-l .*this model uses openclip-h .*sd2\.1_reneg_emb"):
        embedding.require(model.family, model.width)
