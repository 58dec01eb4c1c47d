"""Prompts that are encoded once, ahead, within bounds; and the text encoder's place meanwhile."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pipelines import build
from small import SmallModel

from reneg_core.backends import wrap
from reneg_core.backends.diffusers import DiffusersModel
from reneg_core.model import Conditioning, ForeseeingModel
from reneg_core.sampling import Sampling
from reneg_core.texts import LIMIT, Texts, foreseen, stacked

SAMPLING = Sampling(steps=2).at_scale(4.0)
CPU, CARD = torch.device("cpu"), torch.device("cpu:0")


class Encoder:
    """Rows of 8 bytes that say their prompt; notes what it encoded, and when it came and left."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, prompt: str) -> Conditioning:
        self.seen.append(prompt)
        return Conditioning(torch.tensor([[[float(ord(prompt)), 0.0]]]))

    @contextmanager
    def around(self) -> Iterator[None]:
        self.seen.append("(")
        yield
        self.seen.append(")")

    def read(self) -> str:
        found = "".join(self.seen)
        self.seen.clear()
        return found


def said(rows: Sequence[Conditioning]) -> str:
    return "".join(chr(int(row.tokens[0, 0, 0])) for row in rows)


def test_each_prompt_is_encoded_once_and_alone() -> None:
    encoder = Encoder()
    texts = Texts(encoder, encoder.around)
    assert said(texts.rows("abca")) == "abca" and encoder.read() == "(abc)"
    assert said(texts.rows("cab")) == "cab" and encoder.read() == ""
    assert said(texts.rows("xb")) == "xb" and encoder.read() == "(x)" and texts.held == 4 * 8


def test_what_is_coming_is_encoded_while_the_encoder_is_there() -> None:
    """From the first missing prompt on; one that is not among the coming ones is encoded by itself."""
    encoder = Encoder()
    texts = Texts(encoder, encoder.around, lambda: iter("abcbad"))
    assert said(texts.rows("b")) == "b" and encoder.read() == "(bcad)"
    assert said(texts.rows("abcd")) == "abcd" and said(texts.rows("e")) == "e" and encoder.read() == "(e)"


def test_the_limit_holds_and_the_encoder_comes_rarely() -> None:
    """Ten prompts twice with room for four: the encoder comes once for every four, and nothing is encoded in vain."""
    encoder, order, at = Encoder(), "abcdefghijabcdefghij", 0
    texts = Texts(encoder, encoder.around, lambda: order[at:], limit=32)
    for at in range(0, 20, 2):
        assert said(texts.rows(order[at : at + 2])) == order[at : at + 2] and texts.held <= 32
    assert encoder.read() == "(abcd)(efgh)(ijab)(cdef)(ghij)"


def test_what_is_needed_at_once_is_kept_whatever_the_limit() -> None:
    encoder = Encoder()
    texts = Texts(encoder, encoder.around, lambda: "abcdef", limit=16)
    assert said(texts.rows("abcd")) == "abcd" and encoder.read() == "(abcd)" and texts.held == 32
    assert said(texts.rows("eb")) == "eb" and encoder.read() == "(e)" and texts.held == 16


def test_what_is_kept_and_coming_is_not_encoded_again() -> None:
    encoder, order = Encoder(), ["abc"]
    texts = Texts(encoder, encoder.around, lambda: order[0], limit=24)
    texts.rows("a")
    order[0] = "dba"
    assert said(texts.rows("d")) == "d" and encoder.read() == "(abc)(d)" and texts.held == 24
    assert said(texts.rows("ba")) == "ba" and encoder.read() == "", "c went, which was not coming"


def test_a_failure_keeps_what_there_was() -> None:
    encoder = Encoder()

    def failing(prompt: str) -> Conditioning:
        if prompt == "c":
            raise MemoryError("out of memory")
        return encoder(prompt)

    texts = Texts(failing)
    with pytest.raises(MemoryError):
        texts.rows("abc")
    assert said(texts.rows("ab")) == "ab" and encoder.read() == "ab" and texts.held == 16


def test_rows_are_stacked_with_all_their_parts() -> None:
    one = Conditioning(torch.ones(1, 2, 3), torch.ones(1, 2), torch.ones(1, 4))
    found = stacked([one, one.map(lambda part: 2 * part)])
    assert found.tokens[:, 0, 0].tolist() == [1, 2] and found.mask.shape == (2, 2) and found.pooled[1, 0] == 2
    assert stacked([Conditioning(one.tokens)]).mask is None


@pytest.mark.parametrize("count", [9_000, 430])
def test_the_limit_in_prompts(count: int) -> None:
    tokens = 77 * 768 if count == 9_000 else 300 * 4096
    assert LIMIT / (tokens * 4) == pytest.approx(count, rel=0.02)


# a diffusers model


@pytest.fixture
def card(model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> DiffusersModel:
    """As if its device had a memory of its own: "cpu:0" is the card."""
    monkeypatch.setattr(DiffusersModel, "_accelerated", True)
    monkeypatch.setattr(model, "device", CARD)
    return model


def noted(model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Where the text encoder is sent, and the number of prompts of each of its passes."""
    encoder, found = model.pipeline.text_encoder, []
    to, forward = encoder.to, encoder.forward

    def noting(prompts: torch.Tensor, *rest: Any, **options: Any) -> Any:
        found.append(len(prompts))
        return forward(prompts, *rest, **options)

    monkeypatch.setattr(encoder, "to", lambda device: (found.append(device), to(device))[1])
    monkeypatch.setattr(encoder, "forward", noting)
    return found


def test_the_encoder_is_on_the_device_only_to_encode(card: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = noted(card, monkeypatch)
    with card.foreseeing(lambda: ["fox", "sun", "fox", "sea"]):
        assert card.encode(["fox", "sun"]).tokens.shape == (2, 16, 32)
        assert moved == [CARD, 1, 1, 1, CPU]
        card.encode(["sea", "fox"])
        assert moved == [CARD, 1, 1, 1, CPU], "known already"
        card.encode(["ice"])
        assert moved[5:] == [CARD, 1, CPU]
    assert moved[8:] == [CARD]
    card.encode(["fox", "sun"])
    assert moved[9:] == [2], "as ever"


def test_it_comes_back_whatever_happens(card: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = noted(card, monkeypatch)
    with pytest.raises(KeyError), card.foreseeing(tuple):
        raise KeyError
    assert moved == [CARD] and card._texts is None


def test_on_a_cpu_nothing_moves_and_nothing_is_ahead(model: DiffusersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = noted(model, monkeypatch)
    with model.foreseeing(lambda: ["fox", "sun", "sea"]):
        model.encode(["fox"])
        model.encode(["fox"])
    assert moved == [1]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "pixart", "flux", "sd3"])
def test_every_family_says_the_same(family: str) -> None:
    model = wrap(build(family), family)
    prompts = ["a red fox", "blue", "sun over the sea"]
    assert isinstance(model, ForeseeingModel)
    plain = model.encode(prompts)
    with model.foreseeing(tuple):
        kept = [model.encode(prompts), model.encode(prompts[::-1])[[2, 1, 0]]]
    for found in kept:
        for part, expected in zip(vars(found).values(), vars(plain).values(), strict=True):
            assert (part is None) == (expected is None)
            assert part is None or (part.dtype == expected.dtype and torch.allclose(part, expected, atol=1e-5))
    assert torch.equal(kept[0].tokens, kept[1].tokens)


def test_a_model_without_a_use_for_it_is_left_alone() -> None:
    with foreseen(SmallModel(), lambda: pytest.fail("asked")):
        pass
