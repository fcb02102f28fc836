"""A checkbox that says whether it is ticked without colour."""

from __future__ import annotations

from textual.content import ContentText
from textual.widgets import Checkbox


class TickBox(Checkbox):
    """Textual's own draws the same mark for both states and differs by colour alone."""

    def __init__(self, label: ContentText, value: bool = False, *, id: str | None = None) -> None:
        super().__init__(label, value, compact=True, id=id)
        self._mark()

    def watch_value(self) -> None:
        """Draw the mark, tell of the change."""
        self._mark()
        super().watch_value()

    def _mark(self) -> None:
        self.BUTTON_INNER = "X" if self.value else " "
