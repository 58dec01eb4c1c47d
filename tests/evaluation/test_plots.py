"""Charts of results: colours that must be there, and what must not change."""

import matplotlib
import numpy as np
import pytest
from evaluations import evaluation, records
from PIL import Image

from reneg_core.evaluation import plots


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_smooth_is_a_centred_mean_that_keeps_straight_lines() -> None:
    assert plots.smooth([0, 1, 2, 3, 4], 2) == [0, 1, 2, 3, 4]
    assert plots.smooth([0, 3, 0], 1) == [0, 1, 0]


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def has(image: Image.Image, colour: str) -> bool:
    return bool((abs(pixels(image) - rgb(colour)).max(2) <= 2).any())


def test_learning_curve_draws_what_there_is() -> None:
    full, plain = plots.learning_curve(records()), plots.learning_curve(records(watch=False))
    steps_only = plots.learning_curve([r for r in records() if r["event"] == "step"])
    validation, watched, best = plots.COLOURS[2], plots.COLOURS[3], plots.COLOURS[5]
    assert full.height > plain.height
    assert has(full, watched) and not has(plain, watched)
    assert has(plain, best) and has(plain, validation)
    assert not has(steps_only, best) and not has(steps_only, validation)


def test_learning_curve_counts_the_later_of_equal_steps() -> None:
    stale = [{"event": "step", "step": 5, "reward": 1e6, "learning_rate": 0.01}]
    other = [{"event": "out_of_memory", "step": 5, "micro_batch": 2}]
    assert (pixels(plots.learning_curve(stale + other + records())) == pixels(plots.learning_curve(records()))).all()


def test_learning_curve_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Got no step and no validation records"):
        plots.learning_curve([{"event": "out_of_memory", "step": 1}])


def test_comparison_has_a_colour_per_mode_and_a_panel_per_measure() -> None:
    image = plots.comparison(evaluation())
    assert all(has(image, colour) for colour in plots.COLOURS[:3]) and not has(image, plots.COLOURS[3])
    lone = evaluation(prompts=1, seeds=1)
    assert plots.comparison(lone).width == image.width


def test_plots_leave_matplotlib_as_it_was() -> None:
    settings, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    plots.comparison(evaluation())
    plots.learning_curve(records())
    plots.parts(evaluation(), "independent")
    assert dict(matplotlib.rcParams) == settings and matplotlib.get_backend() == backend


def test_parts_have_a_dot_per_mode_where_its_mean_is() -> None:
    """Each mode's dots stand in its own colour; the mode with the higher part stands further right."""
    image = plots.parts(evaluation(), "independent")
    columns = [abs(pixels(image) - rgb(colour)).max(2) <= 2 for colour in plots.COLOURS[:3]]
    colour_row = [mask[40 : image.height // 2].nonzero()[1].mean() for mask in columns]
    assert colour_row[0] < colour_row[1] < colour_row[2]
    assert not has(image, plots.COLOURS[3])
    with pytest.raises(ValueError, match="Got the measure 'reward', which has no parts"):
        plots.parts(evaluation(), "reward")


def test_labels_are_text_and_no_formulas() -> None:
    odd = evaluation().labelled(reward="cost in $ (not $\\frac{)", independent="$")
    assert plots.comparison(odd).width == plots.comparison(evaluation()).width
