"""Words on an edge that can be clicked: what a part of the screen offers to a hand on the mouse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget


@dataclass(frozen=True)
class BorderButton:
    """A word and the action behind it. The larger its rank, the sooner it is left out where there is little room."""

    word: str
    action: str
    rank: int


@dataclass
class BorderButtonPressed(Message):
    """A word on the edge of `place` was clicked."""

    place: str
    action: str


def placed(border_buttons: Sequence[BorderButton], start: int, end: int) -> list[tuple[int, BorderButton]]:
    """Which words fit between the columns `start` and `end`, and the column of each.

    They stand at the right with two spaces between them; a space and one cell of the edge stay free on both sides.
    """
    kept = list(border_buttons)
    while kept and sum(cell_len(border_button.word) + 2 for border_button in kept) > end - start - 2:
        kept.remove(max(kept, key=lambda border_button: border_button.rank))
    at = end - 1
    found = []
    for border_button in reversed(kept):
        at -= cell_len(border_button.word) + 2
        found.append((at + 1, border_button))
    return found[::-1]


def over(strip: Strip, words: Sequence[tuple[int, BorderButton]], style: Style) -> Strip:
    """The line with the placed words drawn over it; a line that is too short stays as it is."""
    if not words:
        return strip
    first, width = words[0][0] - 1, sum(cell_len(border_button.word) + 2 for _, border_button in words)
    if first < 0 or first + width > strip.cell_length:
        return strip
    drawn = Strip([Segment(f" {border_button.word} ", style) for _, border_button in words], width)
    return Strip.join([strip.crop(0, first), drawn, strip.crop(first + width)])


def taken(widget: Widget, event: events.Click, words: Sequence[tuple[int, BorderButton]]) -> str | None:
    """The action of the word in the widget's first row that was clicked."""
    x, y = int(event.screen_x) - widget.region.x, int(event.screen_y) - widget.region.y
    if y != 0:
        return None
    return next(
        (border_button.action for at, border_button in words if at - 1 <= x <= at + cell_len(border_button.word)), None
    )
