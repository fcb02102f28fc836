"""A confusion table: rows are the truth, columns the strongest weight; every cell can be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dlm_widgets.adapter_palette import Mark, rich_color
from dlm_widgets.sanitize import fit


class ConfusionTable(Widget, can_focus=True):
    """Counts with the diagonal in the adapter's colour; arrows move, Enter or a click chooses a cell."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", "Up", show=False),
        Binding("down", "move(1, 0)", "Down", show=False),
        Binding("left", "move(0, -1)", "Left", show=False),
        Binding("right", "move(0, 1)", "Right", show=False),
        Binding("enter", "choose", "Open the sections behind a cell", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"confusion--cursor", "confusion--zero"}
    DEFAULT_CSS = """
    ConfusionTable { height: auto; }
    ConfusionTable > .confusion--cursor { text-style: reverse bold; }
    ConfusionTable > .confusion--zero { color: $foreground 30%; }
    """

    cursor: reactive[tuple[int, int]] = reactive((0, 0))
    counts: reactive[tuple[tuple[int, ...], ...]] = reactive((), layout=True)

    @dataclass
    class Chosen(Message):
        """A cell was chosen."""

        truth: str
        routed: str

    def __init__(self, names: Sequence[str], marks: Mapping[str, Mark], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._names, self._marks = tuple(names), dict(marks)

    def show(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """counts[truth][routed]."""
        self.counts = tuple(tuple(int(counts.get(a, {}).get(b, 0)) for b in self._names) for a in self._names)

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """A heading and one line per adapter."""
        return len(self._names) + 1 if self.counts else 0

    @property
    def _cell(self) -> int:
        """Cells of a column, wide enough for the longest name up to ten."""
        return min(13, max((len(name) for name in self._names), default=4) + 3)

    def _label_width(self) -> int:
        return min(16, max((len(name) for name in self._names), default=4)) + 2

    def render_line(self, y: int) -> Strip:
        """Heading or row."""
        base, width = self.rich_style, self.size.width
        label = self._label_width()
        if not self.counts or y > len(self._names):
            return Strip.blank(width, base)
        if y == 0:
            segments = [Segment(fit("truth \u2193", label), base + Style(dim=True))]
            for name in self._names:
                mark = self._marks[name]
                text = fit(f"{mark.glyph} {name}", self._cell - 1, right=True) + " "
                segments.append(Segment(text, base + Style(color=rich_color(mark.color))))
            return Strip(segments).adjust_cell_length(width, base)
        row = y - 1
        mark = self._marks[self._names[row]]
        segments = [Segment(fit(f"{mark.glyph} {self._names[row]}", label), base + Style(color=rich_color(mark.color)))]
        for column, count in enumerate(self.counts[row]):
            style = base
            if count == 0:
                style = base + self.get_component_rich_style("confusion--zero")
            elif row == column:
                style = base + Style(color=rich_color(mark.color), bold=True)
            if self.has_focus and self.cursor == (row, column):
                style = style + self.get_component_rich_style("confusion--cursor")
            segments.append(Segment(f"{count:>{self._cell - 1}d} ", style))
        return Strip(segments).adjust_cell_length(width, base)

    def action_move(self, down: int, right: int) -> None:
        """Move the cursor inside the table."""
        last = len(self._names) - 1
        row, column = self.cursor
        self.cursor = (min(last, max(0, row + down)), min(last, max(0, column + right)))

    def action_choose(self) -> None:
        """Choose the cell under the cursor."""
        if self.counts:
            row, column = self.cursor
            self.post_message(self.Chosen(self._names[row], self._names[column]))

    def on_click(self, event: events.Click) -> None:
        """Choose the cell under the mouse."""
        offset = event.get_content_offset(self)
        if offset is None or not self.counts:
            return
        row, column = offset.y - 1, (offset.x - self._label_width()) // self._cell
        if 0 <= row < len(self._names) and 0 <= column < len(self._names):
            self.cursor = (row, column)
            self.action_choose()
