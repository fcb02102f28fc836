"""The ways to begin without a document."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import OptionList

from dlm_tui.app.screens.dialog import HELP, Dialog
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList

_OFFERS = (
    ("new", "Start a document of your own: from a template, or from a folder of notes"),
    ("demo", "Look at the demo: a harbour town, three adapters and a gate, trained before your eyes"),
)


class WelcomeScreen(Dialog[str]):
    """The two ways to begin."""

    TITLE_TEXT = "dlm-tui"
    BINDINGS: ClassVar[list[BindingType]] = list(HELP)
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Go on"), ("dialog.close", "Leave"))

    def compose_body(self) -> ComposeResult:
        """The offers."""
        yield LiteralStatic("A document is training text for a small model, in one file. How do you want to begin?")
        yield PickList(*(text for _, text in _OFFERS), id="welcome", markup=False)

    def on_mount(self) -> None:
        """Start at the first."""
        super().on_mount()
        listing = self.query_one(PickList)
        listing.highlighted = 0
        listing.focus()

    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Take the marked offer."""
        self.dismiss(_OFFERS[self.query_one(PickList).highlighted or 0][0])
