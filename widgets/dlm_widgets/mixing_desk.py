"""The mixing desk: one line per adapter with its live gate bar, coefficient, fader, solo, mute and pin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dlm_widgets.adapter_palette import rich_color
from dlm_widgets.bars import bar_segments
from dlm_widgets.sanitize import fit

FADER_MIN, FADER_MAX = -2.0, 2.0
_FADER_CELLS = 17  # one cell per 0.25, so that -2, -1, 0, 1 and 2 fall on cells
Part = Literal["name", "fader", "solo", "mute", "pin"]


@dataclass(frozen=True)
class Channel:
    """One strip. `weight` is the gate's (None: `note` says why), `coefficient` what an answer would use now."""

    name: str
    glyph: str
    color: str
    weight: float | None = None
    ghost: float | None = None
    coefficient: float = 0.0
    solo: bool = False
    mute: bool = False
    pin: bool = False
    trained: bool = True
    note: str = "no gate"


@dataclass(frozen=True)
class _Columns:
    name: int
    bar: int
    fader: int
    fader_at: int
    switches_at: int


class MixingDesk(Widget, can_focus=True):
    """All strips in one `render_line` widget: redrawing eight strips costs about a millisecond."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "desk--track",
        "desk--cursor",
        "desk--head",
        "desk--on",
        "desk--off",
    }
    DEFAULT_CSS = """
    MixingDesk { height: auto; min-height: 1; }
    MixingDesk > .desk--track { color: $foreground 22%; }
    MixingDesk > .desk--cursor { background: $foreground 8%; }
    MixingDesk > .desk--head { color: $foreground 55%; }
    MixingDesk > .desk--on { color: $background; background: $foreground; text-style: bold; }
    MixingDesk > .desk--off { color: $foreground 45%; }
    """

    channels: reactive[tuple[Channel, ...]] = reactive((), layout=False)
    cursor: reactive[int] = reactive(0)
    stale: reactive[bool] = reactive(False)

    @dataclass
    class FaderMoved(Message):
        """The fader of adapter `name` was set to `value` in [-2, 2]; `drags` while it goes on being dragged."""

        name: str
        value: float
        drags: bool = False

    @dataclass
    class Switched(Message):
        """Solo, mute or pin of an adapter was pressed."""

        name: str
        part: Part

    @dataclass
    class CursorMoved(Message):
        """Another strip is selected."""

        name: str

    def set_channels(self, channels: Sequence[Channel]) -> None:
        """Show these strips; the cursor stays on its row."""
        grew = len(channels) != len(self.channels)
        self.channels = tuple(channels)
        self.cursor = min(self.cursor, max(0, len(channels) - 1))
        if grew:
            self.refresh(layout=True)

    @property
    def selected(self) -> str | None:
        """The name under the cursor."""
        return self.channels[self.cursor].name if self.channels else None

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """One line per adapter and, where there is room for columns, a heading."""
        return max(1, len(self.channels) + self._head_rows(width))

    def _head_rows(self, width: int) -> int:
        return 1 if width >= 66 else 0

    def _columns(self, width: int) -> _Columns:
        heading = len("adapter") if self._head_rows(width) else 4
        longest = max((len(channel.name) for channel in self.channels), default=0)
        longest = max(longest, heading)
        name = min(longest, 22 if width >= 100 else 12)
        fader = _FADER_CELLS if width >= 66 else 0
        fixed = 2 + 2 + name + 1 + 1 + 5 + 1 + 6 + (fader + 2 if fader else 0) + 1 + 8
        bar = max(4, width - fixed)
        fader_at = 4 + name + 1 + bar + 1 + 5 + 1 + 6 + 1
        switches_at = fader_at + (fader + 1 if fader else 0)
        return _Columns(name, bar, fader, fader_at, switches_at)

    def render_line(self, y: int) -> Strip:
        """One strip, one heading, or nothing."""
        width = self.content_size.width or self.size.width
        base = self.rich_style
        head = self._head_rows(width)
        if y < head:
            return self._render_head(width, base)
        row = y - head
        if row >= len(self.channels):
            return Strip.blank(width, base)
        return self._render_channel(row, width, base)

    def _part(self, name: str) -> Style:
        return self.get_component_rich_style(f"desk--{name}")

    def _render_head(self, width: int, base: Style) -> Strip:
        columns = self._columns(width)
        text = (
            " " * 4 + fit("adapter", columns.name) + " " + fit("gate", columns.bar) + " " + fit("share", 5, right=True)
        )
        text += " " + fit("mix \u00d7", 6, right=True) + " "
        if columns.fader:
            text += fit("-2  -1  0   1   2", columns.fader) + " "
        text += " S M P"
        return Strip([Segment(fit(text, width), base + self._part("head"))], width)

    def _render_channel(self, row: int, width: int, base: Style) -> Strip:
        channel = self.channels[row]
        columns = self._columns(width)
        here = row == self.cursor and self.has_focus
        if here:
            base = base + self._part("cursor")
        quiet = channel.mute or not channel.trained or self.stale
        ink = base + Style(color=rich_color(channel.color), dim=quiet)
        track = base + self._part("track")
        segments = [
            Segment("\u258c " if here else "  ", base + Style(color=rich_color(channel.color))),
            Segment(channel.glyph + " ", ink),
            Segment(fit(channel.name, columns.name) + " ", base + Style(dim=quiet, bold=here)),
        ]
        if channel.weight is None:
            filler = fit(channel.note, min(len(channel.note), columns.bar)) + " "
            text = filler[: columns.bar]
            segments.append(Segment(text, base + self._part("off")))
            segments.append(Segment("\u2500" * (columns.bar - len(text)), track))
            share = "   \u2013 "
        else:
            segments.extend(bar_segments(channel.weight, columns.bar, ink, track, channel.ghost))
            share = f"{channel.weight:5.2f}"
        segments.append(Segment(" " + share + " ", base + Style(bold=True, dim=quiet)))
        segments.append(Segment(f"{channel.coefficient:+6.2f} ", base + Style(dim=channel.mute)))
        if columns.fader:
            segments.extend(self._render_fader(channel, columns.fader, base, ink, track))
            segments.append(Segment(" ", base))
        segments.append(Segment(" ", base))
        for letter, active in (("S", channel.solo), ("M", channel.mute), ("P", channel.pin)):
            style = base + self._part("on") if active else base + self._part("off")
            segments.append(Segment(letter, style))
            segments.append(Segment(" ", base))
        return Strip(segments).adjust_cell_length(width, base)

    def _render_fader(self, channel: Channel, cells: int, base: Style, ink: Style, track: Style) -> list[Segment]:
        value = min(FADER_MAX, max(FADER_MIN, channel.coefficient))
        knob = round((value - FADER_MIN) / (FADER_MAX - FADER_MIN) * (cells - 1))
        zero = cells // 2
        line = ["\u2500"] * cells
        line[zero] = "\u253c"
        low, high = sorted((zero, knob))
        return [
            Segment("".join(line[:low]), track),
            Segment("\u2501" * (knob - low) if knob > zero else "", ink),
            Segment("\u25cf", ink),
            Segment("\u2501" * (high - knob) if knob < zero else "", ink),
            Segment("".join(line[high + 1 :]), track),
        ]

    # ---- keys and mouse --------------------------------------------------------------------------------------------

    def move_cursor(self, step: int) -> None:
        """Select another strip; the ends do not wrap."""
        if not self.channels:
            return
        self.cursor = min(len(self.channels) - 1, max(0, self.cursor + step))
        self.show_cursor()
        self.post_message(self.CursorMoved(self.channels[self.cursor].name))

    def show_cursor(self) -> None:
        """Scroll whatever the desk lies in so far that the selected strip is seen, the first one with its heading."""
        width = self.content_size.width
        head = self._head_rows(width)
        row = Region(0, head + self.cursor, width, 1) if self.cursor else Region(0, 0, width, head + 1)
        if isinstance(self.parent, Widget):
            self.parent.scroll_to_region(row.translate(self.virtual_region.offset), animate=False, immediate=True)

    def on_resize(self) -> None:
        """Where there is less room, the selected strip stays in sight."""
        if self.has_focus:
            self.call_after_refresh(self.show_cursor)

    def nudge(self, amount: float) -> None:
        """Move the selected fader by `amount`, snapped to hundredths and the ends of its way."""
        if self.channels:
            self.show_cursor()
            channel = self.channels[self.cursor]
            value = min(FADER_MAX, max(FADER_MIN, channel.coefficient + amount))
            self.post_message(self.FaderMoved(channel.name, round(value, 2)))

    def press(self, part: Part) -> None:
        """Press solo, mute or pin of the selected strip."""
        if self.channels:
            self.show_cursor()
            self.post_message(self.Switched(self.channels[self.cursor].name, part))

    def _hit(self, event: events.MouseEvent) -> tuple[int, Part, float] | None:
        offset = event.get_content_offset(self)
        if offset is None:
            return None
        width = self.content_size.width
        row = offset.y - self._head_rows(width)
        if not 0 <= row < len(self.channels):
            return None
        columns = self._columns(width)
        x = offset.x
        if columns.fader and columns.fader_at <= x < columns.fader_at + columns.fader:
            cell = (x - columns.fader_at) / (columns.fader - 1)
            return row, "fader", round(FADER_MIN + cell * (FADER_MAX - FADER_MIN), 2)
        switch = x - columns.switches_at
        if 0 <= switch <= 6:
            parts: tuple[Part, ...] = ("solo", "mute", "pin")
            return row, parts[min(2, max(0, (switch - 1) // 2))], 0.0
        return row, "name", 0.0

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Select the strip; start dragging on the fader; press a switch."""
        hit = self._hit(event)
        if hit is None:
            return
        row, part, value = hit
        self.move_cursor(row - self.cursor)
        name = self.channels[row].name
        if part == "fader":
            self.capture_mouse()
            self.post_message(self.FaderMoved(name, value))
        elif part != "name":
            self.post_message(self.Switched(name, part))

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag the fader that was grabbed; the row stays the one where the drag began."""
        if self.app.mouse_captured is not self or not self.channels:
            return
        columns = self._columns(self.content_size.width)
        cell = (event.x - self.gutter.left - columns.fader_at) / max(1, columns.fader - 1)
        value = FADER_MIN + min(1.0, max(0.0, cell)) * (FADER_MAX - FADER_MIN)
        self.post_message(self.FaderMoved(self.channels[self.cursor].name, round(value, 2), drags=True))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel on a fader moves it up; with Shift or Ctrl further."""
        self._wheel(event, 1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel on a fader moves it down; with Shift or Ctrl further."""
        self._wheel(event, -1)

    def _wheel(self, event: events.MouseEvent, way: int) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        width = self.content_size.width
        columns, row = self._columns(width), offset.y - self._head_rows(width)
        # The coefficient stands to the left of the fader, and alone where there is no room for one.
        if 0 <= row < len(self.channels) and columns.fader_at - 8 <= offset.x < columns.fader_at + columns.fader:
            event.stop()
            event.prevent_default()
            self.move_cursor(row - self.cursor)
            self.nudge(way * (0.5 if event.shift or event.ctrl else 0.1))

    def on_mouse_up(self, event: events.MouseUp) -> None:
        """Let go of the fader."""
        self.release_mouse()
