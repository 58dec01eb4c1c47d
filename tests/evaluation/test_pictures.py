"""Pictures of results: sizes, pixels that must be there, and labels that leave ink where they stand."""

import matplotlib
import numpy as np
import pytest
import torch
from evaluations import evaluation, records
from PIL import Image

from reneg_core import plots


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def ink(image: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Dark pixels in (left, top, right, bottom)."""
    return int((pixels(image.crop(box)).sum(2) < 300).sum())


def flat(value: float, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.full((3, height, width), value)


def test_to_image_keeps_channels_and_clamps() -> None:
    picture = torch.stack([torch.zeros(2, 3), torch.full((2, 3), 0.5), torch.full((2, 3), 2.0)])
    image = plots.to_image(picture)
    assert image.size == (3, 2) and image.getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((32, 32), 160, (160, 160)), ((30, 20), 100, (90, 60)), ((512, 256), 160, (160, 80)), ((7, 160), 160, (7, 160))],
)
def test_enlarge_by_whole_factors_or_reduce(size: tuple, side: int, expected: tuple) -> None:
    assert plots.enlarge(Image.new("RGB", size), side).size == expected


def test_enlarged_pixels_are_exact_blocks() -> None:
    picture = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    large = pixels(plots.enlarge(plots.to_image(picture), 12))
    assert (large[::3, ::3] == pixels(plots.to_image(picture))).all()
    assert (large == large[::3, ::3].repeat(3, 0).repeat(3, 1)).all()


def test_grid_places_every_picture_once() -> None:
    greys = [[0.25, 0.5], [0.75, 0.125], [0.375, 0.875]]
    rows = [[flat(value) for value in row] for row in greys]
    image = pixels(plots.grid(rows, ["a", "b", "c"], ["left", "right"], side=80))
    for row in greys:
        for value in row:
            inside = (image == round(value * 255)).all(2)
            assert 78 * 78 <= inside.sum() <= 81 * 81
    left, right = ((image == round(value * 255)).all(2).nonzero()[1].mean() for value in greys[0])
    top, bottom = ((image == round(row[0] * 255)).all(2).nonzero()[0].mean() for row in (greys[0], greys[2]))
    assert left < right and top < bottom


def test_grid_labels_are_drawn_where_they_belong() -> None:
    rows = [[flat(1.0)], [flat(1.0)]]
    image = plots.grid(rows, ["first prompt\nseed 3", " "], ["learned"], captions=[["0.5"], [" "]], side=80)
    blank = plots.grid(rows, [" ", " "], [" "], side=80)
    middle = image.height // 2
    assert ink(image, (0, 30, 100, middle)) > 50 and ink(image, (0, middle + 20, 100, image.height)) == 0
    assert ink(image, (100, 0, image.width, 40)) > 50
    assert image.height == blank.height + 2 * 18
    assert ink(blank, (0, 0, *blank.size)) == 0


def test_captions_and_second_lines_are_grey() -> None:
    rows = [[flat(1.0)]]
    bare, second, captioned = (
        pixels(plots.grid(rows, [label], [" "], captions=[[caption]], side=80))
        for label, caption in ((" ", " "), (" \nseed 3", " "), (" ", "0.5"))
    )
    assert (second[:, :90] < 200).any() and not (bare[:, :90] < 200).any()
    assert (captioned[-50:] < 150).any() and not (bare[-50:] < 150).any()


def test_grid_with_one_row_of_tall_pictures_and_a_long_prompt() -> None:
    label = "a cat " * 60 + "\nseed 1"
    image = plots.grid([[flat(0.5, 64, 16)] * 3], [label], ["none", "text", "embedding"], side=64)
    assert image.height >= 9 * 19 and image.width < 800


@pytest.mark.parametrize("text", ["a red fox on a blue chair", "x" * 80, "", "wide " * 40])
def test_wrapped_lines_fit(text: str) -> None:
    lines = plots.wrap(text, 100, 14)
    assert 1 <= len(lines) <= 8
    assert all(plots.font(14).getlength(line.removesuffix(" …")) <= 101 for line in lines)
    if len(lines) < 8:
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    else:
        assert lines[-1].endswith("…")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "Got no pictures for the grid"),
        (([[flat(0)]], ["a", "b"], ["c"]), "with 2 row labels"),
        (([[flat(0)]], ["a"], ["c", "d"]), "and 2 column labels"),
        (([[flat(0), flat(0, 4)]], ["a"], ["c", "d"]), "Got pictures of different sizes"),
        (([[torch.zeros(8, 8, 3)]], ["a"], ["c"]), r"shape \[8, 8, 3\], expected \[3, height, width\]"),
    ],
)
def test_grid_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.grid(*arguments)


def test_smooth_is_a_centred_mean_that_keeps_straight_lines() -> None:
    assert plots.smooth([0, 1, 2, 3, 4], 2) == [0, 1, 2, 3, 4]
    assert plots.smooth([0, 3, 0], 1) == [0, 1, 0]


def has(image: Image.Image, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((abs(pixels(image) - wanted).max(2) <= 2).any())


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
    assert dict(matplotlib.rcParams) == settings and matplotlib.get_backend() == backend
