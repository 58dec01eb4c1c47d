"""What a tuning draws at each step, and the scale of its loss, on both routes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import records
from tunable import QUICK, TunableSmall, tuning

from reneg_core.sampling import Size

DIRECT = replace(QUICK, route="direct", through=0)
ROUTES = pytest.mark.parametrize("config", [QUICK, DIRECT], ids=["policy", "direct"])


class Noted(TunableSmall):
    """Notes the seeds that noise is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def noise(self, seeds, size=Size()):  # noqa: B008
        self.seeds += seeds
        return super().noise(seeds, size)


@ROUTES
def test_prompts_and_noises_are_drawn_anew_at_each_step_and_for_each_seed(tmp_path: Path, config) -> None:
    """Four prompts a step, twice each: after five steps each of the five has had its turn four times."""
    drawn = []
    for seed in (0, 1):
        run = tuning(tmp_path / str(seed), replace(config, seed=seed, steps=5), model=Noted())
        run.run()
        drawn.append(set(run.model.seeds))
        shown = [run._prompts(step, range(8)) for step in range(5)]
        assert all(row[:4] == row[4:] for row in shown)
        assert len({tuple(row) for row in shown}) > 1
        assert sorted(prompt for row in shown for prompt in row[:4]) == sorted([*range(5)] * 4)
        first = [run._seeds(step, range(8)) for step in range(5)]
        assert len({seed for row in first for seed in row}) == 40
    assert len(drawn[0] & drawn[1]) == 0, "validations too have noises of their seed"


@ROUTES
def test_the_scale_of_half_precision_is_taken_out_of_the_gradient(tmp_path: Path, config) -> None:
    class HalfPrecision(TunableSmall):
        dtype = torch.float16

    norms = []
    for name, model in (("half", HalfPrecision()), ("full", TunableSmall())):
        tuning(tmp_path / name, replace(config, steps=1), model=model).run()
        norms.append([record["gradient_norm"] for record in records(tmp_path / name, "step")])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[1][0] > 0
