"""Which pictures a comparison draws: pairs of a prompt and a noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..seeds import derive_seed


@dataclass(frozen=True)
class Pairs:
    """``seeds[i][j]`` is the noise seed of the j-th picture of ``prompts[i]``; pair n is (n // k, n % k).

    Either every pair has a noise of its own, or all prompts share the same row of noises (:attr:`crossed`); intervals
    differ (:mod:`.statistics`), so anything in between is refused. Errors: ValueError for no pairs, rows of different
    lengths, a noise that a prompt has twice, and noises that only some prompts share.
    """

    prompts: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "seeds", tuple(tuple(int(seed) for seed in row) for row in self.seeds))
        if not self.prompts or not self.seeds or not self.seeds[0]:
            missing = "prompts" if not self.prompts else "noises"
            raise ValueError(f"Got no {missing}, expected at least one prompt with at least one noise.")
        lengths = {len(row) for row in self.seeds}
        if len(lengths) > 1 or len(self.seeds) != len(self.prompts):
            raise ValueError(
                f"Got {len(self.seeds)} rows of {sorted(lengths)} noises for {len(self.prompts)} prompts, expected a "
                "row for each prompt, all of one length."
            )
        self._check_repeats()

    def _check_repeats(self) -> None:
        for prompt, row in zip(self.prompts, self.seeds, strict=True):
            if len(set(row)) < len(row):
                raise ValueError(
                    f"Got the noise seeds {_listing(row)} for {prompt!r}, expected different ones: the same noise is "
                    "the same picture."
                )
        total = len(self)
        if len({seed for row in self.seeds for seed in row}) < total and len(set(self.seeds)) > 1:
            raise ValueError(
                "Got noise seeds that only some prompts share, expected a noise of its own for every pair, or the same "
                "noises in the same order for all prompts. Try Pairs.own or Pairs.shared."
            )

    @classmethod
    def own(cls, prompts: Sequence[str], k: int, seed: int = 0) -> "Pairs":
        """``k`` pictures a prompt, each with a noise of its own that depends on (seed, place in the list, j) only.

        The seeds are below 2^53: exact in every JSON reader, and the largest that ComfyUI's seed inputs take.
        """
        rows = range(len(prompts))
        return cls(
            tuple(prompts), tuple(tuple(derive_seed("evaluation", seed, i, j) >> 10 for j in range(k)) for i in rows)
        )

    @classmethod
    def shared(cls, prompts: Sequence[str], seeds: Sequence[int]) -> "Pairs":
        """Every prompt with the same noise ``seeds``: cheaper to compare by eye, with wider intervals."""
        return cls(tuple(prompts), (tuple(seeds),) * len(prompts))

    @property
    def each(self) -> int:
        """Pictures per prompt."""
        return len(self.seeds[0])

    @property
    def crossed(self) -> bool:
        """Whether several prompts share their noises."""
        return len(self.seeds) > 1 and len(set(self.seeds)) == 1

    def __len__(self) -> int:
        return len(self.prompts) * self.each

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return map(self.pair, range(len(self)))

    def place(self, index: int) -> tuple[int, int]:
        """(prompt, column) of pair ``index``."""
        return divmod(index, self.each)

    def pair(self, index: int) -> tuple[str, int]:
        """(prompt, noise seed) of pair ``index``."""
        row, column = self.place(index)
        return self.prompts[row], self.seeds[row][column]

    def spread(self, count: int) -> list[int]:
        """``count`` different pairs: prompts evenly spaced, columns in turn; pairs evenly once prompts run out."""
        count = min(max(count, 0), len(self))
        if count <= len(self.prompts):
            return [i * len(self.prompts) // count * self.each + i % self.each for i in range(count)]
        return [i * len(self) // count for i in range(count)]

    def in_words(self) -> str:
        """The design: "24 prompts × 2 noises of their own = 48 pairs"."""
        noises = "noise" if self.each == 1 else "noises"
        whose = "the same" if self.crossed else "its own" if self.each == 1 else "their own"
        middle = f"{whose} {self.each} {noises} for all" if self.crossed else f"{self.each} {noises} of {whose}"
        return f"{_count(len(self.prompts), 'prompt')} × {middle} = {_count(len(self), 'pair')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _listing(values: Sequence[int], most: int = 6) -> str:
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "")
