"""The footer: the keys that work here, cut to the width, each one a button."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.geometry import Size
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

    @property
    def width(self) -> int:
        """Cells with a space before, between and two after."""
        return cell_len(self.key) + cell_len(self.label) + 4


class KeyBar(Widget):
    """One line: hints from the left as far as they fit, and at the right those that always stay."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"keybar--key", "keybar--label"}
    DEFAULT_CSS = """
    KeyBar { height: 1; }
    KeyBar > .keybar--key { color: $foreground; text-style: bold; }
    KeyBar > .keybar--label { color: $foreground 62%; }
    """

    hints: reactive[tuple[KeyHint, ...]] = reactive(())
    always: reactive[tuple[KeyHint, ...]] = reactive((), layout=True)

    @dataclass
    class Pressed(Message):
        """A hint was clicked."""

        action: str

    def show(self, hints: Sequence[KeyHint], always: Sequence[KeyHint] = ()) -> None:
        """Show these hints, most important first; `always` stand at the right whatever the width."""
        self.hints, self.always = tuple(hints), tuple(always)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """The cells that all hints take."""
        return sum(hint.width for hint in (*self.hints, *self.always))

    def placed(self) -> list[tuple[int, KeyHint]]:
        """The column of each hint that is shown."""
        end = max(0, self.size.width - sum(hint.width for hint in self.always))
        placed: list[tuple[int, KeyHint]] = []
        at = 0
        for hint in self.hints:
            if at + hint.width > end:
                break
            placed.append((at, hint))
            at += hint.width
        for hint in self.always:
            placed.append((end, hint))
            end += hint.width
        return placed

    def render_line(self, y: int) -> Strip:
        """The hints."""
        base = self.rich_style
        key = base + self.get_component_rich_style("keybar--key")
        label = base + self.get_component_rich_style("keybar--label")
        segments: list[Segment] = []
        used = 0
        for at, hint in self.placed():
            segments.append(Segment(" " * (at - used), base))
            segments.append(Segment(f" {hint.key} ", key))
            segments.append(Segment(f"{hint.label}  ", label))
            used = at + hint.width
        return Strip(segments).adjust_cell_length(self.size.width, base)

    def on_click(self, event: events.Click) -> None:
        """Run the hint under the mouse."""
        for at, hint in self.placed():
            if at <= event.x < at + hint.width - 1:
                self.post_message(self.Pressed(hint.action))
                return
