"""Evaluation on a model with a closed form: every picture is one grey level that can be worked out by hand."""

import json
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from reneg_core.evaluate import Evaluation, Mode, evaluate
from reneg_core.guidance import Guidance
from reneg_core.model import Conditioning
from reneg_core.rewards.smoke import Brightness
from reneg_core.sampling import sample

GREY = {"dark": 0.2, "bright": 0.6}


class GreyModel:
    """One step gives the grey ``negative + scale * (positive - negative) + 0.01 * seed``; latents are half as big."""

    name, family, width, max_tokens, device = "grey", "grey", 3, None, torch.device("cpu")

    def __init__(self) -> None:
        self.prepared = 0
        self.batches: list[int] = []

    def run(self, work: Callable) -> object:
        self.prepared += 1
        return work(self)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return level(*(GREY[prompt] for prompt in prompts))

    def sigmas(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1)

    def noise(self, seeds: Sequence[int], height: int | None = None, width: int | None = None) -> Tensor:
        self.batches.append(len(seeds))
        shape = (1, (height or 4) // 2, (width or 4) // 2)
        return torch.stack([torch.full(shape, float(seed)) for seed in seeds])

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def finish(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def denoise(self, x: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        return conditioning.tokens[:, :1, :1, None].expand_as(x) + 0.01 * x

    def decode(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1).clamp(0, 1)


def level(*values: float) -> Conditioning:
    return Conditioning(torch.tensor(values)[:, None, None].expand(-1, 2, 3).contiguous())


MODES = {"none": Mode(level(0.0), "empty prompt"), "good": Mode(level(-0.1))}
PROMPTS, SEEDS = ["dark", "bright"], [0, 1, 2]


def grey(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3))


def run(
    model: GreyModel | None = None,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = SEEDS,
    modes: dict = MODES,
    measures: dict | None = None,
    **options: object,
) -> Evaluation:
    options = {"guidance_scale": 1.5, "steps": 1, **options}
    return evaluate(model or GreyModel(), prompts, seeds, modes, measures or {"reward": grey}, **options)


def test_scores_are_the_closed_form() -> None:
    """none: 1.5 * positive; good: 1.5 * positive + 0.05; and 0.01 per seed for both, whatever the batches."""
    expected = torch.tensor([[0.30, 0.31, 0.32], [0.90, 0.91, 0.92]])
    for batch_size in (1, 4, 100):
        scores = run(batch_size=batch_size).scores["reward"]
        assert torch.allclose(torch.tensor(scores["none"]), expected, atol=1e-6)
        assert torch.allclose(torch.tensor(scores["good"]), expected + 0.05, atol=1e-6)


def test_every_mode_starts_from_the_same_noise_drawn_once() -> None:
    model = GreyModel()
    run(model, batch_size=4)
    assert model.batches == [4, 2] and model.prepared == 1


def test_one_negative_per_pair() -> None:
    rows = level(0.0, 0.1, 0.2, 0.0, 0.0, 0.3)
    scores = run(modes={"adapted": Mode(rows)}, batch_size=4).scores["reward"]["adapted"]
    assert torch.allclose(torch.tensor(scores), torch.tensor([[0.30, 0.26, 0.22], [0.90, 0.91, 0.77]]), atol=1e-6)


def test_summary_and_json_round_trip() -> None:
    evaluation = run(measures={"reward": grey, "independent": lambda i, p: -grey(i, p)}, measure_labels={"reward": "R"})
    report = json.loads(json.dumps(evaluation.to_json()))
    assert report["none"]["reward_mean"] == pytest.approx(0.61)
    assert report["good"]["independent_mean"] == pytest.approx(-0.66)
    assert report["none"]["reward_interval"] == pytest.approx([0.31, 0.91])
    assert report["none"]["label"] == "empty prompt" and report["labels"]["reward"] == "R"
    first = report["win_rate"]["independent"]["none>good"]
    assert first["rate"] == 1 and first["interval"] == [1, 1]
    assert first["difference"] == pytest.approx(0.05)
    assert first["difference_interval"] == pytest.approx([0.05, 0.05])
    assert report["win_rate"]["reward"]["none>good"]["rate"] == 0
    assert report["pairs"] == 6 and report["prompts"] == PROMPTS and report["seeds"] == SEEDS
    assert report["settings"]["height"] == 4 and report["settings"]["model"] == "grey"
    assert Evaluation.from_json(report) == evaluation


def test_report_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="without prompts, scores"):
        Evaluation.from_json({"seeds": [], "labels": {}, "settings": {}, "versions": {}, "confidence": 0.95})


def test_ties_count_half() -> None:
    rows = {"a": [[1.0, 2.0], [3.0, 4.0]], "b": [[1.0, 1.0], [3.0, 5.0]]}
    evaluation = Evaluation(("p", "q"), (0, 1), {"m": rows})
    assert evaluation.win_rate("m", "a", "b").value == 0.5
    assert evaluation.win_rate("m", "b", "a").value == 0.5
    assert evaluation.win_rate("m", "a", "b").interval == (0.25, 0.75)
    assert evaluation.difference("m", "a", "b").value == 0


def test_kept_pictures_are_evenly_spaced_and_right() -> None:
    pictures = run(pictures=3, batch_size=4, height=6, width=8).pictures
    assert pictures.pairs == ((0, 0), (0, 2), (1, 1))
    assert pictures.images["good"].shape == (3, 3, 6, 8)
    assert torch.allclose(pictures.images["good"].mean((1, 2, 3)), torch.tensor([0.35, 0.37, 0.96]), atol=1e-6)
    assert run(pictures=2).pictures.pairs == ((0, 0), (1, 1))
    assert run().pictures.pairs == () and run().pictures.images == {}
    assert len(run(pictures=50).pictures.pairs) == 6


def test_one_prompt_and_one_pair() -> None:
    one = run(prompts=["dark"]).mean("reward", "none")
    assert one.value == pytest.approx(0.31) and one.interval == pytest.approx((0.30, 0.32))
    report = run(prompts=["dark"], seeds=[7]).to_json()
    assert report["none"]["reward_interval"] is None
    assert report["win_rate"]["reward"]["good>none"]["interval"] is None


def test_a_reward_that_ignores_prompts_is_a_measure() -> None:
    assert run(measures={"brightness": Brightness().score}).mean("brightness", "none").value == pytest.approx(0.61)


def test_nothing_is_recorded_for_gradients() -> None:
    negative = Conditioning(level(0.0).tokens.requires_grad_())
    seen = []
    run(modes={"n": Mode(negative)}, measures={"m": lambda i, p: seen.append(i.requires_grad) or grey(i, p)})
    assert seen == [False]


def test_progress_ends_at_the_number_of_pictures() -> None:
    calls = []
    run(batch_size=4, progress=lambda *call: calls.append(call))
    assert calls == [(4, 12), (8, 12), (10, 12), (12, 12)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": [], "modes": {}}, "Got no prompts and no modes"),
        ({"modes": {"wide": Mode(Conditioning(torch.zeros(1, 2, 5)))}}, "width 5 for the mode 'wide', expected 3"),
        ({"modes": {"two": Mode(level(0.0, 0.0))}}, "Got 2 negatives for the mode 'two', expected 1 or 6"),
        ({"modes": {"seeds": MODES["none"]}}, "Got a mode called 'seeds'"),
        ({"modes": {"a>b": MODES["none"]}}, "Got a mode called 'a>b'"),
        ({"modes": {"reward": MODES["none"]}}, "Got reward as a mode and as a measure"),
        ({"solver": "heun"}, "Got solver 'heun'"),
        ({"batch_size": 0}, "Got batch size 0"),
    ],
)
def test_refused_before_sampling(options: dict, message: str) -> None:
    model = GreyModel()
    with pytest.raises(ValueError, match=message):
        run(model, **options)
    assert model.prepared == 0


