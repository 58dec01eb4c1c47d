"""The report: self-contained, well-formed, and saying the numbers that were measured."""

import base64
import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from evaluations import evaluation, records
from PIL import Image

from reneg_core.embedding import NegativeEmbedding, Provenance
from reneg_core.evaluate import Evaluation
from reneg_core.report import cautions, headline, write_report

VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    embedding = NegativeEmbedding(torch.zeros(1, 4, 5), "toy", provenance=Provenance("tiny", steps=40, seed=0))
    page = write_report(
        directory,
        evaluation(),
        title="A <title>",
        summary="What was done.",
        records=records(),
        config={"learning_rate": 0.01, "window": (6, 30), "height": None},
        embedding=embedding,
        command="reneg demo --seed 0",
    )
    assert page == directory / "report.html"
    return directory


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_files(folder: Path) -> None:
    names = {"report.html", "report.json", "comparison.png", "grid.png", "curve.png"}
    assert {path.name for path in folder.iterdir()} == names


def test_page_needs_nothing_from_outside(folder: Path, page: Page) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 3 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not any(word in html for word in ("http://", "https://", "@import", "url("))
    assert not any(name.startswith("on") or name == "href" for name, _ in page.attributes)


def test_embedded_pictures_are_the_files(folder: Path, page: Page) -> None:
    sources = [value.partition(",")[2] for name, value in page.attributes if name == "src"]
    files = [(folder / f"{name}.png").read_bytes() for name in ("grid", "comparison", "curve")]
    assert [base64.b64decode(source) for source in sources] == files
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 300


def test_page_says_what_was_measured(page: Page) -> None:
    """Prompt p, seed s scores p / 100 + s / 10 + shift / 2: the mean of none is 0.115 + 0.05."""
    for text in ("A <title>", "What was done.", "reneg demo --seed 0", "0.165", "prompt <7>", '"bad & ugly"'):
        assert text in page.text
    for text in ("learning rate", "6, 30", "not set", "base model", "24 × 2 = 48", "95 % bootstrap intervals"):
        assert text in page.text
    assert page.tags.count("li") == 24


def test_report_json_restores_the_evaluation(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert Evaluation.from_json(report) == evaluation()
    assert report["embedding"]["independent_mean"] == pytest.approx(0.165 + 0.15)
    assert report["win_rate"]["independent"]["embedding>none"]["rate"] == 1
    assert report["run"]["command"] == "reneg demo --seed 0" and report["run"]["embedding"]["steps"] == 40
    assert report["run"]["config"] == {"learning_rate": 0.01, "window": [6, 30], "height": None}


def test_headline_gives_differences_and_win_rates() -> None:
    text = headline(evaluation())
    assert text.startswith("Embedding scores 0.315 on pixels: 0.150 more than empty prompt (95 % interval +0.150 to ")
    assert 'than "bad & ugly"' in text and "wins 100 % of 48 pairs (100 to 100)." in text


def test_headline_admits_what_cannot_be_told() -> None:
    rows = {"none": [[0.0], [1.0], [0.0]], "embedding": [[1.0], [0.0], [0.1]]}
    unsure = headline(Evaluation(("a", "b", "c"), (0,), {"reward": rows}))
    assert "so no difference that these pairs can show" in unsure and "wins 67 % of 3 pairs" in unsure
    lone = headline(Evaluation(("a",), (0,), {"reward": {"none": [[0.5]], "mine": [[0.7]]}}))
    assert lone == "Mine scores 0.700 on reward: 0.200 more than none, and wins 100 % of one pair."
    assert headline(Evaluation(("a",), (0,), {"m": {"none": [[0.5]]}})) == "None scores 0.500 on m over one pair."


def test_reward_hacking_is_pointed_out() -> None:
    good = evaluation(pictures=False)
    falling = {mode: [[-value for value in row] for row in rows] for mode, rows in good.scores["reward"].items()}
    hacked = dataclasses.replace(good, scores={"reward": good.scores["reward"], "independent": falling})
    assert cautions(good) == []
    (caution,) = cautions(hacked)
    assert caution.startswith("The training reward rose while pixels fell: a sign of reward hacking.")


def test_weak_evidence_is_pointed_out(tmp_path: Path) -> None:
    few = evaluation(prompts=5, pictures=False)
    assert cautions(few)[0].startswith("With 5 prompts the intervals are rough")
    alone = Evaluation(("a",), (0,), {"reward": {"none": [[0.5]]}})
    assert [text[:26] for text in cautions(alone)] == ["Only the reward that was t", "With a single prompt the f"]
    text = Page(write_report(tmp_path, few).read_text(encoding="utf-8")).text
    assert cautions(few)[0] in text


def test_small_report_writes_only_what_it_has(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "folder", evaluation(pictures=False))
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"report.html", "report.json", "comparison.png"}


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Could not write .* Try another folder"):
        write_report(tmp_path / "file", evaluation(pictures=False))
