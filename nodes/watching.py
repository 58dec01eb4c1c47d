"""What a training shows on its node: the bar, pictures before and after, the curve, a line of text."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from reneg_core.evaluation import grid, learning_curve

from .host.feedback import Progress, say
from .host.stopping import StopButton

SHOWN = 4
SIDE = 128


class NodeObserver:
    """Shows a :class:`~reneg_core.training.Trainer` run on its node.

    What is shown stays in the run's folder, so that a run that goes on, or has nothing left to do, shows its own start
    and its whole curve.
    """

    def __init__(self, total: int, button: StopButton, node_id: str | None, folder: Path) -> None:
        self.progress, self.total = Progress(total), total
        self.button, self.node_id = button, node_id
        self.file = folder / "shown.safetensors"
        self.records = load_records(folder)
        self.first, self.last = load_shown(self.file)

    def on_step(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.button.update(self.progress, record["step"])
        say(
            f"step {record['step']} of {self.total}: reward {record['reward']:.4f}, {record['seconds']:.1f} s a step",
            self.node_id,
        )

    def on_validation(self, record: dict[str, Any], images: Tensor, prompts: list[str]) -> None:
        self.records.append(record)
        self.last = images[:SHOWN].float().cpu()
        if record["step"] == 0 or self.first is None:
            self.first = self.last
        save_shown(self.file, self.first, self.last)
        self.button.update(self.progress, record["step"], self.picture(), always=True)
        say(f"validation at step {record['step']}: reward {record['reward']:.4f}", self.node_id)

    def finish(self, step: int) -> None:
        """Leave the pictures on the node, also those of a run that had nothing left to do; stop is the host's again."""
        self.progress.update(step, None if self.first is None else self.picture(), always=True)

    def picture(self) -> Image.Image:
        """Pictures of the start over pictures of now, and the curve under them."""
        rows = [list(self.first), list(self.last)]
        columns = [f"prompt {i + 1}" for i in range(len(rows[0]))]
        return stacked([grid(rows, ["start", "now"], columns, side=SIDE), learning_curve(self.records)])


def require_plots() -> None:
    """Raise ImportError before long work if what draws curves and grids is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The package matplotlib is missing; it draws the curve and the labels of the grid. Install it in ComfyUI's "
            "Python (pip install matplotlib) and restart."
        ) from error


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Pictures below one another, scaled to the width of the first."""
    width = pictures[0].width
    fitted = [p.resize((width, max(1, round(p.height * width / p.width)))) for p in pictures]
    canvas = Image.new("RGB", (width, sum(p.height for p in fitted)), "white")
    top = 0
    for picture in fitted:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


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