def test_a_measure_that_fails_is_named_with_its_pair() -> None:
    def broken(images: Tensor, prompts: list[str]) -> Tensor:
        return torch.tensor([float("nan") if p == "bright" else 0.0 for p in prompts])

    with pytest.raises(ValueError, match="Got nan from the measure 'm' for the mode 'none', prompt 'bright', seed 0"):
        run(measures={"m": broken})
    with pytest.raises(ValueError, match=r"Got shape \[\] from the measure 'm', expected a tensor \[6\]"):
        run(measures={"m": lambda images, prompts: images.mean()})


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ValueError, match="Got the mode 'x', expected one of none, good"):
        run().mean("reward", "x")
    with pytest.raises(ValueError, match="Got the measure 'x', expected one of reward"):
        run().mean("x", "none")


def test_stable_diffusion_end_to_end(model) -> None:
    """On the real architectures: the pictures are those of the sampler alone, for batches that split prompts."""
    modes = {"none": Mode(model.encode([""])), "text": Mode(model.encode(["ugly"]))}
    options = {"steps": 3, "guidance_scale": 4.0, "pictures": 4}
    whole = evaluate(model, ["a red fox", "blue"], [3, 4], modes, {"m": grey}, batch_size=4, **options)
    split = evaluate(model, ["a red fox", "blue"], [3, 4], modes, {"m": grey}, batch_size=3, **options)
    positive = model.encode(["a red fox", "a red fox", "blue", "blue"])
    noise, sigmas = model.noise([3, 4, 3, 4]), model.sigmas(3)
    latents = sample(model, positive, modes["text"].negative, noise, sigmas, Guidance(4.0))
    assert torch.equal(whole.pictures.images["text"], model.decode(latents))
    assert torch.allclose(whole.pictures.images["text"], split.pictures.images["text"], atol=1e-5)
    assert whole.settings["height"] == 16
