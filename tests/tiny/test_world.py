"""The drawn world, its words and its splits."""

import random

import pytest
import torch

from reneg_core import tiny
from reneg_core.tiny import prompts, world


def _scenes(count: int = 60) -> world.Scenes:
    return world.place(prompts.combinations("train")[:count], torch.Generator().manual_seed(0))


def test_a_drawn_picture_has_exactly_the_two_colours_away_from_the_edge():
    scenes = _scenes()
    images, mask = world.render(scenes), world.coverage(scenes.shape, scenes.centre, scenes.radius)
    colours = world.palette()
    for row in range(len(scenes)):
        inside, outside = images[row][:, mask[row] == 1], images[row][:, mask[row] == 0]
        assert inside.shape[1] > 20 and outside.shape[1] > 200
        assert torch.equal(inside, colours[scenes.colour[row]][:, None].expand_as(inside))
        assert torch.equal(outside, colours[scenes.background[row]][:, None].expand_as(outside))


def test_no_shape_touches_the_frame():
    scenes = world.Scenes(
        torch.arange(6), torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.long),
        torch.full((6, 2), 13.0), torch.full((6,), 10.0),
    )  # fmt: skip
    mask = world.coverage(scenes.shape, scenes.centre, scenes.radius)
    assert mask[:, :2].max() == 0 and mask[:, :, :2].max() == 0


def test_no_degradation_leaves_the_picture_alone_and_each_one_changes_it():
    clean = world.render(_scenes())
    for column in range(3):
        strength = torch.zeros(len(clean), 3)
        same = world.degrade(clean, strength, torch.Generator().manual_seed(1))
        assert (same - clean).abs().max() < 1e-6
        strength[:, column] = 1
        changed = world.degrade(clean, strength, torch.Generator().manual_seed(1))
        assert (changed - clean).abs().mean() > 0.01


def test_full_fading_leaves_the_stated_share_of_contrast():
    clean = world.render(_scenes())
    strength = torch.tensor([[0.0, 0.0, 1.0]]).expand(len(clean), 3)
    faded = world.degrade(clean, strength, torch.Generator().manual_seed(1))
    assert torch.allclose(faded - 0.5, (1 - world.MAX_FADE) * (clean - 0.5), atol=1e-6)


def test_the_share_of_spoilt_pictures_is_as_asked_and_strengths_are_in_range():
    strength = world.sample_strength(4000, 0.55, torch.Generator().manual_seed(0))
    assert abs((strength.sum(1) > 0).float().mean().item() - 0.55) < 0.03
    assert strength[strength > 0].min() >= 0.3 and strength.max() <= 1


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
    assert prompts.named("noisy ring, on a RED background") == prompts.Named(4, None, 0)
    assert prompts.named("blue cross") == prompts.Named(5, 2, None)


def test_captions_combine_flaws_in_every_order_and_the_handwritten_prompt_is_one_of_them():
    rng = random.Random(0)
    seen = {prompts.caption((0, 0, 2), ["blurry", "noisy", "faded"], rng) for _ in range(4000)}
    bare = {text for text in seen if set(text.replace(",", "").split()) == {"blurry", "noisy", "faded"}}
    assert len(bare) == 12  # six orders, with and without commas
    assert tiny.HANDWRITTEN_NEGATIVE in bare


def test_an_unlabelled_caption_never_mentions_a_flaw():
    rng = random.Random(0)
    texts = {prompts.caption((0, 0, 2), [], rng) for _ in range(200)}
    assert len(texts) == len(prompts.PLAIN_TEMPLATES)
    assert not any(word in text for text in texts for word in world.DEGRADATIONS)
