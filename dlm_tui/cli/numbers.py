"""Options that are numbers: plain ones, as a person writes them."""

from __future__ import annotations

import argparse


def read_numbers(parser: argparse.ArgumentParser) -> None:
    """Have `parser` read what is declared as `type=int` and `type=float` by the rules here.

    Python's own also take the digits of other scripts and underscores, which every other place here refuses.
    """
    parser.register("type", int, whole_number)
    parser.register("type", float, number)


def whole_number(text: str) -> int:
    """Digits, and a sign. Raises ArgumentTypeError."""
    try:
        return int(_plain(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is a whole number, not {text!r}") from None


def number(text: str) -> float:
    """A number with a point or an exponent, or not; infinity and nan are left to who asks. Raises ArgumentTypeError."""
    try:
        return float(_plain(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is a number, not {text!r}") from None


def _plain(text: str) -> str:
    if not text.isascii() or "_" in text:
        raise ValueError
    return text
