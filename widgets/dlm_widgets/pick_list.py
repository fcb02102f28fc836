"""A list to choose from: the first click marks a row, the second takes it, so looking never acts."""

from __future__ import annotations

from textual import events
from textual.widgets import OptionList


class PickList(OptionList):
    """An OptionList in which a click marks; another click on the same row, or Enter, takes."""

    _clicked: int | None = None

    def on_click(self, event: events.Click) -> None:
        """Mark the row under the mouse, or take it if the last click marked it."""
        event.prevent_default()
        row: int | None = event.style.meta.get("option")
        if row is None or self.get_option_at_index(row).disabled:
            return
        again = row == self._clicked == self.highlighted
        self.highlighted = row
        self._clicked = None if again else row
        if again:
            self.action_select()
