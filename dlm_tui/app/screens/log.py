"""Lines of text that scroll."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult

from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.literal_static import LiteralStatic


class LogScreen(Dialog[None]):
    """A title and lines, newest at the end."""

    SCROLLS = True

    def __init__(self, heading: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._heading, self._text = heading, "\n".join(lines) or "Nothing was logged."

    def compose_body(self) -> ComposeResult:
        """The lines."""
        yield LiteralStatic(self._text)

    def on_mount(self) -> None:
        """Begin at the end."""
        super().on_mount()
        self.retitle(self._heading)
        scroll = self.query_one(".body")
        scroll.focus()
        scroll.scroll_end(animate=False)
