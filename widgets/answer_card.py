"""One answer while it is being written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message

from widgets.line import Line
from widgets.plain import assemble, plain
from widgets.token_heat import HeatToken, heat_content


class AnswerCard(VerticalScroll, can_focus=True):
    """A heading and a text that grows. Pieces are gathered and drawn by `flush`, so a flood of tokens stays cheap."""

    DEFAULT_CSS: ClassVar[str] = """
    AnswerCard { height: 1fr; padding: 0 1; }
    AnswerCard > .answer--head { height: 1; color: $foreground 70%; }
    AnswerCard:focus > .answer--head { text-style: bold; color: $foreground; }
    """

    @dataclass
    class Chosen(Message):
        """The card was double-clicked or Enter was pressed on it."""

        view: str

    def __init__(self, view: str, glyph: str = "", color: str = "") -> None:
        super().__init__()
        self.view = view
        self._glyph = glyph
        self._color = color
        self._pieces: list[tuple[str, float | None]] = []
        self._note = ""
        self._dirty = True
        self.heat = False
        self.busy = False

    def compose(self) -> ComposeResult:
        """Heading and body."""
        yield Line(self._heading(), classes="answer--head")
        yield Line(classes="answer--body")

    def _heading(self) -> Content:
        style = self._color or "bold"
        return assemble((f"{self._glyph} {self.view}".strip(), f"bold {style}"), f"  {self._note}")

    @property
    def text(self) -> str:
        """The whole answer, as it came."""
        return "".join(piece for piece, _ in self._pieces)

    def begin(self, note: str = "") -> None:
        """Empty the card."""
        self._pieces = []
        self.busy = True
        self.note(note)

    def add(self, piece: str, heat: float | None = None) -> None:
        """Another piece; `heat` is log p(view) - log p(base) in nats."""
        self._pieces.append((piece, heat))
        self._dirty = True

    def note(self, text: str) -> None:
        """What stands beside the name: the mix, the count, why it ended."""
        self._note = text
        self._dirty = True

    def finish(self, text: str, note: str) -> None:
        """The answer is complete; `text` replaces the pieces when they differ."""
        if text != self.text:
            self._pieces = [(text, None)]
        self.busy = False
        self.note(note)

    def halt(self, note: str) -> None:
        """The answer ends here, unfinished."""
        self.busy = False
        self.note(note)

    def set_heat(self, on: bool) -> None:
        """Tint tokens by how much the view prefers them over the base."""
        self.heat = on
        self._dirty = True

    def flush(self, background: str) -> None:
        """Draw what arrived since the last call."""
        if not self._dirty or not self.is_mounted:
            return
        self._dirty = False
        at_end = self.scroll_offset.y >= self.max_scroll_y - 1
        self.query_one(".answer--head", Line).show(self._heading())
        body = self.query_one(".answer--body", Line)
        if self.heat and any(heat is not None for _, heat in self._pieces):
            color = self._color if self._color.startswith("#") else "#8aa4c8"
            tokens = [HeatToken(piece, min(1.0, abs(heat or 0.0) / 5.0), color) for piece, heat in self._pieces]
            body.show(heat_content(tokens, background))
        else:
            body.show(Content(plain(self.text)))
        if at_end:
            self.scroll_end(animate=False)

    def on_click(self, event: events.Click) -> None:
        """A double click chooses this answer."""
        if event.chain == 2:
            self.post_message(self.Chosen(self.view))
