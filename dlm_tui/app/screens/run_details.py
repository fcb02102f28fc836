"""How the adapters in force were trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.content import Content

from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.literal_static import LiteralStatic


class RunDetailsScreen(Dialog[None]):
    """A text to scroll: the tail depth of a large base has many layers."""

    TITLE_TEXT = "How the adapters in force were trained"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.close", "Close"),)
    SCROLLS: ClassVar[bool] = True

    def __init__(self, rows: Sequence[Content]) -> None:
        super().__init__()
        self._rows = list(rows)

    def compose_body(self) -> ComposeResult:
        """The text."""
        yield LiteralStatic(Content("\n").join(self._rows), id="run-details")
