"""What a training run tells while it runs and when it ends."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..embedding import NegativeEmbedding


class Observer(Protocol):
    """Who watches a run: a progress bar, a node, a notebook."""

    def on_step(self, record: dict[str, Any]) -> None:
        """After each optimizer step; record is the line written to metrics.jsonl."""

    def on_validation(self, record: dict[str, Any], images: Tensor, prompts: list[str]) -> None:
        """After each validation; images ``[n,3,H,W]`` in [0,1] of the first pairs with their prompts."""


@dataclass(frozen=True)
class TrainResult:
    """What a run gave: the best embedding by validation, and why it ended ("done", "stopped", "patience").

    The rewards are None if the run was stopped before its first validation.
    """

    embedding: NegativeEmbedding
    best_step: int
    best_reward: float | None
    start_reward: float | None
    steps: int
    reason: str
    directory: Path
