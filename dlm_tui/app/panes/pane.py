"""What all panes share: a titled top edge with words to click, and an id that layout and jump mode use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from textual import events
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from dlm_tui.app.hints import edge_offers
from dlm_widgets.border_button import BorderButton, BorderButtonPressed, over, placed, taken
from dlm_widgets.sanitize import literal


class Pane(Vertical):
    """A part of the screen with a title on its top edge and, at the right, words for what can be done here."""

    TITLE: ClassVar[str] = ""
    JUMP: ClassVar[str] = ""
    COMPONENT_CLASSES: ClassVar[set[str]] = {"pane--offer"}

    labels: Mapping[str, str] = MappingProxyType({})
    """Words for bindings, by id, in the place of those of the key table."""
    _title_end = 0

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
        title = title + Content(" ")
        self._title_end = 1 + title.cell_length
        self.border_title = title

    def words(self) -> list[tuple[int, BorderButton]]:
        """The words on the edge that fit beside the title, and the column of each; none where there is no edge."""
        if not self.styles.border_top[0]:
            return []
        return placed(edge_offers(self.id or "", self.labels), self._title_end, self.outer_size.width)

    def render_lines(self, crop: Region) -> list[Strip]:
        """As drawn by Textual, with the words over the edge."""
        strips = super().render_lines(crop)
        if strips and crop.y == 0 and crop.x == 0:
            top = over(strips[0], self.words(), self.get_component_rich_style("pane--offer"))
            for line_filter in self.get_line_filters():  # the words came behind Textual's own filtering
                top = top.apply_filter(line_filter, self.background_colors[1])
            strips[0] = top
        return strips

    def on_click(self, event: events.Click) -> None:
        """Take the word under the mouse."""
        action = taken(self, event, self.words())
        if action is not None:
            event.stop()
            self.post_message(BorderButtonPressed(self.id or "", action))

    def focus_target(self) -> Widget | None:
        """The widget that takes the focus when a person jumps here."""
        return next((child for child in self.query("*") if child.focusable), None)
