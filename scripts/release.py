"""Makes a release, or begins the next one: the version and the changelog's heading, together.

    python scripts/release.py                 # 0.2.0.dev0 becomes 0.2.0, dated today
    python scripts/release.py --next 0.3.0    # afterwards: 0.3.0.dev0 and an empty section
    python scripts/release.py --notes         # what the changelog says about the current version
    python scripts/release.py --released      # exit code 0 if the current version is a release, 1 if it is not

Commit what it changed. A released version that reaches the branch main is published to the Comfy Registry
(.github/workflows/publish.yml); a published version can never be changed.
"""

import argparse
import re
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUMBER = r"\d+\.\d+\.\d+"
STATEMENT = re.compile(rf'^__version__ = "({NUMBER})(\.dev\d+)?"$', re.MULTILINE)


class Release:
    """The two files that carry the version, in a checkout.

    Errors: ValueError where they do not fit each other or what is asked for.
    """

    def __init__(self, root: Path) -> None:
        self.source, self.changelog = root / "reneg_core" / "__init__.py", root / "CHANGELOG.md"
        self.code, self.log = (path.read_text(encoding="utf-8") for path in (self.source, self.changelog))
        found = STATEMENT.findall(self.code)
        if len(found) != 1:
            raise ValueError(f'Got {len(found)} lines like __version__ = "1.2.3" in {self.source}, expected one.')
        [(self.number, suffix)] = found
        self.released = not suffix

    def notes(self) -> str:
        """What the changelog says about the current version."""
        found = re.search(
            rf"^## {re.escape(self.number)}(?: \([^)]*\))?\n(.*?)(?=^## |\Z)", self.log, re.MULTILINE | re.DOTALL
        )
        if not found or not found[1].strip():
            raise ValueError(f"The changelog says nothing about {self.number}; write what changed first.")
        return found[1].strip()

    def finish(self, day: date) -> None:
        """The version under development becomes a release of ``day``."""
        if self.released:
            raise ValueError(f"{self.number} is released already. Try: python scripts/release.py --next 1.2.3")
        self.notes()
        heading = f"## {self.number} (unreleased)\n"
        if heading not in self.log:
            raise ValueError(f"The changelog lacks the heading {heading.strip()!r}.")
        self._write(self.number, self.log.replace(heading, f"## {self.number} ({day.isoformat()})\n"))

    def begin(self, number: str) -> None:
        """The version under development is ``number`` from now on."""
        if not self.released:
            raise ValueError(f"{self.number} is not released yet. Try: python scripts/release.py")
        if not re.fullmatch(NUMBER, number) or _parts(number) <= _parts(self.number):
            raise ValueError(f"Got the next version {number!r}, expected one like 1.2.3 above {self.number}.")
        self._write(f"{number}.dev0", self.log.replace("\n## ", f"\n## {number} (unreleased)\n\n\n## ", 1))

    def _write(self, version: str, log: str) -> None:
        self.source.write_text(STATEMENT.sub(f'__version__ = "{version}"', self.code), encoding="utf-8", newline="\n")
        self.changelog.write_text(log, encoding="utf-8", newline="\n")


def _parts(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split(".")))


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--next", metavar="X.Y.Z", help="begin this version")
    choice.add_argument("--notes", action="store_true", help="print the current version's changes")
    choice.add_argument("--released", action="store_true", help="say by the exit code whether it is a release")
    chosen = parser.parse_args(arguments)
    try:
        release = Release(root)
        if chosen.released:
            return int(not release.released)
        if chosen.notes:
            print(release.notes())
        elif chosen.next:
            release.begin(chosen.next)
            print(f"{chosen.next}.dev0 is under development.")
        else:
            release.finish(date.today())
            print(f"{release.number} is ready: commit {release.source.name} and {release.changelog.name}.")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
