"""A row of page names, one of them current."""

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


@dataclass(frozen=True)
class Page:
    """A page: its id, its title, and whether something there wants to be seen."""

    id: str
    title: str
    attention: bool = False


class PageTabs(Widget):
    """Draws ` Answers   Insight   Runs ` with the current one marked; a click chooses."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"tabs--current", "tabs--other", "tabs--attention", "tabs--rule"}
    DEFAULT_CSS = """
    PageTabs { height: 1; }
    PageTabs > .tabs--current { color: $foreground; text-style: bold reverse; }
    PageTabs > .tabs--other { color: $foreground 62%; }
    PageTabs > .tabs--attention { color: $warning; text-style: bold; }
    PageTabs > .tabs--rule { color: $foreground 22%; }
    """

    pages: reactive[tuple[Page, ...]] = reactive(())
    current: reactive[str] = reactive("")

    @dataclass
    class Chosen(Message):
        """A tab was clicked."""

        page: str

    def show(self, pages: Sequence[Page], current: str) -> None:
        """Show these tabs."""
        self.pages = tuple(pages)
        self.current = current

    def _placed(self) -> list[tuple[int, int, Page]]:
        placed = []
        at = 1
        for page in self.pages:
            width = len(page.title) + 2 + (2 if page.attention else 0)
            placed.append((at, width, page))
            at += width + 1
        return placed

    def render_line(self, y: int) -> Strip:
        """The tabs, then a rule."""
        base = self.rich_style
        styles: dict[str, Style] = {
            part: base + self.get_component_rich_style(f"tabs--{part}")
            for part in ("current", "other", "attention", "rule")
        }
        segments = [Segment("\u2500", styles["rule"])]
        for _, _, page in self._placed():
            style = styles["current"] if page.id == self.current else styles["other"]
            segments.append(Segment(f" {page.title} ", style))
            if page.attention:
                segments.append(Segment("\u2022 ", styles["attention"]))
            segments.append(Segment("\u2500", styles["rule"]))
        used = sum(segment.cell_length for segment in segments)
        segments.append(Segment("\u2500" * max(0, self.size.width - used), styles["rule"]))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def on_click(self, event: events.Click) -> None:
        """Choose the tab under the mouse."""
        for at, width, page in self._placed():
            if at <= event.x < at + width:
                self.post_message(self.Chosen(page.id))
                return
