"""The prompts asked before, with search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.app.state import Remembered
from dlm_tui.document.comparison import top
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, sanitize


class HistoryScreen(Dialog[str]):
    """Type to search, Enter takes the prompt, delete forgets it."""

    TITLE_TEXT = "Prompts asked before"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Take it"),
        ("dialog.delete", "Forget"),
        ("dialog.close", "Close"),
    )

    def __init__(self, history: list[Remembered], names: Sequence[str], marks: Mapping[str, Mark]) -> None:
        super().__init__()
        self._history, self._names, self._marks = history, names, marks
        self._found: list[Remembered] = []

    def compose_body(self) -> ComposeResult:
        """Search field and rows."""
        yield Input(placeholder="search", id="history-search")
        yield PickList(id="history-list", markup=False)
        yield LiteralStatic(classes="note", id="history-note")

    def on_mount(self) -> None:
        """Everything, newest first."""
        super().on_mount()
        self._search("")
        self.query_one(Input).focus()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self._search(event.value)

    def _search(self, text: str) -> None:
        words = text.lower().split()
        self._found = [entry for entry in self._history if all(word in entry.text.lower() for word in words)]
        listing = self.query_one(PickList)
        listing.set_options([Option(self._row(entry)) for entry in self._found])
        listing.highlighted = 0 if self._found else None
        note = self.query_one("#history-note", LiteralStatic)
        note.show("No prompt fits." if self._history else "No prompt was asked yet.")
        note.display = not self._found

    def _row(self, entry: Remembered) -> Content:
        strongest = top(entry.weights)
        mark = self._marks.get(strongest)
        lead = f"{mark.glyph} {entry.weights[strongest]:.2f}" if mark else "      "
        return assemble((f"{lead:7s}", mark.color if mark else ""), sanitize(entry.text, one_line=True)[:300])

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.action_accept()

    def on_key(self, event: object) -> None:
        """Arrows in the search field move in the list."""
        key = getattr(event, "key", "")
        listing = self.query_one(PickList)
        if key in {"up", "down"} and self.focused is self.query_one(Input):
            listing.action_cursor_up() if key == "up" else listing.action_cursor_down()

    def action_accept(self) -> None:
        """Take the highlighted prompt."""
        index = self.query_one(PickList).highlighted
        self.dismiss(self._found[index].text if index is not None and self._found else None)

    def action_delete(self) -> None:
        """Forget the highlighted prompt."""
        index = self.query_one(PickList).highlighted
        if index is not None and self._found:
            self._history.remove(self._found[index])
            self._search(self.query_one(Input).value)
