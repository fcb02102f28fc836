"""Line charts over runs or steps: our own face of textual-plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual_plot import HiResMode, PlotWidget
from textual_plot.axis_formatter import AxisFormatter

from dlm_widgets.adapter_palette import rich_color
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble
from dlm_widgets.throttled import Throttled


@dataclass(frozen=True)
class Series:
    """A named line of (x, y) points; the label is written beside the chart, in its colour."""

    label: str
    color: str
    points: tuple[tuple[float, float], ...]
    glyph: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Event:
    """Something to mark at (x, y), such as a run whose gate diverged."""

    x: float
    y: float
    glyph: str
    color: str


def thin(points: Sequence[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most `limit` points, first and last kept, each bucket's extreme kept; non-finite ones dropped."""
    finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if len(finite) <= limit or limit < 4:
        return finite
    size = len(finite) / (limit // 2)
    kept = [finite[0]]
    for bucket in range(limit // 2):
        part = finite[int(bucket * size) : int((bucket + 1) * size)] or [finite[-1]]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept.extend(sorted({low, high}))
    kept.append(finite[-1])
    return kept


_LABEL_CELLS = 5
"""What is left beside the axis for its labels."""


class HeightTicks(AxisFormatter):
    """Round numbers for an axis of `rows` lines, with lines between them: labels never stand on one another."""

    rows: int = 8

    def get_ticks(self, min_: float, max_: float, max_ticks: int = 8) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten from `min_` to `max_`; one for what is flat."""
        span = max_ - min_
        if not 1e-5 * max(abs(min_), abs(max_)) < span < math.inf:
            return [(min_ + max_) / 2]
        most = max(1, min(max_ticks, self.rows * 2 // 3))
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(factor * power for factor in (1, 2, 5, 10) if span <= factor * power * most * (1 + 1e-9))
        first, last = math.ceil(min_ / step - 1e-9), math.floor(max_ / step + 1e-9)
        return [min(max(number * step, min_), max_) for number in range(first, last + 1)]

    def get_labels_for_ticks(self, ticks: Sequence[float]) -> list[str]:
        """As many digits as tell them apart; with an exponent where there is no room for those."""
        apart = ticks[1] - ticks[0] if len(ticks) > 1 else max(map(abs, ticks), default=0.0) / 10 or 1.0
        decimals = max(0, -math.floor(math.log10(apart) + 1e-9))
        return [_short(tick, decimals) for tick in ticks]


def _short(number: float, decimals: int) -> str:
    """The number in `_LABEL_CELLS`, with an exponent where it has to be; nothing where neither says just that."""
    text = f"{round(number, decimals) + 0.0:.{decimals}f}"
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    narrow = f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if len(text) > _LABEL_CELLS and not float(text):
        return "0"
    if len(text) > _LABEL_CELLS and math.isclose(float(narrow), float(text)):
        text = narrow
    return text if len(text) <= _LABEL_CELLS else ""


class _Plot(PlotWidget, can_focus=False):
    margin_top = 0


class HistoryChart(Vertical, Throttled):
    """A chart with a legend line of direct labels. Redrawn at most four times a second, and only while it is shown."""

    DRAWS_PER_SECOND: ClassVar[float] = 4.0  # one costs some 20 ms
    DEFAULT_CSS = """
    HistoryChart { height: 1fr; min-height: 4; }
    HistoryChart > _Plot { height: 1fr; }
    HistoryChart > _Plot > .plot--axis { color: $foreground 30%; }
    HistoryChart > _Plot > .plot--tick { color: $foreground 60%; text-style: none; }
    HistoryChart > LiteralStatic { height: auto; max-height: 2; }
    """

    @dataclass
    class Pointed(Message):
        """A place of the x axis was clicked."""

        x: float

    def __init__(
        self, title: str, *, lower: float | None = 0.0, upper: float | None = None, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self._title = title
        self._limits = (lower, upper)
        self._series: tuple[Series, ...] = ()
        self._events: tuple[Event, ...] = ()
        self._cursor: float | None = None
        self._across: tuple[float, float] | None = None
        self._heights = HeightTicks()

    def compose(self) -> ComposeResult:
        """Legend, then plot."""
        yield LiteralStatic()
        yield _Plot(allow_pan_and_zoom=False)

    def on_mount(self) -> None:
        """Small margins: the panes are small."""
        plot = self.query_one(_Plot)
        plot.margin_top, plot.margin_bottom, plot.margin_left = 0, 2, _LABEL_CELLS + 1
        plot.set_y_formatter(self._heights)
        self.watch(self.app, "theme", lambda: self.ask(), init=False)
        self.ask()

    def show(self, series: Sequence[Series], events: Sequence[Event] = (), cursor: float | None = None) -> None:
        """Show these lines and a cursor at a place of the x axis; unchanged data costs nothing."""
        if (tuple(series), tuple(events), cursor) == (self._series, self._events, self._cursor):
            return
        self._series, self._events, self._cursor = tuple(series), tuple(events), cursor
        self.ask()

    def retitle(self, title: str) -> None:
        """Another title."""
        if title != self._title:
            self._title = title
            self.ask()

    def on_click(self, event: events.Click) -> None:
        """Say which place of the x axis was clicked."""
        plot = self.query_one(_Plot)
        inside = event.screen_x - plot.region.x - plot.margin_left
        width = plot.region.width - plot.margin_left - 1
        if self._across is not None and 0 <= inside <= width:
            low, high = self._across
            self.post_message(self.Pointed(low + (high - low) * inside / max(1, width)))

    def on_resize(self) -> None:
        """Draw again with another number of points."""
        self.ask()

    def draw(self) -> None:
        """Lines, marks, legend; nothing where there is no room for them."""
        if self.size.height < 3:
            return
        plot = self.query_one(_Plot)
        plot.clear()
        limit = max(8, 2 * self.size.width)
        legend: list[str | tuple[str, str]] = [(self._title, "bold")]
        xs: list[float] = []
        lone: list[Event] = []  # marks come after all lines, which would cover them
        for series in self._series:
            points = thin(series.points, limit)
            if not points:
                continue
            xs.extend(point[0] for point in points)
            plot.plot(
                [point[0] for point in points],
                [point[1] for point in points],
                line_style=rich_color(series.color),
                hires_mode=HiResMode.BRAILLE,
            )
            if len(points) == 1:
                lone.append(Event(*points[0], series.glyph or "\u25cf", series.color))
            legend.append("  ")
            legend.append((f"{series.glyph} {series.label} {points[-1][1]:.2f}{series.unit}".strip(), series.color))
        lower, upper = self._limits
        for event in [*lone, *self._events]:
            plot.scatter([event.x], [event.y], marker=event.glyph, marker_style=rich_color(event.color))
        self._across = None
        self._heights.rows = plot.size.height - 3  # the axis and what stands below it
        if xs:
            low, high = min(xs), max(xs)
            self._across = (low - 0.5, high + 0.5) if high - low < 1 else (low, high)
            plot.set_xlimits(*self._across)
            if self._cursor is not None:
                plot.add_v_line(self._cursor, "white" if self.app.current_theme.dark else "black")
            plot.set_xticks(_integer_ticks(low, high, max(2, self.size.width // 12)))
            plot.set_ylimits(lower, upper)
        self.query_one(LiteralStatic).show(assemble(*legend))


def _integer_ticks(low: float, high: float, count: int) -> list[float]:
    """Whole numbers between low and high, about `count` of them: there is no run 1.5."""
    step = 1
    span = max(1.0, high - low)
    while span / step > count:
        step = step * 2 if str(step)[0] != "2" else step * 5 // 2
    first = math.ceil(low / step) * step
    return [float(value) for value in range(int(first), int(high) + 1, step)] or [float(round(low))]
