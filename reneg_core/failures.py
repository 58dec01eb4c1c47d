"""What a failure of the command line ends as: one sentence on stderr and an exit code, whatever went wrong.

Nothing heavy is imported here, so that even the imports of the commands run under :func:`explained`.
"""

import errno
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from .text_file import printable

DONE, REFUSED, USAGE, UNEXPECTED, STOPPED = 0, 1, 2, 3, 130
"""Exit codes; USAGE is argparse's own, STOPPED is for Ctrl-C and the signals that ask to end."""
PACKAGE = Path(__file__).resolve().parent
REMEDIES = {
    errno.ENOENT: "Check the path.",
    errno.EACCES: "Try another place, or change its permissions.",
    errno.EPERM: "Try another place, or change its permissions.",
    errno.EROFS: "Try another place.",
    errno.ENOSPC: "Try another place, or make room.",
    errno.EISDIR: "Expected a file, try one of its files.",
    errno.ENOTDIR: "Expected a folder, check the path.",
    errno.ENAMETOOLONG: "Try a shorter name.",
}


class EndedElsewhere(Exception):
    """Another process of the same command has ended; where that one has said why, this says nothing."""


class StoppedError(KeyboardInterrupt):
    """A signal asked the command to end."""


def explained(name: str, work: Callable[[], int], show_traceback: bool = False) -> int:
    """``work()``'s exit code, or the code of its failure after one sentence about it on stderr.

    A ValueError, FloatingPointError or ImportError that this package raised, an OSError and too little memory are
    explanations of themselves (code 1). Anything else is a fault of the program (code 3): the sentence names the file
    that holds the traceback. show_traceback: let errors pass instead, for people who mend the program.
    """
    try:
        with ending_signals():
            code = work()
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # the reader of our output has gone, for example `head`
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except KeyboardInterrupt as error:
        _say(name, f"stopped by {str(error) or 'Ctrl-C'} before it was done.")
        return STOPPED
    except EndedElsewhere as error:
        if str(error):
            _say(name, str(error))
        return REFUSED
    except Exception as error:
        if show_traceback:
            raise
        sentence = explanation(error)
        _say(name, sentence or _unexpected(name, error))
        return REFUSED if sentence else UNEXPECTED


def explanation(error: Exception) -> str:
    """What the error says to a user; empty for one that was not meant for users."""
    if _out_of_memory(error):
        return (
            f"there is too little memory ({_first_line(error)}). Try a smaller batch or picture, another precision "
            "(bf16, fp16), or checkpointing=true in a training."
        )
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, ModuleNotFoundError) and error.name and "Try" not in str(error):
        return f"the package {error.name} is missing. Try: pip install {error.name}"
    meant = isinstance(error, ImportError) or (isinstance(error, ValueError | FloatingPointError) and _is_ours(error))
    return str(error) if meant else ""


@contextmanager
def ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise :class:`StoppedError`, as Ctrl-C raises KeyboardInterrupt; ignored ones stay ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StoppedError(signal.Signals(number).name)


def _say(name: str, sentence: str) -> None:
    print(f"{f'reneg {name}'.strip()}: {printable(sentence)}", file=sys.stderr)


def _of_the_system(error: OSError) -> str:
    """An error of the operating system with its file first, and what to try; our own sentences as they are."""
    if error.errno is None or not error.strerror:
        return str(error) or type(error).__name__
    text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    text = text if text.endswith(".") else f"{text}."
    return text if "Try" in text else f"{text} {REMEDIES.get(error.errno, '')}".rstrip()


def _is_ours(error: Exception) -> bool:
    """Whether this package raised the error itself, and not a library that it called."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(str(error)) and bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)


def _out_of_memory(error: Exception) -> bool:
    if not isinstance(error, RuntimeError | MemoryError):
        return False
    from .training.memory import is_out_of_memory

    return is_out_of_memory(error)


def _unexpected(name: str, error: Exception) -> str:
    """One sentence about a fault of the program; its traceback goes to a file."""
    what = f"unexpected {type(error).__name__} ({_first_line(error)})"
    try:
        handle, path = tempfile.mkstemp(prefix=f"reneg-{name}-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(f"command: {sys.argv}\n\n{''.join(traceback.format_exception(error))}")
    except OSError as problem:
        return f"{what}. Its traceback could not be kept ({problem.strerror}); `reneg --traceback {name}` shows it."
    return f"{what}. Its traceback is in {path}; unless it ends in a file of yours, please report it with the command."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
