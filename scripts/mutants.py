"""Plant mistakes in the code, see which the tests notice, and write that to benchmarks/results/mutants.json.

    python scripts/mutants.py                  every mutant that has no verdict yet
    python scripts/mutants.py --again          those that were not noticed, once more (after new tests); of some names
    python scripts/mutants.py 'reneg_core.guidance*'    only mutants of these names
    python scripts/mutants.py --sample 500     so many of those without a verdict, drawn at random: the quick ones come
                                               first otherwise, and what is left says more about the slow ones so
    python scripts/mutants.py --write          only write the file from the verdicts that there are

Mutants and runs are mutmut's (what is mutated and which tests run: ``[tool.mutmut]`` in pyproject.toml); verdicts are
kept in mutants/ and go on where they were stopped. Exit code 1 if fewer than 90 % are noticed.
"""

import argparse
import json
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import libcst as cst
import yaml
from mutmut.__main__ import cli
from mutmut.mutation import file_mutation
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import change_cwd, walk_mutatable_files
from mutmut.workers import isolation

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
MEMORY = Path("/dev/shm")
REASONS = Path(__file__).with_suffix(".yaml")
ENOUGH = 0.9
NOTICED = ("killed", "timeout")

MEMORY_OF_TESTS = ROOT / "mutants" / "noticed"
"""A file for each function: which tests noticed mutants of it."""

COPIED = {"torch.no_grad", "lru_cache"}
"""Decorators under which a function may be copied; mutmut leaves every decorated function out."""


class Visitor(file_mutation.MutationVisitor):
    """Finds mutants under the decorators of ``COPIED`` too."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef) and node.decorators:
            names = {re.sub(r"\(.*", "", cst.Module([]).code_for_node(part.decorator)) for part in node.decorators}
            if names <= COPIED:
                return False
        return super()._skip_node_and_children(node)


def noticed_by(pattern: str) -> Counter[str]:
    """How many mutants of the functions of these names each test has noticed."""
    files = MEMORY_OF_TESTS.glob(pattern)
    return Counter(line for file in files for line in file.read_text(encoding="utf-8").splitlines())


class Runner(PytestRunner):
    """The tests that noticed most mutants of the same function come first and by themselves; then those that notice
    most in their time in its module, and the others from the quickest on. Few mutants need more than the first ones."""

    FIRST = 4

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        """pytest's exit code; 0 is a mutant that nobody noticed."""
        if mutant_name is None:
            return super().run_tests(mutant_name=None, tests=tests)
        function = re.sub(r"__mutmut_\d+$", "", mutant_name)
        notes, module = MEMORY_OF_TESTS / function, ".".join(function.split(".")[:-1])
        first = [test for test, _ in noticed_by(function).most_common() if test in tests][: self.FIRST]
        others, seconds = noticed_by(f"{module}.*"), state().duration_by_test
        rest = sorted(tests, key=lambda test: (-others[test] / (seconds[test] + 0.01), seconds[test]))
        code = self._run(first, notes)
        return code or self._run([test for test in rest if test not in first], notes)

    def _run(self, tests: list[str], notes: Path) -> int:
        class Noting:
            @staticmethod
            def pytest_runtest_logreport(report: Any) -> None:
                if report.failed:
                    with notes.open("a", encoding="utf-8") as file:
                        file.write(report.nodeid + "\n")

        if not tests:
            return 0
        with change_cwd("mutants"):
            return int(self.execute_pytest([*self._pytest_args_regular_run(tests), "--tb=no"], plugins=[Noting]))


def verdicts() -> dict[str, dict[str, str]]:
    """By file and mutant: killed, timeout, survived, no tests, not checked."""
    found = {}
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        if data.exit_code_by_key:
            found[str(path)] = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
    return found


def forget(names: list[str]) -> list[str]:
    """Drop the verdicts of mutants that were not noticed (of these names, if any), which are returned, and which tests
    are known to reach which function: mutmut adds new tests there, and not new functions."""
    Path("mutants/mutmut-stats.json").unlink(missing_ok=True)
    forgotten = []
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            meant = not names or any(fnmatch(name, pattern) for pattern in names)
            if meant and status_by_exit_code[code] not in (*NOTICED, "not checked"):
                data.exit_code_by_key[name] = None
                forgotten.append(name)
        if data.exit_code_by_key:
            data.save()
    return forgotten


def drawn(count: int) -> list[str]:
    """So many mutants without a verdict, at random."""
    left = [name for mutants in verdicts().values() for name, verdict in mutants.items() if verdict == "not checked"]
    return random.Random(len(left)).sample(left, min(count, len(left)))


