"""One answer while it is being written."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message

from dlm_widgets.growing_text import GrowingText
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble
from dlm_widgets.token_heat import tint

_STRONGEST = 5.0  # nats between view and base that are tinted in full
_FOUND, _HERE = "reverse", "reverse bold underline"
_SEEN = 0.05  # share of it from which a difference is shown


def heat_style(nats: float, color: str, background: str) -> str:
    """Pieces the view likes more than the base are tinted, the more the stronger; those it likes less are grey."""
    strength = nats / _STRONGEST
    return "dim" if strength <= -_SEEN else tint(color, strength, background)


class AnswerCard(VerticalScroll, can_focus=True):
    """A heading and a text that grows. What holds the cards draws them together: a taller text moves everything."""

    DEFAULT_CSS: ClassVar[str] = """
    AnswerCard { height: 1fr; padding: 0 1; }
    AnswerCard > .answer--head { dock: top; height: 1; color: $foreground 70%; }
    AnswerCard:focus > .answer--head { text-style: bold; color: $foreground; }
    AnswerCard.-past > .answer--body { color: $foreground 50%; text-style: dim; }
    """

    @dataclass
    class Chosen(Message):
        """The card was double-clicked or Enter was pressed on it."""

        card: AnswerCard

    def __init__(self, view: str, glyph: str = "", color: str = "", number: int | None = None) -> None:
        """`number` tells several answers of one view apart."""
        super().__init__()
        self.view = view
        self._number = number
        self._glyph = glyph
        self._color = color
        self._pieces: list[tuple[str, float | None]] = []
        self._written = 0  # pieces that the body has
        self._note = ""
        self._past = ""
        self._follows = True  # whether the reader is at the end; text that grows below does not change that
        self._changed = True
        self.heat = False
        self.busy = False
        self._needle: re.Pattern[str] | None = None
        self._found: list[tuple[int, int]] = []
        self._at: int | None = None  # the match that was gone to

    def compose(self) -> ComposeResult:
        """Heading and body."""
        yield LiteralStatic(self._heading(), classes="answer--head")
        yield GrowingText(classes="answer--body")

    def _heading(self) -> Content:
        style = self._color or "bold"
        number = f" #{self._number}" if self._number is not None else ""
        past = [("  ", ""), (f"\u2039{self._past}\u203a", "bold italic")] if self._past else []
        return assemble((f"{self._glyph} {self.view}{number}".strip(), f"bold {style}"), *past, f"  {self._note}")

    @property
    def text(self) -> str:
        """The whole answer, as it came."""
        return "".join(piece for piece, _ in self._pieces)

    @property
    def is_behind(self) -> bool:
        """Whether something came that is not drawn and can be: not before its parts are there."""
        return self._changed and bool(self.children)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the answer has come."""
        return not self._pieces

    def begin(self, note: str = "") -> None:
        """Empty the card."""
        self.busy = True
        self._follows = True
        self._use([])
        self.note(note)

    def add(self, piece: str, heat: float | None = None) -> None:
        """Another piece; `heat` is log p(view) - log p(base) in nats."""
        self._pieces.append((piece, heat))
        self._changed = True

    def note(self, text: str) -> None:
        """What stands beside the name: the mix, the count, why it ended."""
        self._note = text
        self._changed = True

    def show_finished(self, pieces: Sequence[tuple[str, float | None]], note: str) -> None:
        """An answer that was written before, from its beginning."""
        self.busy = False
        self._follows = False
        self._use(list(pieces))
        self.note(note)

    def mark_past(self, words: str) -> None:
        """Why this is no answer of now, in words and dimmed; empty for one that is."""
        if words != self._past:
            self._past = words
            self.set_class(bool(words), "-past")
            self._changed = True

    def find(self, text: str) -> int:
        """Mark every place where the answer has this text, whatever its case; how many there are. Nothing unmarks."""
        self._needle, self._at = re.compile(re.escape(text), re.IGNORECASE) if text else None, None
        self._use(self._pieces)
        self._look()
        return len(self._found)

    def go_to(self, match: int | None) -> None:
        """Bring one of these places into view and mark it more than the others; None marks none more."""
        if match != self._at:
            self._at = match
            self._use(self._pieces)

    def _look(self) -> None:
        self._found = [match.span() for match in self._needle.finditer(self.text)] if self._needle else []

    def finish(self, text: str, note: str) -> None:
        """The answer is complete; `text` replaces the pieces when they differ."""
        if text != self.text:
            self._use([(text, None)])
        self.busy = False
        self.note(note)

    def halt(self, note: str) -> None:
        """The answer ends here, unfinished."""
        self.busy = False
        self.note(note)

    def set_heat(self, on: bool) -> None:
        """Tint tokens by how much the view prefers them over the base."""
        if on != self.heat:
            self.heat = on
            self._use(self._pieces)

    def recolour(self, glyph: str, color: str) -> None:
        """Draw everything again, in this colour."""
        self._glyph, self._color = glyph, color
        self._use(self._pieces)

    def _use(self, pieces: list[tuple[str, float | None]]) -> None:
        """Show these pieces from the first on."""
        self._pieces, self._written = pieces, 0
        self._changed = True

    def draw(self) -> None:
        """Show what arrived since the last time; a reader who is at the end stays there."""
        self._changed = False
        self.query_one(".answer--head", LiteralStatic).show(self._heading())
        body = self.query_one(GrowingText)
        if self._needle is not None and self._written < len(self._pieces):
            self._written = 0  # what comes may complete a match
            self._look()
        if not self._written:
            body.clear()
        color = self._color if self._color.startswith("#") else "#8aa4c8"
        background = self.app.current_theme.background or "#14171c"
        begin = 0
        for piece, heat in self._pieces[self._written :]:
            style = heat_style(heat or 0.0, color, background) if self.heat else ""
            for part, mark in self._marked(piece, begin):
                body.add(part, mark or style)
            begin += len(piece)
        self._written = len(self._pieces)
        if body.show_added():
            self._follow()
        if self._at is not None and (row := body.row_of(_HERE)) is not None:
            self._follows = False
            self.scroll_to(y=row - self.size.height // 2, animate=False)

    def _marked(self, piece: str, begin: int) -> Iterator[tuple[str, str]]:
        """A piece that begins at a character of the answer, cut where matches begin and end, each with its mark."""
        end = begin + len(piece)
        first = bisect_right(self._found, begin, key=lambda span: span[1])
        at = begin
        for number in range(first, len(self._found)):
            left, right = self._found[number]
            if left >= end:
                break
            if at < left:
                yield piece[at - begin : left - begin], ""
            yield piece[max(left, begin) - begin : right - begin], _HERE if number == self._at else _FOUND
            at = min(right, end)
        if at < end:
            yield piece[at - begin :], ""

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Whoever scrolls up stops following, and follows again at the end."""
        super().watch_scroll_y(old_value, new_value)
        self._follows = new_value >= self.max_scroll_y - 1

    def watch_virtual_size(self) -> None:
        """The text has taken its room, perhaps after more of it came."""
        self._follow()

    def _follow(self) -> None:
        if self._follows:
            self.scroll_end(animate=False)

    def on_click(self, event: events.Click) -> None:
        """A double click chooses this answer."""
        if event.chain == 2:
            self.post_message(self.Chosen(self))
