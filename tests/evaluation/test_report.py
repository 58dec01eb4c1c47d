"""The report: self-contained, well-formed, and saying the numbers that were measured."""

import base64
import builtins
import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from evaluations import evaluation, records
from PIL import Image

from reneg_core.embedding import NegativeEmbedding, Provenance
from reneg_core.evaluation import Evaluation, Pairs, Pictures, cautions, grid_of, prepare_folder, write_report

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


def flat(page: Page) -> str:
    """The page's text with every run of blanks as one."""
    return " ".join(page.text.split())


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
    names = {"report.html", "report.json", "comparison.png", "grid.png", "losses.png", "parts.png", "curve.png"}
    assert {path.name for path in folder.iterdir()} == names


def test_page_needs_nothing_from_outside(folder: Path, page: Page) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    sources = [value for name, value in page.attributes if name == "src"]
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not any(word in html for word in ("http://", "https://", "@import", "url("))
    assert not any(name.startswith("on") or name == "href" for name, _ in page.attributes)


def test_embedded_pictures_are_the_files(folder: Path, page: Page) -> None:
    sources = [value.partition(",")[2] for name, value in page.attributes if name == "src"]
    files = [(folder / f"{name}.png").read_bytes() for name in ("grid", "comparison", "losses", "parts", "curve")]
    assert [base64.b64decode(source) for source in sources] == files
    with Image.open(folder / "grid.png") as grid:
        assert grid.width > 300


def test_page_says_what_was_measured(page: Page) -> None:
    """Prompt p, seed s scores p / 100 + s / 10 + shift / 2: the mean of none is 0.115 + 0.05."""
    for text in ("A <title>", "What was done.", "reneg demo --seed 0", "0.165", "prompt <7>", '"bad & ugly"'):
        assert text in page.text
    for text in ("learning rate", "6, 30", "not set", "base model", "24 prompts × 2 noises of their own = 48"):
        assert text in page.text
    for text in ("95 % bootstrap intervals", "every picture has a noise of its own"):
        assert text in flat(page)
    assert page.tags.count("li") == 24


def test_page_says_how_each_mode_was_sampled(tmp_path: Path, page: Page) -> None:
    """Once for all where it is the same, else beside each mode and in the table of settings."""
    words = "10 Euler steps, trailing spacing, guidance scale 3"
    assert flat(page).count(words) == 1 and f"from the same noise: {words}." in flat(page)
    mixed = evaluation(pictures=False)
    own = mixed.samplings["none"].at_scale(5)
    mixed = dataclasses.replace(mixed, samplings={**mixed.samplings, "none": own})
    text = flat(Page(write_report(tmp_path, mixed).read_text(encoding="utf-8")))
    assert text.count(words) == 4 and text.count("guidance scale 5") == 2 and "from the same noise. Higher" in text


def test_page_shows_the_parts_of_the_measure(page: Page) -> None:
    """colour moves with the whole shift: 0.165, 0.265, 0.465; edge not at all."""
    text = flat(page)
    section = text[text.index("What the measure is made of") : text.index("Learning")]
    assert "parts of pixels" in section and section.count("0.465") == 1 and section.count("0.165") == 4
    assert section.index("colour") < section.index("edge")


def losing_section(text: str) -> str:
    return text[text.index("Where embedding loses") : text.index("What the measure is made of")]


def test_page_says_where_the_learned_negative_loses(tmp_path: Path, page: Page) -> None:
    """The first six prompts lose 0.2 to 0.1 on their first noise; all other pairs gain 0.15."""
    assert "It scores lower than empty prompt on 0 of 48 pairs" in losing_section(flat(page))
    found = evaluation()
    rows = [[s - 0.15 - 0.2 + p / 50 if p < 6 and k == 0 else s for k, s in enumerate(row)]
            for p, row in enumerate(found.scores["independent"]["embedding"])]  # fmt: skip
    tables = {**found.scores["independent"], "embedding": rows}
    found = dataclasses.replace(found, scores={**found.scores, "independent": tables})
    text = losing_section(flat(Page(write_report(tmp_path, found).read_text(encoding="utf-8"))))
    assert "It scores lower than empty prompt on 6 of 48 pairs" in text
    listed = text[text.index("The largest losses") : text.index("Mean change in each half")]
    assert [listed.index(f"prompt <{p}>") for p in range(6)] == sorted(listed.index(f"prompt <{p}>") for p in range(6))
    assert "0.000 -0.200 -0.20" in listed, "baseline, subject, change of prompt 0"
    assert "where it scores lower where it scores higher none empty prompt" in text
    halves = found.halves("independent", "embedding", "none")
    assert f"{halves.lower.value:+.3f}" in text and f"{halves.upper.value:+.3f}" in text


