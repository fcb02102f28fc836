"""How many of a thing, in words."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """ "1 prompt", "2 prompts": a number with an English noun that takes an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
