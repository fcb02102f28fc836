"""Ask once before something is lost."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Button

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.given_files import NameTaken
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import literal


class ConfirmScreen(Dialog[bool]):
    """A question with two answers; Esc means the harmless one."""

    def __init__(
        self, question: str, yes: str, no: str = "Go back", *, title: str = "Are you sure?", safe: bool = False
    ) -> None:
        """`safe`: yes loses nothing."""
        super().__init__()
        self._question, self._yes, self._no = question, yes, no
        self._title, self._safe = title, safe

    def compose_body(self) -> ComposeResult:
        """The question and two buttons; the harmless one has the focus."""
        yield LiteralStatic(self._question)
        with Horizontal(classes="buttons"):
            yield Button(literal(self._no), id="no", compact=True)
            yield Button(literal(self._yes), id="yes", variant="primary" if self._safe else "error", compact=True)

    def on_mount(self) -> None:
        """Focus the harmless answer."""
        super().on_mount()
        self.retitle(self._title)
        self.query_one("#yes" if self._safe else "#no").focus()

    def keys_now(self) -> Sequence[tuple[str, str]]:
        """Those of the other dialogs with buttons; what Esc does is called as its button is."""
        return ("dialog.accept", "Accept"), ("dialog.close", self._no)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """An answer."""
        self.dismiss(event.button.id == "yes")

    def action_accept(self) -> None:
        """What the focused button says: a key that is pressed once too often replaces and stops nothing."""
        self.press_focused()


def replacing(taken: NameTaken) -> ConfirmScreen:
    """Whether a file is to be replaced by another one of its kind."""
    question = f"{taken.path} holds another {taken.what}; {taken.free.name} is free."
    return ConfirmScreen(question, "Replace it", "Keep it", title="The name is taken")
