"""The store of this id is another document's: what now?"""

from __future__ import annotations

from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Button

from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.literal_static import LiteralStatic

Claim = Literal["new id", "moved"]


class ClaimScreen(Dialog[Claim]):
    """Two documents with one id: this one gets an id of its own, or it is the one that was moved. Esc leaves."""

    TITLE_TEXT = "Two documents, one id"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Accept"), ("dialog.close", "Leave"))

    def __init__(self, sentence: str, likely: Claim) -> None:
        super().__init__()
        self._sentence, self._likely = sentence, likely

    def compose_body(self) -> ComposeResult:
        """What is wrong, and the ways out; the likely one has the focus."""
        yield LiteralStatic(f"{self._sentence}.")
        with Vertical(classes="choices"):
            yield Button("Another document: give it an id of its own", id="new-id", compact=True)
            yield Button("The same document, moved: the store is its own", id="moved", compact=True)
            yield Button("Leave both as they are", id="leave", compact=True)

    def on_mount(self) -> None:
        """Focus the likely answer."""
        super().on_mount()
        self.query_one("#new-id" if self._likely == "new id" else "#moved").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """A way out."""
        answers: dict[str | None, Claim] = {"new-id": "new id", "moved": "moved"}
        self.dismiss(answers.get(event.button.id))

    def action_accept(self) -> None:
        """What the focused button says."""
        self.press_focused()
