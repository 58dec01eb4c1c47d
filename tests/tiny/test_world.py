"""The drawn world, its words and its splits."""

import random
from itertools import pairwise

import pytest
import torch

from reneg_core import tiny
from reneg_core.tiny import prompts, world
from reneg_core.tiny.rivals import candidates

NAMES = list(world.FLAWS)


def _scenes(count: int = 60) -> world.Scenes:
    return world.place(prompts.combinations("train")[:count], torch.Generator().manual_seed(0))


def _strength(count: int, flaw: str, value: float = 1.0) -> torch.Tensor:
    strength = torch.zeros(count, len(NAMES))
    strength[:, NAMES.index(flaw)] = value
    return strength


def test_a_drawn_picture_has_exactly_the_two_colours_away_from_the_edge():
    scenes = _scenes()
    images, mask = world.render(scenes), world.coverage(scenes.shape, scenes.centre, scenes.radius)
    colours = world.palette()
    for row in range(len(scenes)):
        inside, outside = images[row][:, mask[row] == 1], images[row][:, mask[row] == 0]
        assert inside.shape[1] > 20 and outside.shape[1] > 200
        assert torch.equal(inside, colours[scenes.colour[row]][:, None].expand_as(inside))
        assert torch.equal(outside, colours[scenes.background[row]][:, None].expand_as(outside))


def test_no_shape_touches_the_border():
    scenes = world.Scenes(
        torch.arange(6), torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.long),
        torch.full((6, 2), 13.0), torch.full((6,), 10.0),
    )  # fmt: skip
    mask = world.coverage(scenes.shape, scenes.centre, scenes.radius)
    assert mask[:, :2].max() == 0 and mask[:, :, :2].max() == 0


@pytest.mark.parametrize("flaw", NAMES)
def test_a_flaw_without_strength_changes_nothing_and_more_strength_changes_more(flaw: str):
    clean = world.render(_scenes())
    changes = []
    for value in (0.0, 0.4, 0.7, 1.0):
        spoilt = world.spoil(clean, _strength(len(clean), flaw, value), torch.Generator().manual_seed(1))
        assert spoilt.min() >= 0 and spoilt.max() <= 1
        changes.append((spoilt - clean).abs().mean((1, 2, 3)))
    assert changes[0].max() < 1e-6
    assert all((more > less).all() for less, more in pairwise(changes))
    assert changes[-1].min() > 0.002


@pytest.mark.parametrize("flaw", NAMES)
def test_what_a_flaw_does_to_a_picture_does_not_depend_on_the_other_flaws_of_its_neighbours(flaw: str):
    clean = world.render(_scenes(8))
    alone = world.spoil(clean, _strength(8, flaw), torch.Generator().manual_seed(1))
    mixed = _strength(8, flaw)
    mixed[1:] = 1.0
    assert torch.allclose(world.spoil(clean, mixed, torch.Generator().manual_seed(1))[0], alone[0], atol=1e-6)


@pytest.mark.parametrize("flaw", ["mark", "frame", "band", "debris"])
def test_what_lies_around_the_shape_leaves_its_middle_alone(flaw: str):
    clean = world.render(_scenes())
    spoilt = world.spoil(clean, _strength(len(clean), flaw), torch.Generator().manual_seed(1))
    assert torch.equal(spoilt[:, :, 13:19, 13:19], clean[:, :, 13:19, 13:19])


def test_marks_come_in_every_corner_and_bands_on_every_side():
    clean = torch.zeros(200, 3, 32, 32)
    marked, banded = (
        world.spoil(clean, _strength(200, flaw), torch.Generator().manual_seed(1))[:, 0] for flaw in ("mark", "band")
    )
    corners = [marked[:, y : y + 10, x : x + 10].sum((1, 2)) for y in (0, 22) for x in (0, 22)]
    sides = [banded[:, :5], banded[:, -5:], banded[:, :, :5], banded[:, :, -5:]]
    for places in (corners, [side.flatten(1).sum(1) for side in sides]):
        assert (torch.stack(places, dim=1).argmax(1).bincount(minlength=4) > 30).all()


