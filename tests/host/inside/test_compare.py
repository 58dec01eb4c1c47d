"""Compare Negatives on the host's MODEL: the same noise and the same sampling for every negative."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from reneg_pack.nodes.compare import CompareNegatives
from reneg_pack.nodes.host import rewards
from reneg_pack.nodes.layout import to_host

from reneg_core.embedding import NegativeEmbedding, Provenance
from reneg_core.sampling import Sampling

INPUTS = {
    "prompts": "a red house\na blue bird",
    "seeds": 1,
    "first_seed": 0,
    "adapted": False,
    "width": 64,
    "height": 64,
    "sampling_steps": 4,
    "cfg": 4.0,
    "micro_batch": 4,
    "scheduler": "normal",
}


@pytest.fixture()
def compared(call: Callable[..., Any], checkpoint: tuple) -> Callable[..., Any]:
    """Runs the node with ``INPUTS`` and changes."""
    model, clip, vae = checkpoint
    reward = rewards.load("brightness", None, torch.float32)
    return lambda **changes: call(
        CompareNegatives, model=model, clip=clip, vae=vae, reward=reward, **{**INPUTS, **changes}
    )


def scores(out: Any) -> dict[str, Any]:
    return json.loads(out[2])["scores"]["brightness"]


def test_every_negative_is_scored_on_the_same_noise(compared, embedding) -> None:
    out = compared(text_negative=to_host(embedding), embedding=embedding)
    found = scores(out)
    assert found["text"] == found["embedding"], "the same negative by two inputs gives the same pictures"
    assert found["none"] != found["embedding"]
    assert out[0].ndim == 4 and out[1].ndim == 4


def test_solver_and_scheduler_are_those_of_the_inputs(compared) -> None:
    changes = ({}, {"solver": "euler"}, {"solver": "dpmpp_2m"}, {"scheduler": "karras"})
    plain, euler, multistep, karras = (scores(compared(prompts="a", **change))["none"] for change in changes)
    assert plain == euler and plain != multistep and plain != karras


def test_an_adapted_negative_is_not_worse_than_its_start(compared, embedding) -> None:
    found = scores(compared(prompts="a", sampling_steps=2, adapted=True, embedding=embedding))
    assert found["adapted"][0][0] >= found["embedding"][0][0] - 1e-6
    with pytest.raises(ValueError, match="no embedding to adapt"):
        compared(adapted=True)


def test_another_sampling_than_the_embeddings_is_told(compared, embedding) -> None:
    def told(sampling: Sampling) -> bool:
        made = replace(embedding, provenance=Provenance(sampling=sampling.to_mapping()))
        return (
            f"the embedding was learned for {sampling.describe()}"
            in compared(prompts="a", embedding=made).ui["text"][0]
        )

    same = Sampling("ddim", 4).at_scale(4.0)
    assert not told(same) and told(same.at_scale(7.5))


def test_a_text_negative_that_cannot_be_carried_is_refused(compared, positive) -> None:
    [[tokens, extra]] = positive
    with pytest.raises(ValueError, match="with control, which cannot be carried"):
        compared(text_negative=[[tokens, {**extra, "control": object()}]])


def test_masked_tokens_are_cut_where_the_model_reads_no_mask(compared, embedding) -> None:
    mask = torch.ones(1, 77, dtype=torch.int64)
    mask[:, 40:] = 0
    masked = scores(compared(prompts="a", embedding=replace(embedding, mask=mask)))
    cut = scores(compared(prompts="a", embedding=NegativeEmbedding(embedding.tokens[:, :40], embedding.family)))
    assert masked == cut and masked != scores(compared(prompts="a", embedding=embedding))
