"""Means over the parts of a step, on one process and over all of them."""

from collections.abc import Sequence

import torch

from ..training.workers import Workers


class Means:
    """Weighted means by name; every process must ask for the same ``names``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.sums = torch.zeros(len(self.names), 2, dtype=torch.float64)

    def add(self, name: str, value: float | None, weight: int = 1) -> None:
        """Take up ``value``; None is no value."""
        if value is not None:
            self.sums[self.names.index(name)] += torch.tensor([value * weight, weight], dtype=torch.float64)

    def over(self, workers: Workers) -> dict[str, float | None]:
        """The means over all processes, None where no value came."""
        found = workers.sum(self.sums.clone())
        columns = zip(self.names, *found.T.tolist(), strict=True)
        return {name: total / count if count else None for name, total, count in columns}