def test_the_share_of_careless_pictures_and_the_number_of_their_flaws_are_as_stated():
    strength = world.sample_strength(8000, world.CARELESS_SHARE, torch.Generator().manual_seed(0))
    flaws = (strength > 0).sum(1)
    assert abs((flaws > 0).float().mean().item() - 0.65) < 0.02
    shares = flaws[flaws > 0].bincount(minlength=4)[1:] / (flaws > 0).sum()
    assert torch.allclose(shares, torch.tensor([0.4, 0.4, 0.2]), atol=0.02)
    assert strength[strength > 0].min() >= 0.4 and strength.max() <= 1
    assert ((strength > 0).float().mean(0) - 0.65 * 1.8 / 8).abs().max() < 0.02


def test_unknown_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown shape 'blob'; the tiny world has circle, square"):
        world.shape_distance("blob", torch.zeros(1), torch.zeros(1))


def test_splits_share_nothing_and_have_the_promised_sizes():
    parts = [tiny.train_prompts(), tiny.validation_prompts(), tiny.test_prompts()]
    assert [len(part) for part in parts] == [240, 24, 72]
    assert len(set().union(*parts)) == 336
    with pytest.raises(ValueError, match="unknown split 'dev'; expected one of test, validation, train"):
        prompts.combinations("dev")


def test_every_word_of_every_plain_prompt_is_seen_in_training():
    words = {word for prompt in tiny.train_prompts() for word in prompt.split()}
    assert {word for prompt in tiny.test_prompts() for word in prompt.split()} <= words


@pytest.mark.parametrize("template", prompts.PLAIN_TEMPLATES)
def test_a_caption_reads_back_as_what_it_names(template: str):
    for combination in prompts.combinations("test").tolist():
        named = prompts.named(template.format(**prompts.words(tuple(combination))))
        assert [named.shape, named.colour, named.background] == combination


def test_named_passes_over_unknown_words_and_reads_what_is_there():
    assert prompts.named("a Fuzzy thing") == prompts.Named(None, None, None)
    assert prompts.named("old ring, on a RED background") == prompts.Named(4, None, 0)
    assert prompts.named("blue cross") == prompts.Named(5, 2, None)


def test_captions_say_words_of_quality_in_every_order_and_wording():
    rng = random.Random(0)
    said = ["old", "bad", "lines"]
    seen = {prompts.caption((0, 0, 2), said, rng) for _ in range(6000)}
    bare = {text for text in seen if set(text.replace(",", "").split()) == set(said)}
    assert len(bare) == 12  # six orders, with and without commas
    assert all(set(said) <= set(text.replace(",", "").split()) for text in seen)


def test_a_plain_caption_never_speaks_of_quality():
    rng = random.Random(0)
    texts = {prompts.caption((0, 0, 2), [], rng) for _ in range(200)}
    assert len(texts) == len(prompts.PLAIN_TEMPLATES)
    assert not any(word in text.split() for text in texts for word in prompts.WORDS)


def test_words_are_loose_and_four_flaws_have_no_name():
    named = {flaw for word, flaws in prompts.WORDS.items() if word not in ("bad", "ugly") for flaw in flaws}
    assert set(NAMES) - named == {"debris", "specks", "scratch", "band"}
    assert all(chance <= 0.5 for flaws in prompts.WORDS.values() for chance in flaws.values())
    assert sum(len(flaws) > 1 for flaws in prompts.WORDS.values()) >= 9


def test_the_words_that_somebody_finds_follow_the_table():
    rng = random.Random(0)
    mark = torch.tensor([float(name == "mark") for name in NAMES])
    found = [prompts.quality_words(mark, rng) for _ in range(4000)]
    share = {word: sum(word in words for words in found) / len(found) for word in prompts.WORDS}
    assert all(abs(share[word] - flaws.get("mark", 0)) < 0.03 for word, flaws in prompts.WORDS.items())
    assert prompts.quality_words(torch.zeros(len(NAMES)), rng) == []


def test_the_search_for_the_best_text_declares_enough_candidates_of_known_words():
    texts = candidates()
    assert len(texts) == len(set(texts)) >= 60 and tiny.HANDWRITTEN_NEGATIVE in texts
    known = set(prompts.vocabulary())
    assert {word for text in texts for word in text.replace(",", "").split()} <= known
    assert {"double lines border watermark", "watermark border lines double", "a bad picture", "old old old"} <= set(
        texts
    )
