"""The documents name every family and every convention as the code has them."""

from pathlib import Path

import pytest

from reneg_core.backends.families import PIPELINES
from reneg_core.conventions import FAMILIES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", FAMILIES)
def test_conventions_are_in_the_formats(name: str) -> None:
    rows = (DOCS / "formats.md").read_text(encoding="utf-8").splitlines()
    [row] = [row for row in rows if row.startswith(f"| `{name}` |")]
    width, length, mask = row.split("|")[2:5]
    family = FAMILIES[name]
    pooled = f", pooled {family.pooled}" if family.pooled else ""
    assert width.strip() == f"{family.width}{pooled}" and mask.strip() == ("yes" if family.masked else "no")
    assert sum(int(part) for part in length.split("+")) == family.length


@pytest.mark.parametrize(("kind", "family"), PIPELINES.items())
def test_pipelines_are_in_the_models(kind: str, family: type) -> None:
    text = (DOCS / "models.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` | `{name}` |" in text for name in family.conventions)
