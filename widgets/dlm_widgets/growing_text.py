"""Foreign text that only grows: it is wrapped as `Content` wraps it, but never again from its beginning."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from rich._wrap import divide_line
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from dlm_widgets.sanitize import sanitize

_WORD = re.compile(r"\S+")
_UNSETTLED_ROWS = 2  # the last character may still change its width, and with it where these rows begin


class Row(NamedTuple):
    """One line on the screen: `start` to `end` of the safe text, which begin at `column` of paragraph `paragraph`."""

    start: int
    end: int
    paragraph: int
    column: int


class Wrapped:
    """Text made safe and cut into rows. `wrap` costs as much as what was added since, whatever was there before."""

    def __init__(self) -> None:
        self.width = 0
        self.text = ""
        self.rows: list[Row] = []
        self._settled = ""
        self._open = ""  # the last character and its marks: what follows may change how they are shown
        self._restart()

    def _restart(self) -> None:
        self._kept = 0
        self._from = Row(0, 0, 0, 0)

    def add(self, text: str) -> int:
        """Take more text; the rows follow at the next `wrap`. The length of the safe text so far."""
        raw = self._open + text
        if not raw:
            return len(self._settled)
        at = len(raw) - 1
        while at > 0 and (unicodedata.combining(raw[at]) or unicodedata.category(raw[at]) in {"Mn", "Me"}):
            at -= 1
        if raw[at] == "\n" and at > 0 and raw[at - 1] == "\r":
            at -= 1
        self._settled += sanitize(raw[:at])
        self._open = raw[at:]
        return len(self._settled) + len(sanitize(self._open))

    def wrap(self, width: int) -> None:
        """Bring the rows up to date for a width in cells; another width than before wraps everything."""
        width = max(2, width)
        if width != self.width:
            self.width = width
            self._restart()
        self.text = self._settled + sanitize(self._open)
        del self.rows[self._kept :]
        start, _, paragraph, column = self._from
        while True:
            end = self.text.find("\n", start)
            last = end < 0
            end = len(self.text) if last else end
            self._wrap_paragraph(Row(start, end, paragraph, column))
            if last:
                return
            start, paragraph, column = end + 1, paragraph + 1, 0

    def _wrap_paragraph(self, rest: Row) -> None:
        """Add the rows of a paragraph, or of the rest of one, and note from where it can be continued."""
        self._kept, self._from = len(self.rows), rest
        begin = rest.start - rest.column
        breaks = [rest.start + cut for cut in divide_line(self.text[rest.start : rest.end], self.width)]
        for start, end in zip([rest.start, *breaks], [*breaks, rest.end], strict=True):
            self.rows.append(Row(start, end, rest.paragraph, start - begin))
        for number in range(len(breaks) - _UNSETTLED_ROWS, 0, -1):
            if self._continues(begin, breaks[number - 1], rest.end):
                self._kept += number
                self._from = self.rows[self._kept]
                return

    def _continues(self, begin: int, cut: int, end: int) -> bool:
        """Whether wrapping from `cut` on gives what wrapping from the paragraph's beginning gives there."""
        if self.text[cut].isspace():
            return False
        if self.text[cut - 1].isspace():
            return not self.text[begin:cut].isspace()
        word = _WORD.match(self.text, cut, end)
        return word is not None and cell_len(word.group()) > self.width

    def row_text(self, row: Row) -> str:
        """What is seen of a row: spaces before a break are not."""
        text = self.text[row.start : row.end]
        return text if row.end == len(self.text) or self.text[row.end] == "\n" else text.rstrip()


class GrowingText(Widget):
    """Shows text that arrives in pieces, each piece with a tint or none."""

    DEFAULT_CSS = "GrowingText { height: auto; }"

    def __init__(self, *, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self.clear()

    def clear(self) -> None:
        """Begin again with nothing; `show_added` shows it."""
        self._wrapped = Wrapped()
        self._ends: list[int] = []
        self._tints: list[str] = []

    def add(self, piece: str, tint: str = "") -> None:
        """Another piece in a style of its own; `show_added` shows it."""
        end = self._wrapped.add(piece)
        if self._tints and self._tints[-1] == tint:
            self._ends[-1] = end
        else:
            self._ends.append(end)
            self._tints.append(tint)

    def row_of(self, tint: str) -> int | None:
        """The first row with text in this style; None without any."""
        if tint not in self._tints:
            return None
        number = self._tints.index(tint)
        start = self._ends[number - 1] if number else 0
        return max(0, bisect_right(self._wrapped.rows, start, key=lambda row: row.start) - 1)

    def show_added(self) -> bool:
        """Draw what was added. Whether the height changed."""
        before, width = self.size.height, self.content_size.width
        if width:
            self._wrapped.wrap(width)
        grew = not width or max(1, len(self._wrapped.rows)) != before
        self.refresh(layout=grew)
        return grew

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One line for each row."""
        self._wrapped.wrap(width)
        return max(1, len(self._wrapped.rows))

    def render_line(self, y: int) -> Strip:
        """Row `y`, tinted and with what the mouse has selected."""
        width, base, wrapped = self.content_size.width, self.rich_style, self._wrapped
        if wrapped.width != max(2, width):
            wrapped.wrap(width)
        if y >= len(wrapped.rows):
            return Strip.blank(width, base)
        row = wrapped.rows[y]
        strip = Strip(self._segments(row, wrapped.row_text(row), base))
        return strip.apply_offsets(row.column, row.paragraph).adjust_cell_length(width, base)

    def _segments(self, row: Row, text: str, base: Style) -> list[Segment]:
        """The text cut where tint or selection changes."""
        end, selected = row.start + len(text), self._selected(row, len(text))
        cuts = {row.start, end, *selected}
        first = bisect_right(self._ends, row.start)
        cuts.update(self._ends[first : bisect_right(self._ends, end)])
        places = sorted(cuts)
        marked = self.screen.get_component_rich_style("screen--selection")
        segments = []
        for left, right in pairwise(places):
            number = bisect_right(self._ends, left)
            style = base + Style.parse(self._tints[number]) if number < len(self._tints) else base
            if selected[0] <= left < selected[1]:
                style += marked
            segments.append(Segment(text[left - row.start : right - row.start], style))
        return segments

    def _selected(self, row: Row, length: int) -> tuple[int, int]:
        span = self.text_selection.get_span(row.paragraph) if self.text_selection else None
        if span is None:
            return row.start, row.start
        first, last = span[0] - row.column, length if span[1] == -1 else span[1] - row.column
        return row.start + min(length, max(0, first)), row.start + min(length, max(0, last))

    def get_selection(self, selection: Selection) -> tuple[str, str]:
        """The selected text, without the line breaks of wrapping."""
        return selection.extract(self._wrapped.text), "\n"
