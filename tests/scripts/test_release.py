"""A release is one command: the version and the changelog change together, or nothing does."""

import importlib.util
import re
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)

CODE = '"""A package."""\n\n__version__ = "0.2.0.dev0"\n\n__all__ = ["__version__"]\n'
LOG = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- A thing,\n  told twice.\n\n## 0.1.0\n\n- The first.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "reneg_core").mkdir()
    (tmp_path / "reneg_core" / "__init__.py").write_text(CODE)
    (tmp_path / "CHANGELOG.md").write_text(LOG)
    return tmp_path


def texts(checkout: Path) -> tuple[str, str]:
    return (checkout / "reneg_core" / "__init__.py").read_text(), (checkout / "CHANGELOG.md").read_text()


def test_a_release_and_the_next_one(checkout: Path, capsys: pytest.CaptureFixture) -> None:
    today = date.today().isoformat()
    assert release.main(["--released"], checkout) == 1
    assert release.main([], checkout) == 0
    dated = LOG.replace("0.2.0 (unreleased)", f"0.2.0 ({today})")
    assert texts(checkout) == (CODE.replace(".dev0", ""), dated)
    assert release.main(["--released"], checkout) == 0
    capsys.readouterr()
    assert release.main(["--notes"], checkout) == 0
    assert capsys.readouterr().out == "- A thing,\n  told twice.\n"
    assert release.main(["--next", "0.3.0"], checkout) == 0
    assert texts(checkout) == (
        CODE.replace("0.2.0.dev0", "0.3.0.dev0"),
        dated.replace("# Changelog\n\n", "# Changelog\n\n## 0.3.0 (unreleased)\n\n\n"),
    )


@pytest.mark.parametrize(
    ("version", "log", "arguments", "message"),
    [
        ("0.2.0", LOG, [], "0.2.0 is released already"),
        ("0.2.0.dev0", LOG, ["--next", "0.3.0"], "0.2.0 is not released yet"),
        ("0.2.0", LOG, ["--next", "0.2.0"], "expected one like 1.2.3 above 0.2.0"),
        ("0.10.0", LOG, ["--next", "0.9.0"], "expected one like 1.2.3 above 0.10.0"),
        ("0.2.0", LOG, ["--next", "0.3"], "Got the next version '0.3'"),
        ("0.3.0.dev0", LOG, [], "The changelog says nothing about 0.3.0"),
        ("0.2.0.dev0", LOG.replace("- A thing,\n  told twice.\n", ""), [], "says nothing about 0.2.0"),
        ("0.2.0.dev0", LOG.replace(" (unreleased)", ""), [], "lacks the heading '## 0.2.0 (unreleased)'"),
        ("two", LOG, [], "Got 0 lines like __version__"),
    ],
)
def test_what_cannot_be_released_changes_nothing(
    version: str, log: str, arguments: list[str], message: str, checkout: Path, capsys: pytest.CaptureFixture
) -> None:
    (checkout / "reneg_core" / "__init__.py").write_text(CODE.replace("0.2.0.dev0", version))
    (checkout / "CHANGELOG.md").write_text(log)
    before = texts(checkout)
    assert release.main(arguments, checkout) == 2
    assert message in capsys.readouterr().err
    assert texts(checkout) == before


def test_this_checkout_can_be_released() -> None:
    found = release.Release(ROOT)
    assert re.fullmatch(release.NUMBER, found.number) and found.notes().startswith("- ")
