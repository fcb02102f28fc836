"""The line in which text is looked for in the answers."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input

from dlm_widgets.key_bar import KeyBar, KeyHint
from dlm_widgets.literal_static import LiteralStatic


class FindField(Input):
    """Enter and the arrows go from place to place, Esc ends it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,down", "step(1)", "Next place", show=False),
        Binding("up", "step(-1)", "Previous place", show=False),
        Binding("escape", "finish", "End", show=False),
    ]

    def action_step(self, way: int) -> None:
        """Another place."""
        self.post_message(FindBar.Stepped(way))

    def action_finish(self) -> None:
        """Look for nothing any more."""
        self.post_message(FindBar.Ended())


class FindBar(Horizontal):
    """A field, how many places there are, and what can be done."""

    class Stepped(Message):
        """Go to the next (1) or the previous (-1) place."""

        def __init__(self, way: int) -> None:
            super().__init__()
            self.way = way

    class Ended(Message):
        """Look for nothing any more."""

    def compose(self) -> ComposeResult:
        """Field, count, keys."""
        yield FindField(placeholder="find in the answers", id="find-text", compact=True)
        yield LiteralStatic(id="find-count")
        yield KeyBar(id="find-keys")

    def on_mount(self) -> None:
        """Its keys can be clicked."""
        self.query_one(KeyBar).show(
            [
                KeyHint("\u2193", "Next", "find_step(1)"),
                KeyHint("\u2191", "Previous", "find_step(-1)"),
                KeyHint("esc", "End", "find_end"),
            ]
        )

    @property
    def field(self) -> Input:
        """Where the text is typed."""
        return self.query_one(FindField)

    def count(self, at: int | None, total: int) -> None:
        """Which place is marked, from 0, of how many."""
        shown = "" if not self.field.value else f"{0 if at is None else at + 1} of {total}"
        self.query_one("#find-count", LiteralStatic).show(shown)
