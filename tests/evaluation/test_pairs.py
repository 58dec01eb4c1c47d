"""Pairs: whose noise is whose."""

import pytest

from reneg_core.evaluation import Pairs

PROMPTS = ["a", "b", "c"]


def test_every_pair_has_a_noise_of_its_own() -> None:
    pairs = Pairs.own(PROMPTS, 4)
    seeds = [seed for _, seed in pairs]
    assert len(pairs) == 12 == len(set(seeds)) and not pairs.crossed and pairs.each == 4
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_own_noises_depend_on_seed_and_place_only() -> None:
    assert Pairs.own(PROMPTS, 4) == Pairs.own(PROMPTS, 4)
    assert Pairs.own(PROMPTS, 2).seeds == tuple(row[:2] for row in Pairs.own(PROMPTS, 4).seeds)
    assert Pairs.own(["x", "x"], 2).seeds == Pairs.own(PROMPTS, 2).seeds[:2]
    assert not {s for _, s in Pairs.own(PROMPTS, 4)} & {s for _, s in Pairs.own(PROMPTS, 4, seed=1)}


def test_shared_noises_are_crossed_with_all_prompts() -> None:
    pairs = Pairs.shared(PROMPTS, range(2))
    assert pairs.crossed and pairs.seeds == ((0, 1),) * 3
    assert not Pairs.shared(["a"], [5, 6]).crossed, "with one prompt there is nothing to share"
    assert Pairs.shared(PROMPTS, [5]).crossed


def test_order_is_all_noises_of_the_first_prompt_first() -> None:
    pairs = Pairs(("a", "b"), ((3, 1), (4, 5)))
    assert list(pairs) == [("a", 3), ("a", 1), ("b", 4), ("b", 5)]
    assert pairs.pair(2) == ("b", 4) and pairs.place(2) == (1, 0)


@pytest.mark.parametrize(
    ("count", "places"),
    [(0, []), (-1, []), (2, [(0, 0), (1, 1)]), (3, [(0, 0), (1, 1), (2, 0)]), (4, [(0, 0), (0, 1), (1, 1), (2, 0)])],
)
def test_spread_goes_through_the_set(count: int, places: list) -> None:
    pairs = Pairs.shared(PROMPTS, [0, 1])
    assert [pairs.place(index) for index in pairs.spread(count)] == places
    assert len(set(pairs.spread(50))) == 6


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (Pairs.own(PROMPTS, 4), "3 prompts × 4 noises of their own = 12 pairs"),
        (Pairs.own(PROMPTS, 1), "3 prompts × 1 noise of its own = 3 pairs"),
        (Pairs.shared(PROMPTS, [0, 1]), "3 prompts × the same 2 noises for all = 6 pairs"),
        (Pairs.own(["a"], 1), "1 prompt × 1 noise of its own = 1 pair"),
    ],
)
def test_design_in_words(pairs: Pairs, words: str) -> None:
    assert pairs.in_words() == words


@pytest.mark.parametrize(
    ("prompts", "seeds", "message"),
    [
        ([], [], "Got no prompts, expected at least one prompt with at least one noise"),
        (["a"], [[]], "Got no noises"),
        (["a", "b"], [[1, 2], [3]], r"Got 2 rows of \[1, 2\] noises for 2 prompts"),
        (["a", "b"], [[1]], r"Got 1 rows of \[1\] noises for 2 prompts"),
        (["a"], [[1, 2, 1]], "Got the noise seeds 1, 2, 1 for 'a', expected different ones"),
        (["a", "b"], [[1, 2], [2, 3]], "Got noise seeds that only some prompts share"),
        (["a", "b"], [[1, 2], [2, 1]], "in the same order for all prompts. Try Pairs.own or Pairs.shared"),
    ],
)
def test_refusals(prompts: list, seeds: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pairs(tuple(prompts), tuple(map(tuple, seeds)))


def test_no_noises_are_refused_whoever_asks() -> None:
    for make in (lambda: Pairs.own(PROMPTS, 0), lambda: Pairs.shared(PROMPTS, [])):
        with pytest.raises(ValueError, match="Got no noises"):
            make()
