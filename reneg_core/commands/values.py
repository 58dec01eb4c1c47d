"""What an option's text may be: types for argparse that say what was got and what was expected."""

import argparse
import math
import re
from collections.abc import Callable

from ..text_file import prompt_fault
from ..typed import shown

MOST = 10_000
"""Of pictures per prompt, steps, pixels and frames; more is a slip of the keyboard that would fill the memory."""


def whole_number(low: int, high: int = 2**63) -> Callable[[str], int]:
    """An argparse type: a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        number = int(text) if re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII) else None
        if number is None or not low <= number <= high:
            most = f"from {low} to {high:,}" if high < 2**63 else f"of {low} or more"
            raise argparse.ArgumentTypeError(f"got {shown(text)}, expected a whole number {most}")
        return number

    return parse


def finite_number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a finite number from ``low`` to ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            where = f" from {low:g} to {high:g}" if math.isfinite(high) else f" of {low:g} or more"
            where = where if math.isfinite(low) else ""
            raise argparse.ArgumentTypeError(f"got {shown(text)}, expected a finite number{where}")
        return value

    return parse


def prompt_text(text: str) -> str:
    """An argparse type: text that a tokenizer can read."""
    if fault := prompt_fault(text):
        raise argparse.ArgumentTypeError(f"got {fault}, expected text")
    return text
