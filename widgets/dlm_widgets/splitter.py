"""A border between two panes that can be dragged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.segment import Segment
from textual import events
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget


class Splitter(Widget):
    """One cell wide (`vertical`) or one line high (`horizontal`); posts how far it was dragged, in cells."""

    DEFAULT_CSS = """
    Splitter { color: $foreground 18%; }
    Splitter.-vertical { width: 1; height: 1fr; }
    Splitter.-horizontal { height: 1; width: 1fr; }
    Splitter:hover, Splitter.-dragging { color: $primary; }
    """

    @dataclass
    class Dragged(Message):
        """The splitter was moved by `delta` cells (right or down is positive)."""

        name: str
        delta: int

    def __init__(self, name: str, direction: Literal["vertical", "horizontal"], *, id: str | None = None) -> None:
        super().__init__(name=name, id=id, classes=f"-{direction}")
        self._vertical = direction == "vertical"
        self._from: int | None = None

    def render_line(self, y: int) -> Strip:
        """A thin line down, or a grip in the middle."""
        text = "\u2502" if self._vertical else "\u2508\u2508\u2508".center(self.size.width)
        return Strip([Segment(text, self.rich_style)], self.size.width)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Grab."""
        self.capture_mouse()
        self.add_class("-dragging")
        self._from = int(event.screen_x if self._vertical else event.screen_y)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag."""
        if self._from is None:
            return
        here = int(event.screen_x if self._vertical else event.screen_y)
        if here != self._from:
            self.post_message(self.Dragged(self.name or "", here - self._from))
            self._from = here

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """Let go."""
        self.release_mouse()
        self.remove_class("-dragging")
        self._from = None
