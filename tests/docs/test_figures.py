"""Every measured number in the documents stands in a results file that a script wrote."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(figures)

MARKED_WHOLLY = (
    "README.md",
    "docs/recipes.md",
    "docs/benchmarks.md",
    "docs/evaluation.md",
    "docs/models.md",
    "docs/texforce.md",
    "reneg_core/tiny/README.md",
)
NOT_MEASURED = re.compile(
    r"0\.9/0\.999|https?://\S+|arXiv \S+|`[^`]*`|```.*?```|\bversion \d\S*|\b\d+\.\d+\.\d+\b|\[[^\]]*\]\([^)]*\)", re.S
)


@pytest.mark.parametrize("name", figures.DOCUMENTS)
def test_the_documents_quote_what_the_results_say(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert figures.rendered(text) == text, "run python scripts/figures.py"


@pytest.mark.parametrize("name", MARKED_WHOLLY)
def test_no_measured_number_stands_outside_a_mark(name: str):
    text = figures.MARK.sub("", (ROOT / name).read_text(encoding="utf-8"))
    assert re.findall(r"[^\s|(]*\b0\.\d{2,}\b[^\s|)]*", NOT_MEASURED.sub("", text)) == []


def test_a_mark_is_filled_anew_and_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(figures.FIGURES, "twice", lambda value: str(2 * int(value)))
    assert figures.rendered("a <!--=twice:4-->7<!--/--> b") == "a <!--=twice:4-->8<!--/--> b"
    with pytest.raises(KeyError, match="nothing"):
        figures.rendered("<!--=nothing-->1<!--/-->")


def test_figures_are_rounded_from_the_results(monkeypatch: pytest.MonkeyPatch):
    run = {
        "against": {
            "embedding>none": {"difference": 0.12345, "interval": [-0.01, 0.25], "wins": 0.678, "upper_half": -0.0049}
        }
    }
    monkeypatch.setattr(figures, "results", lambda name: {"demo": run})
    assert figures.FIGURES["gain"]("embedding", "none") == "+0.123 (-0.010 to +0.250)"
    assert figures.FIGURES["wins"]("embedding", "none") == "68%"
    assert figures.FIGURES["upper_half"]("embedding", "none") == "-0.005"
