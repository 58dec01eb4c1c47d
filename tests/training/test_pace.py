"""How long the rest of a run takes, and how many steps fit into a time."""

from dataclasses import replace

import pytest
from runs import QUICK

from reneg_core.durations import duration
from reneg_core.training.pace import RECENT, Pace, most_steps

CONFIG = replace(QUICK, steps=20, validate_every=5)


def test_nothing_is_promised_before_anything_is_known() -> None:
    pace = Pace()
    assert pace.remaining(0, CONFIG) is None
    pace.add_validation(4.0)
    assert pace.remaining(0, CONFIG) is None


def test_the_rest_counts_steps_and_the_validations_still_due() -> None:
    pace = Pace(2.0, 10.0)
    assert pace.remaining(0, CONFIG) == 20 * 2 + 4 * 10
    assert pace.remaining(5, CONFIG) == 15 * 2 + 3 * 10, "that of step 5 is done"
    assert pace.remaining(4, replace(CONFIG, steps=18)) == 14 * 2 + 4 * 10, "5, 10, 15 and the last step"
    assert pace.remaining(20, CONFIG) == 0
    assert pace.remaining(0, replace(CONFIG, steps=19)) == 19 * 2 + 4 * 10, "nothing after the last step"
    assert Pace(2.0).remaining(0, CONFIG) == 20 * 2, "validations of unknown length are not counted"


def test_what_was_measured_replaces_what_was_estimated_and_old_steps_are_forgotten() -> None:
    pace = Pace(2.0, 10.0)
    for seconds in [100.0, *[3.0] * RECENT]:
        pace.add_step(seconds)
    for seconds in [100.0, *[1.0] * RECENT]:
        pace.add_validation(seconds)
    assert pace.step == 3.0 and pace.remaining(10, CONFIG) == 10 * 3 + 2 * 1


@pytest.mark.parametrize(
    ("limit", "done", "steps"),
    [
        (1000, 0, 20),
        (90, 0, 20),
        (89, 0, 19),
        (50, 0, 10),
        (49, 0, 9),
        (1, 0, 1),
        (50, 10, 20),
        (45, 10, 17),
        (1, 12, 13),
        (22, 12, 13),
    ],
)
def test_as_many_steps_as_fit_with_their_validations(limit: float, done: int, steps: int) -> None:
    """2 s a step, 10 s a validation at the beginning and every five steps: 20 steps take 40 + 50."""
    assert most_steps(2.0, 10.0, limit, done, CONFIG) == steps


def test_lengths_of_time_are_said_in_units_of_people() -> None:
    assert [duration(s) for s in (3.4, 119, 121, 7100, 9000)] == ["3 s", "119 s", "2 min", "118 min", "2.5 h"]
