"""The negatives that people compare, built on a model with a closed form."""

from dataclasses import replace

import pytest
import torch
from evaluations import GreyModel, grey, level

from reneg_core.embedding import NegativeEmbedding
from reneg_core.evaluation import Judges, Keep, Pairs, Rivals, Words, build_modes, compare_rivals, exaggerate, fitted
from reneg_core.evaluation import modes as module
from reneg_core.model import Conditioning
from reneg_core.rewards.smoke import Brightness
from reneg_core.sampling import Sampling
from reneg_core.training import AdaptConfig
from reneg_core.training.workers import Workers

PAIRS = Pairs(("dark", "bright"), ((0, 1), (2, 3)))
SAMPLING = Sampling(steps=3).at_scale(1.5)


def learned(value: float, **parts: torch.Tensor) -> NegativeEmbedding:
    return NegativeEmbedding(level(value).tokens, "grey", **parts)


@pytest.fixture
def adapted(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Stands in for the adaptation: notes what it is asked for, gives pair i the grey i / 10, two pairs at a time."""
    asked = []

    def adapt(model, reward, prompts, seeds, start, config, *, progress, workers):
        assert model.name == "grey" and isinstance(reward, Brightness)
        asked.append((list(prompts), list(seeds), start, config))
        for _ in range(0, len(prompts), 2):
            progress(2)
        return type("Result", (), {"negatives": level(*(i / 10 for i in range(len(prompts))))})

    monkeypatch.setattr(module, "adapt", adapt)
    return asked


def test_modes_come_in_the_order_of_a_comparison(adapted: list) -> None:
    """light is 0.1 and the empty prompt 0: at strength 2.5 that is 0.25."""
    rivals = Rivals(
        texts={"text": Words("light"), "best_text": Words("light", 2.5)},
        encoded={"other": level(0.7)},
        embeddings={"embedding": learned(-0.2), "embedding_2": learned(-0.3)},
        adapted=AdaptConfig.for_sampling(SAMPLING),
        labels={"embedding_2": "second"},
    )
    found = build_modes(GreyModel(), PAIRS, rivals, reward=Brightness())
    assert list(found) == ["none", "text", "best_text", "other", "embedding", "embedding_2", "adapted"] == rivals.names
    wanted = [[0.0], [0.1], [0.25], [0.7], [-0.2], [-0.3], [0.0, 0.1, 0.2, 0.3]]
    assert [mode.negative.tokens[:, 0, 0].tolist() for mode in found.values()] == [pytest.approx(w) for w in wanted]
    labels = ["empty prompt", "“light”", "“light” × 2.5", "", "learned", "second", "learned + adapted"]
    assert [mode.label for mode in found.values()] == labels


def test_adaptation_gets_every_pair_and_the_first_embedding(adapted: list) -> None:
    config, first, progress = AdaptConfig.for_sampling(SAMPLING.at_scale(4)), learned(-0.2), []
    rivals = Rivals(embeddings={"embedding": first, "embedding_2": learned(-0.3)}, adapted=config)
    found = build_modes(GreyModel(), PAIRS, rivals, reward=Brightness(), progress=lambda *at: progress.append(at))
    assert adapted == [(["dark", "dark", "bright", "bright"], [0, 1, 2, 3], first, config)]
    assert progress == [(2, 4), (4, 4)]
    assert found["adapted"].sampling == SAMPLING.at_scale(4), "it is judged as it was adapted"
    build_modes(GreyModel(), PAIRS, replace(rivals, embeddings={}, start=first), reward=Brightness())
    assert adapted[1] == adapted[0], "an embedding need not be a mode to be adapted"


def test_processes_share_the_adaptation_and_the_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Noted(Workers):
        def rounds(self, items, work):
            asked.append(len(items))
            return super().rounds(items, work)

    monkeypatch.setattr(module, "adapt", lambda *_, workers, **__: type("R", (), {"negatives": level(*(4 * [0.1]))})
                        if list(workers.rounds(range(9), str)) else None)  # fmt: skip
    rivals = Rivals(embeddings={"embedding": learned(-0.2)}, adapted=AdaptConfig.for_sampling(SAMPLING))
    judges = Judges({"level": grey}, climbed=Brightness())
    compare_rivals(GreyModel(), PAIRS, rivals, judges, SAMPLING, batch_size=2, workers=Noted())
    assert asked == [9, 2], "nine of the adaptation that stands in, two batches"


def test_samplings_go_to_their_modes() -> None:
    found = build_modes(GreyModel(), PAIRS, Rivals(texts={"text": Words("light")}, samplings={"text": SAMPLING}))
    assert (found["none"].sampling, found["text"].sampling) == (None, SAMPLING)


def test_tuned_models_come_with_and_without_the_first_embedding() -> None:
    """Each with the empty prompt as *it* encodes it."""

    class Tuned(GreyModel):
        def encode(self, prompts):
            return level(*({"": 0.5}[prompt] for prompt in prompts))

    tuned = {"one": Tuned(), "two": Tuned()}
    embeddings = {"embedding": learned(-0.2), "embedding_2": learned(-0.3)}
    rivals = Rivals(
        embeddings=embeddings,
        tuned=tuned,
        samplings={"two": SAMPLING},
        labels={"one": "first", "two+embedding": "both"},
    )
    found = build_modes(GreyModel(), PAIRS, rivals)
    assert list(found) == rivals.names
    assert list(found)[3:] == ["one", "one+embedding", "two", "two+embedding"]
    of_tuned = [found[name] for name in list(found)[3:]]
    assert [mode.model for mode in of_tuned] == [tuned["one"]] * 2 + [tuned["two"]] * 2
    assert [mode.negative.tokens[0, 0, 0].item() for mode in of_tuned] == [
        pytest.approx(v) for v in (0.5, -0.2, 0.5, -0.2)
    ]
    assert [mode.label for mode in of_tuned] == ["first", "one + learned", "two", "both"]
    assert [mode.sampling for mode in of_tuned] == [None, None, SAMPLING, None]
    assert [mode.model for mode in list(found.values())[:3]] == [None] * 3
    alone = Rivals(tuned=tuned)
    assert alone.names == list(build_modes(GreyModel(), PAIRS, alone)) == ["none", "one", "two"]


def test_without_the_empty_prompt() -> None:
    assert list(build_modes(GreyModel(), PAIRS, Rivals(none=False, texts={"text": Words("light")}))) == ["text"]


def test_compare_builds_adapts_and_judges(adapted: list) -> None:
    """At 1.5 times the prompt's grey: none 0.3 and 0.9 on average 0.615 with the noise; the embedding adds 0.05."""
    stages = []
    rivals = Rivals(embeddings={"embedding": learned(-0.1)}, adapted=AdaptConfig.for_sampling(SAMPLING))
    judges = Judges({"m": grey}, {"m": lambda i, p: {"all": grey(i, p)}}, Brightness(), {"m": "the grey", "x": "no"})
    found = compare_rivals(
        GreyModel(), PAIRS, rivals, judges, SAMPLING.changed(steps=1), keep=Keep(2), batch_size=3,
        progress=lambda *at: stages.append(at),
    )  # fmt: skip
    assert found.mean("m", "none").value == pytest.approx(0.615)
    assert found.difference("m", "embedding", "none").value == pytest.approx(0.05)
    assert found.part("m", "all", "none").value == pytest.approx(0.615) and found.labels["m"] == "the grey"
    assert "x" not in found.labels and len(found.pictures.pairs) == 2 and found.settings["batch_size"] == 3
    assert [stage for stage, _, _ in stages] == ["adapting"] * 2 + ["judging"] * 6
    assert stages[-1] == ("judging", 12, 12)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"adapted": AdaptConfig()},
            "^Got no embedding to adapt, expected one. Give one, or leave the adapted mode out.$",
        ),
        ({"encoded": {"none": level(0.1)}}, "Got two modes called 'none'"),
        ({"samplings": {"text": SAMPLING}}, "Got a sampling for the mode 'text', expected one of none"),
        (
            {"encoded": {"light": level(0.1)}, "samplings": {"text": SAMPLING}},
            "Got a sampling for the mode 'text', expected one of none, light.$",
        ),
        (
            {"adapted": AdaptConfig(), "start": learned(0.1), "samplings": {"adapted": SAMPLING}},
            "^Got another sampling for the adapted mode than for its adaptation, expected the same.$",
        ),
    ],
)
def test_rivals_that_cannot_be(parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rivals(**parts)


@pytest.mark.parametrize(
    ("rivals", "message"),
    [
        (Rivals(embeddings={"e": NegativeEmbedding(torch.zeros(1, 2, 5), "other")}), "Got an embedding for the text"),
        (
            Rivals(adapted=AdaptConfig(), start=learned(0.1)),
            "^Got no reward for the adapted mode, expected the one that it is to climb.$",
        ),
        (
            Rivals(adapted=AdaptConfig(), start=NegativeEmbedding(torch.zeros(1, 2, 5), "other")),
            "Got an embedding for the text",
        ),
    ],
)
def test_refused_before_any_work(rivals: Rivals, message: str) -> None:
    model = GreyModel()
    with pytest.raises(ValueError, match=message):
        build_modes(model, PAIRS, rivals)
    assert model.prepared == 0


def test_an_embedding_of_too_many_tokens_is_refused_before_any_work() -> None:
    model = GreyModel()
    model.max_tokens = 1
    with pytest.raises(ValueError, match="Got an embedding of 2 tokens, this model takes at most 1"):
        build_modes(model, PAIRS, Rivals(embeddings={"e": learned(0.1)}))
    assert model.prepared == 0


def test_exaggeration_follows_the_formula() -> None:
    null = Conditioning(level(0.1).tokens, pooled=torch.tensor([[1.0]]))
    text = Conditioning(level(0.3).tokens, pooled=torch.tensor([[2.0]]))
    assert exaggerate(null, text, 1) is text
    strong = exaggerate(null, text, 3)
    assert strong.tokens[0, 0, 0].item() == pytest.approx(0.7) and strong.pooled.item() == pytest.approx(4)
    assert exaggerate(null, text, 0).tokens[0, 0, 0].item() == pytest.approx(0.1)
    told = "^Got a text of 4 tokens where the empty prompt has 2, expected equal numbers. Try a shorter text, or"
    with pytest.raises(ValueError, match=f"{told} strength 1.$"):
        exaggerate(null, Conditioning(torch.zeros(1, 4, 3)), 2)


def test_fitted_has_the_parts_that_the_model_reads() -> None:
    tokens, pooled, ones = torch.zeros(2, 4, 3), torch.ones(2, 5), torch.ones(2, 4)
    plain = Conditioning(torch.zeros(1, 2, 3))
    rich = Conditioning(torch.zeros(1, 2, 3), torch.ones(1, 2), torch.full((1, 5), 7.0))
    bare = fitted(Conditioning(tokens, ones, pooled), plain)
    assert bare.mask is None and bare.pooled is None and bare.tokens.shape == (1, 4, 3)
    whole = fitted(Conditioning(tokens, ones, pooled), rich)
    assert torch.equal(whole.mask, ones[:1]) and torch.equal(whole.pooled, pooled[:1])
    assert torch.equal(fitted(Conditioning(tokens), rich).pooled, rich.pooled)
    with pytest.raises(
        ValueError, match="hides 2 tokens for a model that reads no masks; expected an embedding made for"
    ):
        fitted(Conditioning(tokens, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])), plain)
