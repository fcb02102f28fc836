"""The footer: the keys that work here, cut to the width, each one a button."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget


@dataclass(frozen=True)
class KeyHint:
    """A key as it is shown, what it does in one or two words, and the action to run."""

    key: str
    label: str
    action: str


class KeyBar(Widget):
    """One line; hints that do not fit are left out, the last one (help) is always kept."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"keybar--key", "keybar--label"}
    DEFAULT_CSS = """
    KeyBar { height: 1; }
    KeyBar > .keybar--key { color: $foreground; text-style: bold; }
    KeyBar > .keybar--label { color: $foreground 62%; }
    """

    hints: reactive[tuple[KeyHint, ...]] = reactive(())

    @dataclass
    class Pressed(Message):
        """A hint was clicked."""

        action: str

    def show(self, hints: Sequence[KeyHint]) -> None:
        """Show these hints, most important first."""
        self.hints = tuple(hints)

    def _placed(self) -> list[tuple[int, KeyHint]]:
        hints = self.hints
        if not hints:
            return []
        last = hints[-1]
        limit = self.size.width - self._width(last)
        placed: list[tuple[int, KeyHint]] = []
        at = 0
        for hint in hints[:-1]:
            if at + self._width(hint) > limit:
                break
            placed.append((at, hint))
            at += self._width(hint)
        placed.append((at, last))
        return placed

    @staticmethod
    def _width(hint: KeyHint) -> int:
        return cell_len(hint.key) + cell_len(hint.label) + 4

    def render_line(self, y: int) -> Strip:
        """The hints."""
        base = self.rich_style
        key = base + self.get_component_rich_style("keybar--key")
        label = base + self.get_component_rich_style("keybar--label")
        segments: list[Segment] = []
        for _, hint in self._placed():
            segments.append(Segment(f" {hint.key} ", key))
            segments.append(Segment(f"{hint.label}  ", label))
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def on_click(self, event: events.Click) -> None:
        """Run the hint under the mouse."""
        for at, hint in self._placed():
            if at <= event.x < at + self._width(hint) - 1:
                self.post_message(self.Pressed(hint.action))
                return
