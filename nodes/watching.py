"""What a training shows on its node: the bar, pictures before and after, the curve, lines of text."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from reneg_core.durations import duration
from reneg_core.evaluation import live_picture, picture_row
from reneg_core.training import TrainConfig
from reneg_core.training.pace import Pace
from reneg_core.training.rehearsal import Rehearsal

from .estimates import estimated
from .host.feedback import Progress, say
from .host.stopping import StopButton

SHOWN = 4
SPOKEN_SECONDS = 0.5


class NodeObserver:
    """Shows a :class:`~reneg_core.training.Trainer` run on its node.

    What is shown stays in the run's folder, so that a run that goes on, or has nothing left to do, shows its own start
    and its whole curve. note: stands under the first line of every text.
    """

    def __init__(
        self, config: TrainConfig, button: StopButton, node_id: str | None, folder: Path, note: str = ""
    ) -> None:
        self.config, self.button, self.node_id, self.note = config, button, node_id, note
        self.progress, self.pace = Progress(config.steps), Pace()
        self.file = folder / "shown.safetensors"
        self.records = load_records(folder)
        self.first, self.last = load_shown(self.file)
        self.step = max((record["step"] for record in self.records), default=0)
        self._began, self._spoken = time.monotonic(), 0.0

    def say(self, text: str) -> None:
        """A line of text, the note, and what else there is to say; the node shows about five lines."""
        self._spoken = time.monotonic()
        first, _, rest = text.partition("\n")
        say("\n".join(filter(None, [first, self.note, rest])), self.node_id)

    def estimate(self, found: Rehearsal, config: TrainConfig, needed: int) -> None:
        """Say before long work what it will take; config: with as many steps as will be done; needed: bytes."""
        self.config, self.pace = config, Pace(found.step, found.validation)
        self.progress = Progress(config.steps)
        self._began = time.monotonic()
        each = f"{found.step:.1f} s a step, {found.validation:.1f} s a validation"
        self.say(f"{config.steps - self.step} steps: {estimated(found.total, needed)} ({each})")

    def on_part(self, stage: str, done: int, total: int) -> None:
        """How far a validation or a step is; often enough for slow ones, and no more."""
        if done == 1 or done == total or time.monotonic() - self._spoken >= SPOKEN_SECONDS:
            first = stage == "validation" and self.first is None
            validation = "first validation" if first else f"validation at step {self.step}"
            name = validation if stage == "validation" else f"step {self.step + 1} of {self.config.steps}"
            if stage == "validation" or self.pace.step is None or self.pace.step >= 2:
                self.say(f"{name}: {done} of {total} pictures{self._left()}")

    def on_step(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.step = record["step"]
        self.pace.add_step(record["seconds"])
        self._began = time.monotonic()
        self.button.update(self.progress, record["step"])
        self.say(f"step {record['step']} of {self.config.steps}: reward {record['reward']:.4f}{self._left()}")

    def on_validation(self, record: dict[str, Any], images: Tensor, prompts: list[str]) -> None:
        self.records.append(record)
        self.pace.add_validation(time.monotonic() - self._began)
        self._began = time.monotonic()
        self.last = images[:SHOWN].float().cpu()
        if record["step"] == 0 or self.first is None:
            self.first = self.last
        save_shown(self.file, self.first, self.last)
        self.button.update(self.progress, record["step"], self.picture(), always=True)
        self.say(f"validation at step {record['step']}: reward {record['reward']:.4f}{self._left()}")

    def finish(self, step: int) -> None:
        """Leave the pictures on the node, also those of a run that had nothing left to do; stop is the host's again."""
        self.progress.update(step, None if self.first is None else self.picture(), always=True)

    def picture(self) -> Image.Image:
        """Pictures of the start over pictures of now, and the curve under them."""
        return live_picture(self.first, self.last, self.records)

    def _left(self) -> str:
        left = self.pace.remaining(self.step, self.config)
        return "" if left is None else f", about {duration(left)} left"


