"""What a training shows while it runs: two rows under their rewards and the curve, as wide as it is said."""

import numpy as np
import pytest
import torch

from reneg_core.evaluation import live_picture
from reneg_core.evaluation.live import BAND, GAP, WIDTH

RECORDS = [
    {"event": "validation", "step": 0, "reward": 0.25, "best": True},
    *({"event": "step", "step": step, "reward": 0.1 * step} for step in range(1, 7)),
    {"event": "validation", "step": 6, "reward": 0.75, "best": True},
]


@pytest.mark.parametrize(("count", "side"), [(4, 32), (1, 64), (3, 900)])
def test_pictures_of_the_start_stand_over_those_of_now(count: int, side: int) -> None:
    first, last = torch.zeros(count, 3, side, side), torch.ones(count, 3, side, side)
    first[:, 0], last[:, 1:] = 1, 0.5  # red, then pink
    drawn = np.asarray(live_picture(first, last, RECORDS))
    cell = (WIDTH - GAP * (count + 1)) // count
    middle = GAP + cell // 2
    assert drawn.shape[1] == WIDTH
    assert tuple(drawn[BAND + cell // 2, middle]) == (255, 0, 0)
    assert tuple(drawn[2 * BAND + cell + cell // 2, middle]) == (255, 128, 128)
    assert (drawn[: BAND - 4] < 128).any() and (drawn[2 * (BAND + cell) :] < 128).any(), "rewards and a curve"


def test_a_run_that_has_only_begun_is_drawn_too() -> None:
    pictures = torch.rand(2, 3, 16, 16)
    assert live_picture(pictures, pictures, RECORDS[:1]).width == WIDTH
