"""The published benchmark statistics on hand-made numbers and folders."""

import json

import numpy as np
import pytest
from PIL import Image

from reneg_core.evaluation.protocols import hpsv2_jobs, hpsv2_table, prompt_set_jobs, prompt_set_rows, score_jobs
from reneg_core.rewards import load_reward


def test_hpsv2_groups_of_80_in_order():
    scores = {"anime": [0.2] * 80 + [0.3] * 80, "photo": [0.25] * 160}
    table = hpsv2_table(scores, "hpsv2.1")
    anime, photo = table.rows
    assert (anime.style, anime.count) == ("anime", 160)
    assert anime.mean == pytest.approx(25.0) and anime.std == pytest.approx(5.0)  # population: |30 - 20| / 2
    assert photo.mean == pytest.approx(25.0) and photo.std == pytest.approx(0.0)
    assert table.average == pytest.approx(25.0)


def test_hpsv2_with_a_short_last_group_weighs_groups_not_pictures():
    table = hpsv2_table({"photo": [0.2] * 80 + [0.4] * 20}, "hpsv2.1")
    assert table.rows[0].mean == pytest.approx(30.0)
    assert table.average == pytest.approx(24.0)


def test_hpsv2_of_800_random_scores_equals_numpy():
    values = np.random.default_rng(0).normal(0.27, 0.02, 800)
    row = hpsv2_table({"photo": values.tolist()}, "x").rows[0]
    means = values.reshape(10, 80).mean(1) * 100
    assert row.mean == pytest.approx(means.mean()) and row.std == pytest.approx(means.std())


def test_prompt_set_rows():
    row = prompt_set_rows({"pickscore": [19.0, 21.0, 20.0, 20.0]})[0]
    assert row.mean == 20.0 and row.count == 4
    assert row.standard_error == pytest.approx((2 / 3) ** 0.5 / 2)
    with pytest.raises(ValueError, match="got 1 scores of pickscore, expected at least 2"):
        prompt_set_rows({"pickscore": [1.0]})
    with pytest.raises(ValueError, match="a style without scores"):
        hpsv2_table({"photo": []}, "hpsv2.1")


@pytest.fixture
def benchmark(tmp_path):
    for style, values in (("anime", (10, 20)), ("photo", (30,))):
        folder = tmp_path / "pictures" / style
        folder.mkdir(parents=True)
        for i, value in enumerate(values):
            Image.new("RGB", (6, 6), (value,) * 3).save(folder / f"{i * 2:05d}.png")
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} {i}" for i in range(3)]))
    return tmp_path


def test_pictures_meet_the_prompt_of_their_number(benchmark):
    jobs = hpsv2_jobs(benchmark / "pictures", benchmark)
    assert [(p.name, prompt) for p, prompt in jobs["anime"]] == [("00000.png", "anime 0"), ("00002.png", "anime 2")]
    scored = {
        style: [r.score for r in score_jobs(load_reward("brightness"), entries)] for style, entries in jobs.items()
    }
    table = hpsv2_table(scored, "brightness")
    assert table.average == pytest.approx(100 * (10 + 20 + 30) / 3 / 255)


def test_prompt_sets_from_tsv_text_and_json(benchmark):
    folder = benchmark / "pictures" / "anime"
    tsv = benchmark / "parti.tsv"
    tsv.write_text("Prompt\tCategory\na\tx\nb\ty\nc\tz\n")
    assert [prompt for _, prompt in prompt_set_jobs(folder, tsv)] == ["a", "c"]
    lines = benchmark / "lines.txt"
    lines.write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"00002\.png has no prompt: .*lines\.txt holds 2"):
        prompt_set_jobs(folder, lines)


def test_layout_errors_are_explained(benchmark):
    with pytest.raises(FileNotFoundError, match=r"one subfolder per style, e\.g\. anime"):
        hpsv2_jobs(benchmark / "none", benchmark)
    (benchmark / "photo.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"photo\.json does not exist"):
        hpsv2_jobs(benchmark / "pictures", benchmark)
    (benchmark / "pictures" / "anime" / "00000.png").rename(benchmark / "pictures" / "anime" / "first.png")
    with pytest.raises(ValueError, match=r"first\.png: expected a name that is the prompt's number"):
        prompt_set_jobs(benchmark / "pictures" / "anime", benchmark / "anime.json")
