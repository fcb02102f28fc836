"""Numbers as a person writes them: in options, dialogs and commands of a conversation.

Python's own reading also takes the digits of other scripts and underscores; what is read so would be trained with.
"""

from __future__ import annotations

import argparse


def whole_number(text: str) -> int:
    """Digits, and a sign. Raises ValueError."""
    return int(_plain(text))


def number(text: str) -> float:
    """A number with a point or an exponent, or not; infinity and nan are left to who asks. Raises ValueError."""
    return float(_plain(text))


def whole_option(text: str) -> int:
    """The same as the `type` of an option. Raises ArgumentTypeError."""
    try:
        return whole_number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is a whole number, not {text!r}") from None


def number_option(text: str) -> float:
    """The same as the `type` of an option. Raises ArgumentTypeError."""
    try:
        return number(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"it is a number, not {text!r}") from None


def read_numbers(parser: argparse.ArgumentParser) -> None:
    """Have `parser` read what is declared as `type=int` and `type=float` by the rules here."""
    parser.register("type", int, whole_option)
    parser.register("type", float, number_option)


def _plain(text: str) -> str:
    if not text.isascii() or "_" in text:
        raise ValueError(f"{text!r} is no plain number")
    return text
