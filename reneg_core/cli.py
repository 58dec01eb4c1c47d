"""The command line: it parses, calls the library and prints. One module per subcommand in :mod:`.commands`."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__
from .failures import USAGE, explained
from .text_file import printable

COMMANDS = (
    "demo", "train", "texforce", "adapt", "infer", "evaluate", "analyze", "inspect", "transfer", "convert", "score",
    "rewards", "comfy",
)  # fmt: skip

DESCRIPTION = """\
Learn, apply and judge negative embeddings (ReNeg, arXiv 2412.19637).

  reneg demo                                  learn one on the embedded tiny world and see that it works (minutes)
  reneg train model=FOLDER prompts=FILE       learn one for your Stable Diffusion
  reneg infer --model FOLDER --neg-embedding FILE --prompt "a red fox"
  reneg evaluate --model FOLDER --embedding FILE --prompts FILE
"""
CODES = """\
exit codes: 0 done; 1 refused or failed, one sentence says why; 2 wrong usage; 3 a fault of the program, whose
traceback is in the file that the sentence names; 130 stopped by a signal
"""


class Parser(argparse.ArgumentParser):
    """A parser that explains wrong usage in one sentence, as every other error is explained."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {printable(message).rstrip('.')}. Try: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand; heavy libraries are imported only by the command that runs."""
    parser = Parser(
        prog="reneg", description=DESCRIPTION, epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"reneg {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f".commands.{name}", __package__).add_parser(subparsers)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of one command; SystemExit with code 2 and one sentence for wrong usage.

    ``name=value`` settings may stand before, after and between the options.
    """
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if hasattr(args, "overrides"):
        args.overrides += [text for text in rest if _is_setting(text)]
        rest = [text for text in rest if not _is_setting(text)]
    if rest:
        hint = "; settings are written name=value, without dashes" if hasattr(args, "overrides") else ""
        rest += [text for text in getattr(args, "overrides", []) if not _is_setting(text)]
        parser.prog = f"{parser.prog} {args.command}"
        parser.error(f"unknown arguments {' '.join(rest)}{hint}")
    return args


def _is_setting(text: str) -> bool:
    return "=" in text and not text.startswith("-")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (:mod:`.failures`); SystemExit for --help and wrong usage."""
    _quiet_libraries()
    _write_anything()
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--traceback"]

    def work() -> int:
        args = parse(words)
        return args.run(args)

    command = next((word for word in words if word in COMMANDS), "")
    return explained(command, work, show_traceback=len(words) < len(given))


def _quiet_libraries() -> None:
    """Advice of the model libraries to their own developers does not belong into a user's output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _write_anything() -> None:
    """File names and prompts that the terminal's encoding lacks are printed escaped and are no error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