def plain_name(mutant: str) -> str:
    """``reneg_core.guidance.xǁGuidanceǁactive__mutmut_3`` as ``reneg_core.guidance.Guidance.active``."""
    module, _, name = re.sub(r"__mutmut_\d+$", "", mutant).rpartition(".")
    return f"{module}.{name[1:].strip('ǁ').replace('ǁ', '.')}" if "ǁ" in name else f"{module}.{name[2:]}"


@cache
def reasons() -> list[tuple[str, str]]:
    """A pattern on "function: line -> mutated line", and why such a mutant may live."""
    listed = yaml.safe_load(REASONS.read_text(encoding="utf-8"))
    return [(pattern, entry["why"]) for entry in listed for pattern in entry["lines"]]


def living(path: str, mutant: str, verdict: str) -> list[str]:
    """A mutant that was not noticed: its function, the line, what became of it, and why it may live."""
    lines = get_diff_for_mutant(mutant, path=path).splitlines()[2:]
    was, became = (" ".join(line[1:].strip() for line in lines if line[0] == sign).replace("`", "'") for sign in "-+")
    function = plain_name(mutant).removeprefix("reneg_core.")
    told = f"{function}: {was} -> {became}"
    reason = next((reason for pattern, reason in reasons() if re.search(pattern, told)), "")
    return [
        f"`{function}`",
        f"`{was}`",
        f"`{became}`",
        reason or ("no test comes here" if verdict == "no tests" else ""),
    ]


def write(run: dict[str, float], sample: bool = False) -> float:
    """Write the results; returns the share of the mutants that were noticed. sample: the run's were drawn at random."""
    modules, left = [], []
    for path, mutants in verdicts().items():
        tried = {mutant: verdict for mutant, verdict in mutants.items() if verdict != "not checked"}
        noticed = sum(verdict in NOTICED for verdict in tried.values())
        if tried:
            modules.append([f"`{path}`", len(mutants), len(tried), noticed, round(noticed / len(tried), 3)])
        left += [living(path, mutant, verdict) for mutant, verdict in tried.items() if verdict not in NOTICED]
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    every, tried, noticed = (sum(row[column] for row in modules) for column in (1, 2, 3))
    sampled = run if sample else before.get("sample", {})
    text = {
        "noticed": noticed,
        "tried": tried,
        "minutes": round(spent() / 60),
        "last_run": run or before.get("last_run", {}),
    }
    text |= {"sample": sampled if tried < every else {}, "modules": modules, "living": left}
    RESULTS.write_text(json.dumps(text, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    share, unexplained = noticed / max(tried, 1), sum(not row[-1] for row in left)
    print(f"\n{noticed} of {tried} mutants noticed: {share:.1%}; {unexplained} of the others without a reason")
    return share


@contextmanager
def folders_in_memory() -> Iterator[None]:
    """Tests' folders in memory where the system offers that: they write checkpoints to the disk, and wait for it, in
    every mutant (three times as long in all)."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        os.environ["TMPDIR"] = folder
        yield


def spent(more: float = 0.0) -> float:
    """Seconds of all runs that made the verdicts that there are, with ``more`` added."""
    file = ROOT / "mutants" / "seconds"
    seconds = more + (float(file.read_text(encoding="utf-8")) if file.exists() else 0.0)
    file.write_text(f"{seconds}", encoding="utf-8")
    return seconds


def run(names: list[str], children: int) -> dict[str, float]:
    """Run mutmut; how many mutants it tried of those without a verdict, how many were noticed, and what that took by
    the clock and of processors."""
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    before = {name for mutants in verdicts().values() for name, verdict in mutants.items() if verdict != "not checked"}
    with folders_in_memory():
        try:
            cli.main(["run", "--max-children", str(children), *names], standalone_mode=False)
        except KeyboardInterrupt:
            print("stopped; the verdicts so far are kept")
    verdict = {name: verdict for mutants in verdicts().values() for name, verdict in mutants.items()}
    fresh = [name for name, found in verdict.items() if found != "not checked" and name not in before]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    noticed = sum(verdict[name] in NOTICED for name in fresh)
    spans = {"seconds": round(time.monotonic() - began), "processor_seconds": round(seconds)}
    spent(time.monotonic() - began)
    return {"tried": len(fresh), "noticed": noticed, "without": len(verdict) - len(before), **spans}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--children", type=int, default=2)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes with two threads each wait for one another
    file_mutation.MutationVisitor, isolation.PytestRunner = Visitor, Runner
    MEMORY_OF_TESTS.mkdir(parents=True, exist_ok=True)
    names = options.names
    if options.again:
        names = forget(names)
    elif options.sample:
        names = drawn(options.sample)
    share = write({} if options.write else run(names, options.children), options.sample > 0)
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
