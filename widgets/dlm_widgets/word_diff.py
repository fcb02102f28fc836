"""Two texts compared word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

Kind = Literal["same", "gone", "added"]
_WORD = re.compile(r"\S+\s*|^\s+")


class DiffPart(NamedTuple):
    """A run of words: `start` to `end` of the old text if they are gone, else of the new one.

    Of words that are the same `old_start` says where they begin in the old text.
    """

    kind: Kind
    start: int
    end: int
    old_start: int


def word_diff(old: str, new: str) -> list[DiffPart]:
    """What of `old` is gone, what of `new` was added, and what is the same, in reading order.

    Words are compared without the white space behind them. What is gone stands before what was added in its place.
    The parts that are not gone make up `new`; those that are not added have as many words as `old`.
    """
    before, after = [*_WORD.finditer(old)], [*_WORD.finditer(new)]
    matcher = SequenceMatcher(
        None, [word.group().rstrip() for word in before], [word.group().rstrip() for word in after], autojunk=False
    )
    return [part for opcode in matcher.get_opcodes() for part in _parts(opcode, before, after)]


def _parts(
    opcode: tuple[str, int, int, int, int], before: list[re.Match[str]], after: list[re.Match[str]]
) -> Iterator[DiffPart]:
    kind, i, i_end, j, j_end = opcode
    if kind == "equal":
        for at in range(j, j_end):  # word by word: the white space between them may differ
            yield DiffPart("same", after[at].start(), after[at].end(), before[i + at - j].start())
        return
    if i < i_end:
        yield DiffPart("gone", before[i].start(), before[i_end - 1].end(), before[i].start())
    if j < j_end:
        yield DiffPart("added", after[j].start(), after[j_end - 1].end(), 0)


def counts(parts: list[DiffPart], old: str, new: str) -> dict[Kind, int]:
    """How many words of each kind there are."""
    found: dict[Kind, int] = {"same": 0, "gone": 0, "added": 0}
    for part in parts:
        text = old if part.kind == "gone" else new
        found[part.kind] += len(text[part.start : part.end].split())
    return found