class Judged:
    """A reward whose last pictures can be looked at while it works."""

    def __init__(self, reward: Any) -> None:
        self._reward, self._last = reward, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reward, name)

    def score(self, images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """What the reward says of the pictures ``[B,3,H,W]``, some of which are kept."""
        self._last = images[:SHOWN].detach()
        return self._reward.score(images, prompts)

    def picture(self) -> Image.Image | None:
        """The last pictures side by side; None before there are any."""
        return None if self._last is None else picture_row(self._last)


class Counter:
    """The node's bar, the pictures of ``judged`` and a line of text for work of several stages: how far each is, and
    how long it will take."""

    def __init__(self, node_id: str | None, judged: Judged) -> None:
        self.node_id, self.judged = node_id, judged
        self._bars: dict[str, Progress] = {}
        self._began = time.monotonic()

    def update(self, stage: str, done: int, total: int) -> None:
        """Say how many pictures of ``stage`` are done. Raises the host's interruption if the user pressed stop."""
        spent = time.monotonic() - self._began
        left = f", about {duration(spent / done * (total - done))} left" if 0 < done < total else ""
        say(f"{stage}: {done} of {total} pictures{left}", self.node_id)
        if stage not in self._bars:
            self._bars[stage] = Progress(total)
        self._bars[stage].update(done, self.judged.picture())
        if done == total:
            self._began = time.monotonic()


class AdaptationWatch:
    """Shows an adaptation, which takes ``pictures`` in batches, each for at most ``steps`` steps, and what ``judged``
    sees of it."""

    def __init__(
        self, button: StopButton, node_id: str | None, judged: Judged, pictures: int, batch: int, steps: int
    ) -> None:
        self.button, self.node_id, self.judged, self.progress = button, node_id, judged, Progress(pictures)
        self.pictures, self.batch, self.steps = pictures, batch, steps
        self.done = self.step = self.taken = 0
        self._began = time.monotonic()

    def asked(self) -> bool:
        """Whether stop was pressed; called once a step."""
        self.step, self.taken = self.step + 1, self.taken + 1
        batches = -(-(self.pictures - self.done) // self.batch)
        left = (time.monotonic() - self._began) / self.taken * max(0, batches * self.steps - self.step)
        now = f"pictures {self.done + 1} to {min(self.done + self.batch, self.pictures)} of {self.pictures}"
        say(f"{now}: step {self.step} of at most {self.steps}, at most {duration(left)} left", self.node_id)
        self.button.update(self.progress, self.done, self.judged.picture())
        return self.button.asked()

    def finished(self, count: int) -> None:
        """So many more pictures are done."""
        self.done, self.step = self.done + count, 0
        self.button.update(self.progress, self.done, self.judged.picture(), always=True)


def require_plots() -> None:
    """Raise ImportError before long work if what draws curves and grids is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The package matplotlib is missing; it draws the curve and the labels of the grid. Install it in ComfyUI's "
            "Python (pip install matplotlib) and restart."
        ) from error


def save_shown(file: Path, first: Tensor, last: Tensor) -> None:
    """Keep pictures ``[B,3,H,W]`` in [0,1] in 8 bits; the file is replaced as a whole."""
    part = file.with_suffix(".part")
    save_file({"first": _bits(first), "last": _bits(last)}, part)
    part.replace(file)


def load_shown(file: Path) -> tuple[Tensor | None, Tensor | None]:
    """Pictures of the start and of the last validation; None where there are none."""
    if not file.is_file():
        return None, None
    kept = load_file(file)
    return kept["first"].float() / 255, kept["last"].float() / 255


def _bits(images: Tensor) -> Tensor:
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


def seed_of(folder: Path, asked: int) -> int:
    """The seed that the run in ``folder`` began with, else the one asked for: the page gives a new one after every Run
    unless it is told not to, and a run that goes on is still the same run."""
    from reneg_core.training.run_folder import RunFolder

    found = RunFolder(folder).latest()
    return found.context.get("settings", found.context)["seed"] if found else asked


def load_records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run folder, resumed parts included."""
    from reneg_core.training.run_folder import RunFolder

    return RunFolder(folder).records()
