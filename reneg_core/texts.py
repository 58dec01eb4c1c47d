"""What a text encoder says of the prompts of a run: each is encoded once, ahead of its use, and kept on the CPU."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, dropwhile

from torch import Tensor

from .model import Conditioning, DiffusionModel

LIMIT = 2 << 30
"""Bytes that are kept: some 9000 prompts of Stable Diffusion 1, or 430 of a T5-XXL with 300 tokens each."""

Coming = Callable[[], Iterable[str]]
"""The prompts that will be asked for from now on, in their order and with repetitions."""


def foreseen(model: DiffusionModel, coming: Coming) -> AbstractContextManager[None]:
    """A context in which ``model`` knows what prompts are coming, where it has a use for that
    (:class:`~reneg_core.model.ForeseeingModel`)."""
    foreseeing = getattr(model, "foreseeing", None)
    return foreseeing(coming) if foreseeing else nullcontext()


class Texts:
    """Rows by prompt.

    encode: one prompt to one row on the CPU, always alone, so that a prompt's numbers do not depend on what it is
    encoded with, nor on when; around: a context in which that works, entered as rarely as the limit allows; coming:
    what is encoded while it is entered anyway, as much as ``limit`` bytes hold.
    """

    def __init__(
        self,
        encode: Callable[[str], Conditioning],
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
        coming: Coming = tuple,
        limit: int = LIMIT,
    ) -> None:
        self.coming, self.limit = coming, limit
        self._encode, self._around = encode, around
        self._kept: dict[str, Conditioning] = {}

    @property
    def held(self) -> int:
        """Bytes that are kept."""
        return sum(map(_bytes, self._kept.values()))

    def rows(self, prompts: Sequence[str]) -> list[Conditioning]:
        """One row for each prompt, on the CPU."""
        missing = next((prompt for prompt in prompts if prompt not in self._kept), None)
        if missing is not None:
            following = dropwhile(lambda prompt: prompt != missing, self.coming())
            with self._around():
                self._fill(prompts, following)
        return [self._kept[prompt] for prompt in prompts]

    def _fill(self, needed: Sequence[str], following: Iterable[str]) -> None:
        """Have the ``needed``, and as many of the ``following`` as the limit holds. What is not among them goes first,
        then what comes last."""
        order, least = list(dict.fromkeys(chain(needed, following))), len(set(needed))
        for prompt in reversed(order):
            if prompt in self._kept:
                self._kept[prompt] = self._kept.pop(prompt)
        room, total, done = self.limit, self.held, set()
        for place, prompt in enumerate(order):
            if room <= 0 and place >= least:
                break
            row = self._kept.pop(prompt, None)
            if row is None:
                row = self._encode(prompt)
                total += _bytes(row)
            self._kept[prompt] = row
            done.add(prompt)
            room -= _bytes(row)
            while total > self.limit and (oldest := next(iter(self._kept))) not in done:
                total -= _bytes(self._kept.pop(oldest))


def stacked(rows: Sequence[Conditioning]) -> Conditioning:
    """Rows of equal shapes as one conditioning."""
    import torch

    parts = zip(*((row.tokens, row.mask, row.pooled) for row in rows), strict=True)
    return Conditioning(*(None if part[0] is None else torch.cat(part) for part in parts))


def _bytes(row: Conditioning) -> int:
    parts: tuple[Tensor | None, ...] = (row.tokens, row.mask, row.pooled)
    return sum(part.nbytes for part in parts if part is not None)
