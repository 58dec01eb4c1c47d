"""What a training shows on its node: the bar, pictures before and after, the curve, a line of text."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from reneg_core.evaluation import grid, learning_curve

from .host.feedback import Progress, say
from .host.stopping import StopButton

SHOWN = 4
SIDE = 128


class NodeObserver:
    """Shows a :class:`~reneg_core.training.Trainer` run on its node."""

    def __init__(self, total: int, button: StopButton, node_id: str | None) -> None:
        self.progress, self.total = Progress(total), total
        self.button, self.node_id = button, node_id
        self.records: list[dict[str, Any]] = []
        self.first: Tensor | None = None
        self.last: Tensor | None = None

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
        self.first = self.last if self.first is None else self.first
        self.button.update(self.progress, record["step"], self.picture(), always=True)
        say(f"validation at step {record['step']}: reward {record['reward']:.4f}", self.node_id)

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


def load_records(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run folder, resumed parts included."""
    from reneg_core.training.run_folder import RunFolder

    return RunFolder(folder).records()
