"""The command line: it parses, calls the library and prints. One module per subcommand in :mod:`.commands`."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from . import __version__

COMMANDS = ("demo", "train", "adapt", "infer", "evaluate", "inspect", "convert", "score", "rewards", "comfy")

DESCRIPTION = """\
Learn, apply and judge negative embeddings (ReNeg, arXiv 2412.19637).

  reneg demo                                  learn one on the embedded tiny world and see that it works (minutes)
  reneg train model=FOLDER prompts=FILE       learn one for your Stable Diffusion
  reneg infer --model FOLDER --neg-embedding FILE --prompt "a red fox"
  reneg evaluate --model FOLDER --embedding FILE --prompts FILE
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every subcommand; heavy libraries are imported only by the command that runs."""
    parser = argparse.ArgumentParser(
        prog="reneg", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"reneg {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f".commands.{name}", __package__).add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 on success, 1 for an error that is explained in one message, 130 when interrupted."""
    _quiet_libraries()
    args = build_parser().parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        if args.traceback:
            raise
        print(f"reneg {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _quiet_libraries() -> None:
    """Advice of the model libraries to their own developers does not belong into a user's output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