def test_losses_stand_one_above_the_other(folder: Path) -> None:
    """Two rows, baseline (grey 0.2) above subject (grey 0.5), one column per lost pair."""
    with Image.open(folder / "losses.png") as image:
        column = [image.getpixel((image.width - 60, y))[0] for y in range(image.height)]
    first, last = (max(range(len(column)), key=lambda y: (column[y] == value, y)) for value in (51, 128))
    assert first < last and column.count(51) > 50 and column.count(128) > 50


def test_nothing_that_people_write_becomes_markup(tmp_path: Path) -> None:
    """Every text that can come from outside, as an attack on the page: it is shown as it is."""
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 71 * 7919 }}{% raw %}"
    pairs = Pairs((f"a {evil}", "b"), ((1,), (2,)))
    tables = {"none": [[0.1], [0.2]], "embedding": [[0.05], [0.3]]}
    found = Evaluation(
        pairs, {evil: tables}, {evil: {f"part {evil}": tables}}, {}, {"embedding": evil, evil: f"measure {evil}"},
        {f"key {evil}": evil, "model": evil}, {"torch": evil}, losses=Pictures(((0, 0),), {
            mode: torch.zeros(1, 3, 8, 8) for mode in tables}),
    )  # fmt: skip
    embedding = NegativeEmbedding(torch.zeros(1, 4, 5), "toy", provenance=Provenance(evil, notes={evil: [evil]}))
    written = write_report(
        tmp_path, found, title=evil, summary=evil, config={evil: {evil: evil}}, embedding=embedding, command=evil
    )
    html = written.read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags and "onerror" not in {name for name, _ in page.attributes}
    sources = [value for name, value in page.attributes if name == "src"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert page.text.count(evil) >= 15 and "<script" not in html and "562249" not in html
    assert json.loads((tmp_path / "report.json").read_text())["run"]["title"] == evil


def test_grid_shows_the_pair_and_the_deciding_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    from reneg_core.evaluation import report

    seen = {}
    monkeypatch.setattr(
        report, "grid", lambda rows, labels, columns, **rest: seen.update(rest, labels=labels, rows=rows)
    )
    grid_of(evaluation())
    assert seen["labels"] == ["prompt <0>\nseed 0", "prompt <12>\nseed 24"]
    assert seen["captions"] == [["0.000", "0.050", "0.150"], ["0.120", "0.170", "0.270"]]
    assert [[float(picture[0, 0, 0]) for picture in row] for row in seen["rows"]] == [
        pytest.approx([0.2, 0.3, 0.5])
    ] * 2


def test_report_json_restores_the_evaluation(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert Evaluation.from_json(report) == evaluation()
    assert report["embedding"]["independent_mean"] == pytest.approx(0.165 + 0.15)
    assert report["win_rate"]["independent"]["embedding>none"]["rate"] == 1
    assert report["run"]["command"] == "reneg demo --seed 0" and report["run"]["embedding"]["steps"] == 40
    assert report["run"]["config"] == {"learning_rate": 0.01, "window": [6, 30], "height": None}


def test_small_report_writes_only_what_it_has(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "folder", evaluation(pictures=False))
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"report.html", "report.json", "comparison.png", "parts.png"}


def test_cautions_are_on_the_page(tmp_path: Path) -> None:
    few = evaluation(prompts=5, pictures=False)
    text = flat(Page(write_report(tmp_path, few).read_text(encoding="utf-8")))
    assert cautions(few)[0] in text


def test_a_report_can_be_written_again_from_its_json(tmp_path: Path, folder: Path) -> None:
    again = Evaluation.from_json(json.loads((folder / "report.json").read_text()))
    page = write_report(tmp_path, again, title="A <title>")
    assert "0.165" in page.read_text(encoding="utf-8") and not (tmp_path / "losses.png").exists()


def test_one_mode_alone_has_no_rivals(tmp_path: Path) -> None:
    lone = Evaluation(Pairs.own(["a"], 1), {"m": {"none": [[0.5]]}})
    text = flat(Page(write_report(tmp_path, lone).read_text(encoding="utf-8")))
    assert "loses" not in text and "Who wins" not in text and "A single pair has no interval." in text


def test_folder_is_tried_out_before_the_work(tmp_path: Path) -> None:
    assert prepare_folder(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Could not write .* Try another folder"):
        prepare_folder(tmp_path / "file")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=rf"The package {package} is missing; .* Try: pip install {package}"):
        prepare_folder(tmp_path)


def test_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Could not write .* Try another folder"):
        write_report(tmp_path / "file", evaluation(pictures=False))
