"""The first frame: which document is being opened."""

from __future__ import annotations

from rich.segment import Segment
from textual.screen import Screen
from textual.strip import Strip

from dlm_widgets.sanitize import fit


class OpeningScreen(Screen[None]):
    """Drawn before the panes are imported; it looks like the workbench's empty frame."""

    DEFAULT_CSS = "OpeningScreen { background: $background; color: $foreground; }"

    def __init__(self, name: str) -> None:
        super().__init__()
        self._document = name

    def render_line(self, y: int) -> Strip:
        """The document's name on the first line."""
        width = self.size.width
        text = fit(f" {self._document}  opening\u2026" if y == 0 else "", width)
        return Strip([Segment(text, self.rich_style)], width)
