"""What runs the model, in a few rows."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult

from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble


class EngineScreen(Dialog[None]):
    """The rows as they are when it is opened."""

    TITLE_TEXT = "About the engine"
    SCROLLS = True

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._rows = rows

    def compose_body(self) -> ComposeResult:
        """Name and value per line."""
        width = max(len(name) for name, _ in self._rows) + 2
        for name, value in self._rows:
            yield LiteralStatic(assemble((name.ljust(width), "$foreground 65%"), value))
