"""Without a host: guidance as patches of the host's model, what a KSampler is asked for, and the note under Compare."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluations import evaluation
from torch import Tensor

from reneg_core.embedding import NegativeEmbedding, Provenance
from reneg_core.evaluation import Evaluation, Pairs
from reneg_core.guidance import Guidance, rescale
from reneg_core.sampling import Sampling, Size

from .fake_host import imported


@pytest.fixture(scope="module")
def sampling() -> Iterator[Any]:
    with imported("host.sampling") as [module]:
        yield module


@pytest.fixture(scope="module")
def compare() -> Iterator[Any]:
    with imported("compare") as [module]:
        yield module


class Patcher:
    """A host's model: share p of the schedule is at level 10 * (1 - p)."""

    def __init__(self, options: dict | None = None) -> None:
        self.model_options, self.post = options or {}, []

    def clone(self) -> "Patcher":
        return Patcher(dict(self.model_options))

    def set_model_sampler_post_cfg_function(self, function: Any) -> None:
        self.post.append(function)

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return SimpleNamespace(percent_to_sigma=lambda share: 10 * (1 - share))


def test_neutral_guidance_leaves_the_hosts_model_alone(sampling: Any) -> None:
    model = Patcher()
    assert sampling.guided(model, Guidance(7.0)) is model and not model.model_options and not model.post


def test_outside_the_interval_the_positive_runs_alone_and_stands_for_both(sampling: Any) -> None:
    """From 0.2 to 0.6 of the schedule: levels 8 down to, but without, 4."""
    asked: list[list] = []

    def calculate(args: dict) -> list[Tensor]:
        asked.append(args["conds"])
        return [torch.full((1,), float(len(asked))) for _ in args["conds"]]

    model = Patcher({"sampler_calc_cond_batch_function": calculate, "other": 1})
    patched = sampling.guided(model, Guidance(5.0, start=0.2, end=0.6))
    assert model.model_options["sampler_calc_cond_batch_function"] is calculate and not patched.post
    run = patched.model_options["sampler_calc_cond_batch_function"]
    for level, both in ((9.0, False), (8.01, False), (8.0, True), (4.01, True), (4.0, False), (0.1, False)):
        found = run({"conds": ["positive", "negative"], "sigma": torch.tensor([level, level])})
        assert asked[-1] == (["positive", "negative"] if both else ["positive"])
        assert len(found) == 2 and torch.equal(found[0], found[1])


def test_without_another_patch_the_hosts_own_function_runs(sampling: Any) -> None:
    sampling.comfy.samplers.calc_cond_batch = lambda *given: [given, None]
    run = sampling.guided(Patcher(), Guidance(5.0, end=0.5)).model_options["sampler_calc_cond_batch_function"]
    args = {"model": 1, "conds": [2, 3], "input": 4, "sigma": torch.tensor([9.0]), "model_options": 5}
    assert run(args)[0] == (1, [2, 3], 4, args["sigma"], 5)


def test_rescale_is_the_cores_after_guidance(sampling: Any) -> None:
    patched = sampling.guided(Patcher(), Guidance(5.0, rescale=0.4))
    [function] = patched.post
    guided, positive = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    assert torch.equal(function({"denoised": guided, "cond_denoised": positive}), rescale(guided, positive, 0.4))
    assert "sampler_calc_cond_batch_function" not in patched.model_options


def test_a_ksampler_gets_what_its_inputs_say(sampling: Any) -> None:
    asked: dict[str, Any] = {}

    def sample(*given: Any, **named: Any) -> str:
        asked.update(given=given, **named)
        return "samples"

    sampling.comfy.sample.fix_empty_latent_channels = lambda model, latents: ("fixed", latents)
    sampling.comfy.sample.prepare_noise = lambda image, seed, index: ("noise", image, seed, index)
    sampling.comfy.sample.sample = sample
    sampling.comfy.utils.PROGRESS_BAR_ENABLED = True
    sampling.latent_preview.prepare_callback = lambda model, steps: ("preview", model, steps)
    latent = {"samples": "empty", "batch_index": [3], "noise_mask": "mask", "kept": 1}
    settings = {"seed": 7, "steps": 12, "cfg": 4.5, "sampler": "euler", "scheduler": "karras", "denoise": 0.6}
    found = sampling.sample("model", ["positive"], ["negative"], latent, **settings)
    assert found == {**latent, "samples": "samples"} and latent["samples"] == "empty"
    image = ("fixed", "empty")
    noise = ("noise", image, 7, [3])
    assert asked.pop("given") == ("model", noise, 12, 4.5, "euler", "karras", ["positive"], ["negative"], image)
    preview = ("preview", "model", 12)
    assert asked == {"denoise": 0.6, "noise_mask": "mask", "callback": preview, "disable_pbar": False, "seed": 7}


def test_the_note_has_means_and_win_rates_against_the_empty_prompt(compare: Any) -> None:
    """Three prompts; the text wins one, the embedding two and draws the third."""
    scores = {
        "none": [[0.10], [0.20], [0.30]], "text": [[0.05], [0.15], [0.35]], "embedding": [[0.2], [0.3], [0.3]],
    }  # fmt: skip
    result = Evaluation(Pairs.own(("a", "b", "c"), 1), {"brightness": scores}, labels=compare.LABELS)
    assert compare.win_rates(result).splitlines() == [
        "empty prompt: 0.2000",
        "negative prompt: 0.1833",
        "ReNeg embedding: 0.2667",
        "negative prompt wins 33% against the empty prompt",
        "ReNeg embedding wins 83% against the empty prompt",
    ]


def test_the_note_judges_by_the_only_measure(compare: Any) -> None:
    with pytest.raises(ValueError, match="too many values"):
        compare.win_rates(evaluation())


def test_the_note_tells_of_an_embedding_that_was_learned_for_another_sampling(compare: Any) -> None:
    learned = Sampling("dpmpp_2m", 20, "karras").at_scale(4.0)
    origin = Provenance(sampling=learned.to_mapping())
    embedding = NegativeEmbedding(torch.zeros(1, 2, 768), provenance=origin)
    assert compare.elsewhere(embedding, learned) == compare.elsewhere(None, learned) == ""
    assert compare.elsewhere(embedding, learned.changed(height=512, width=768)) == "", "the size is the node's own"
    assert compare.elsewhere(embedding, learned.at_scale(7.0)) == (
        "the embedding was learned for 20 DPM-Solver++(2M) steps, karras spacing, guidance scale 4 "
        "(in KSampler: dpmpp_2m and karras)"
    )
    silent = NegativeEmbedding(torch.zeros(1, 2, 768))
    assert compare.elsewhere(silent, learned) == ""
    euler = NegativeEmbedding(torch.zeros(1, 2, 768), provenance=Provenance(sampling=Sampling("ddim").to_mapping()))
    assert compare.elsewhere(euler, Sampling("euler", size=Size(64, 64))) == ""


def test_every_picture_of_a_comparison_has_a_seed_of_its_own(compare: Any) -> None:
    pairs = compare.counted_pairs(["a", "b", "c"], 2, 10)
    assert pairs.prompts == ("a", "b", "c") and pairs.seeds == ((10, 11), (12, 13), (14, 15)) and not pairs.crossed
    assert compare.counted_pairs(["a"], 1, 0).seeds == ((0,),)
