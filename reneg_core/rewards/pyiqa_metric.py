"""Quality metrics without a reference picture of the package pyiqa, by their names there ("pyiqa:topiq_nr-face")."""

from typing import Any

import torch
from torch import Tensor

from reneg_core.rewards.base import Reward
from reneg_core.rewards.checkpoint import Placement
from reneg_core.rewards.weights import Source

PREFIX = "pyiqa:"


class PyiqaMetric(Reward):
    """A metric of pyiqa; one where lower is better counts negative. Its weights come from where pyiqa keeps them.

    Judged without a gradient: some metrics cut faces out or quantise, and pyiqa does not say which.
    """

    needs_prompt = False
    differentiable = False

    def __init__(self, metric: Any, name: str) -> None:
        super().__init__()
        self.metric, self.name = metric, PREFIX + name
        self.sign = -1.0 if metric.lower_better else 1.0

    @classmethod
    def load(cls, source: Source, placement: Placement, **options: object) -> "PyiqaMetric":
        name = str(options["metric"])
        pyiqa = _pyiqa()
        known = pyiqa.list_models(metric_mode="NR")
        if name not in known:
            raise ValueError(
                f"Got the metric {name!r}, expected one of pyiqa's without a reference: {', '.join(known)}."
            )
        return cls(pyiqa.create_metric(name, device=torch.device(placement.device)), name)

    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            return self.sign * self.metric(images.detach()).reshape(-1)


def _pyiqa() -> Any:
    try:
        import pyiqa
    except ImportError as error:
        raise ImportError(
            f"The rewards whose names begin with {PREFIX} need the package pyiqa. Try: pip install pyiqa"
        ) from error
    return pyiqa
