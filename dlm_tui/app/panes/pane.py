"""What all panes share: a titled top edge and an id that layout and jump mode use."""

from __future__ import annotations

from typing import ClassVar

from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget

from widgets.plain import literal


class Pane(Vertical):
    """A part of the screen with a title on its top edge."""

    TITLE: ClassVar[str] = ""
    JUMP: ClassVar[str] = ""

    def on_mount(self) -> None:
        """Show the plain title."""
        self.retitle()

    def retitle(self, *details: str | Content) -> None:
        """The title, followed by details separated by dots."""
        title = Content.styled(f" {self.TITLE}", "bold")
        for detail in details:
            shown = detail if isinstance(detail, Content) else literal(detail, one_line=True)
            if shown.plain:
                title = title + Content.styled(" \u00b7 ", "dim") + shown
        self.border_title = title + Content(" ")

    def focus_target(self) -> Widget | None:
        """The widget that takes the focus when a person jumps here."""
        return next((child for child in self.query("*") if child.focusable), None)
