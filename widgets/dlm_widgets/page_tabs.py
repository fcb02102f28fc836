"""A row of page names, one of them current, and what the current page offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dlm_widgets.border_button import BorderButton, BorderButtonPressed, over, placed, taken


@dataclass(frozen=True)
class Page:
    """A page: its id, its title, and whether something there wants to be seen."""

    id: str
    title: str
    attention: bool = False


class PageTabs(Widget):
    """Draws ` Answers ─ Insight ─ Runs ` with the current one marked, and words at the right; a click takes either."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "tabs--current",
        "tabs--other",
        "tabs--attention",
        "tabs--rule",
        "tabs--offer",
    }
    DEFAULT_CSS = """
    PageTabs { height: 1; }
    PageTabs > .tabs--current { color: $foreground; text-style: bold reverse; }
    PageTabs > .tabs--other { color: $foreground 62%; }
    PageTabs > .tabs--attention { color: $warning; text-style: bold; }
    PageTabs > .tabs--rule { color: $foreground 22%; }
    PageTabs > .tabs--offer { color: $foreground 55%; }
    """

    pages: reactive[tuple[Page, ...]] = reactive(())
    current: reactive[str] = reactive("")
    border_buttons: reactive[tuple[BorderButton, ...]] = reactive(())

    @dataclass
    class Chosen(Message):
        """A tab was clicked."""

        page: str

    def show(self, pages: Sequence[Page], current: str, border_buttons: Sequence[BorderButton] = ()) -> None:
        """Show these tabs, and what the current page offers."""
        self.pages = tuple(pages)
        self.current = current
        self.border_buttons = tuple(border_buttons)

    def tabs(self) -> list[tuple[int, int, Page]]:
        """Column, width and page of every tab; a mark takes the place of the space after a title, so nothing moves."""
        found = []
        at = 1
        for page in self.pages:
            width = len(page.title) + 2
            found.append((at, width, page))
            at += width + 1
        return found

    def words(self) -> list[tuple[int, BorderButton]]:
        """The words at the right that fit, and the column of each."""
        tabs = self.tabs()
        start = tabs[-1][0] + tabs[-1][1] if tabs else 0
        return placed(self.border_buttons, start, self.size.width)

    def render_line(self, y: int) -> Strip:
        """The tabs, a rule, the words."""
        base = self.rich_style
        styles: dict[str, Style] = {
            part: base + self.get_component_rich_style(f"tabs--{part}")
            for part in ("current", "other", "attention", "rule", "offer")
        }
        segments = [Segment("\u2500", styles["rule"])]
        for _, _, page in self.tabs():
            style = styles["current"] if page.id == self.current else styles["other"]
            segments.append(Segment(f" {page.title}", style))
            segments.append(Segment("\u2022", styles["attention"]) if page.attention else Segment(" ", style))
            segments.append(Segment("\u2500", styles["rule"]))
        used = sum(segment.cell_length for segment in segments)
        segments.append(Segment("\u2500" * max(0, self.size.width - used), styles["rule"]))
        line = Strip(segments).adjust_cell_length(self.size.width, base)
        return over(line, self.words(), styles["offer"])

    def on_click(self, event: events.Click) -> None:
        """Choose the tab, or take the word, under the mouse."""
        for at, width, page in self.tabs():
            if at <= event.x < at + width:
                self.post_message(self.Chosen(page.id))
                return
        action = taken(self, event, self.words())
        if action is not None:
            self.post_message(BorderButtonPressed(self.current, action))
