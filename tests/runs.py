"""Quick trainings in a folder, for tests of what surrounds them."""

import json
from pathlib import Path
from typing import Any

from doubles import Curved

from reneg_core.sampling import Sampling
from reneg_core.training import Prompts, Session, TrainConfig, Trainer

PROMPTS = ["a red fox", "blue", "sun over sea", "an old door", "ice"]
SAMPLING = Sampling(steps=3).at_scale(4.0)
QUICK = TrainConfig(
    steps=6, batch_size=4, micro_batch=2, sampling=SAMPLING, learning_rate=0.05, validation_pairs=3, validate_every=2,
    checkpoint_every=2, points=1, window=(0, 3),
)  # fmt: skip


class Steps:
    """An observer that counts and, at ``until`` steps, raises or asks to stop."""

    def __init__(self, until: int = 10**9, error: BaseException | None = None) -> None:
        self.count, self.until, self.error = 0, until, error

    def on_step(self, record: dict) -> None:
        self.count += 1
        if self.error and self.count == self.until:
            raise self.error

    def on_validation(self, record: dict, images: Any, prompts: list[str]) -> None:
        return None

    def enough(self) -> bool:
        return self.count >= self.until


def trainer(
    model: Any, folder: Path, config: TrainConfig = QUICK, *, reward: Any = None, watch: Any = None,
    prompts: list[str] = PROMPTS, validation: tuple[str, ...] = tuple(PROMPTS[:2]), **session: object
) -> Trainer:  # fmt: skip
    listed = Prompts(prompts, validation)
    return Trainer(model, reward or Curved(), listed, config, folder, watch=watch, session=Session(**session))


def records(folder: Path, event: str) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def steps_of(folder: Path, event: str) -> list[int]:
    return [record["step"] for record in records(folder, event)]
