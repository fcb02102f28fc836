"""Leaving while work runs."""

from __future__ import annotations

from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Button

from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.literal_static import LiteralStatic

Leave = Literal["stop", "stay"]


class LeaveScreen(Dialog[Leave]):
    """Stop what runs, or let it go on and find it on coming back. Esc stays here."""

    TITLE_TEXT = "Work is not over"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Accept"), ("dialog.close", "Go back"))

    def __init__(self, sentence: str) -> None:
        super().__init__()
        self._sentence = sentence

    def compose_body(self) -> ComposeResult:
        """What runs and waits, and the ways out; the one that loses nothing has the focus."""
        yield LiteralStatic(self._sentence)
        with Vertical(classes="choices"):
            yield Button("Let it go on; I find it when I am back", id="stay", compact=True)
            yield Button("Stop it; it can be continued next time", id="stop", compact=True)
            yield Button("Go back", id="no", compact=True)

    def on_mount(self) -> None:
        """Focus what loses nothing."""
        super().on_mount()
        self.query_one("#stay").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A way out."""
        answers: dict[str | None, Leave] = {"stay": "stay", "stop": "stop"}
        self.dismiss(answers.get(event.button.id))

    def action_accept(self) -> None:
        """What the focused button says."""
        self.press_focused()
