"""Runs laid over one another: choose them at the left, look at their curves at the right, compare their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.run_curves import (
    METRICS,
    PREFERENCES,
    SMOOTHINGS,
    Metric,
    Points,
    RunCurves,
    as_csv,
    as_svg,
    differing,
    logarithmic,
    metrics_of,
    smoothed,
    value_at,
    value_text,
)
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.moments import local_time
from dlm_widgets.adapter_palette import LIGHT, Mark, marks_for
from dlm_widgets.history_chart import Event, HistoryChart, Series
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, sanitize

_RUN_MARKS = (
    Mark("\u271a", "ansi_cyan"),
    Mark("\u2726", "ansi_yellow"),
    Mark("\u25d0", "ansi_magenta"),
    Mark("\u25e7", "ansi_green"),
    Mark("\u25ed", "ansi_blue"),
    Mark("\u2731", "ansi_red"),
)
"""None of them is an adapter's: two runs may be of one."""
_SVG_COLORS = ("#0088aa", "#aa7700", "#aa00aa", "#228822", "#2244cc", "#cc2222")
_SHOWN_AT_FIRST = 3
_TWO_CHARTS = 30  # rows of the terminal
_SECOND: dict[Metric, Metric] = {
    "loss": "val_loss",
    "val_loss": "loss",
    **dict.fromkeys(PREFERENCES, "loss"),
    "gate_loss": "gate_entropy",
    "gate_entropy": "gate_loss",
    "weights": "gate_entropy",
}


class RunOverlayScreen(Dialog[None]):
    """The newest runs are shown first. What is pinned stays, whatever the filter says."""

    TITLE_TEXT = "Runs laid over one another"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.keep", "Pin"),
        ("runs.curve", ""),
        ("runs.smooth", ""),
        ("runs.log", ""),
        ("runs.csv", ""),
        ("runs.svg", ""),
        ("dialog.mark", "Hide"),  # given up first: a second click on a run does it, too
        ("dialog.close", "Close"),
    )
    CSS = """
    RunOverlayScreen .box { max-width: 100%; width: 100%; height: 100%; }
    RunOverlayScreen .body { height: 1fr; max-height: 100%; }
    #overlay { height: 1fr; }
    #overlay-list { width: 34; height: 1fr; max-height: 100%; }
    #overlay-charts { width: 1fr; height: 1fr; }
    #overlay-values { height: auto; max-height: 4; }
    #overlay-differences { height: auto; max-height: 4; }
    #overlay-filter { height: 3; }
    RunOverlayScreen.-short #overlay-filter { height: 1; }
    RunOverlayScreen.-short #overlay-list { width: 22; }
    RunOverlayScreen.-short #overlay-values { max-height: 2; }
    RunOverlayScreen.-short #overlay-differences { max-height: 2; }
    """

    def __init__(self, runs: Sequence[RunCurves], marks: Mapping[str, Mark]) -> None:
        """`marks` are the adapters', for the curves of their weights."""
        super().__init__()
        self._runs, self._marks = list(runs), dict(marks)
        self.metric: Metric = "loss"
        self.smoothing, self.logarithmic = 0, False
        self.cursor: float | None = None
        self.pinned: set[int] = set()
        self.hidden = {run.run_id for run in self._runs[_SHOWN_AT_FIRST:]}
        self.on_save: Callable[[str, str], object] = lambda name, text: None

    def compose_body(self) -> ComposeResult:
        """Filter, runs and charts, the values under the cursor, the settings that differ."""
        yield Input(placeholder="filter: an adapter, a phase, a setting", id="overlay-filter")
        with Horizontal(id="overlay"):
            yield PickList(id="overlay-list", markup=False)
            with Vertical(id="overlay-charts"):
                yield HistoryChart("", lower=None, id="overlay-first")
                yield HistoryChart("", lower=None, id="overlay-second")
        yield LiteralStatic(id="overlay-values")
        yield LiteralStatic(id="overlay-differences", classes="note")

    def on_mount(self) -> None:
        """The list has the focus."""
        super().on_mount()
        self._list()
        self.query_one(PickList).focus()
        self._draw()

    def on_resize(self) -> None:
        """One chart where there is no room for two."""
        super().on_resize()
        self.query_one(".body").styles.max_height = "100%"
        self.query_one("#overlay-second").display = self.app.size.height >= _TWO_CHARTS
        self._list()
        self._draw()

    # ---- which runs ------------------------------------------------------------------------------------------------

    @property
    def listed(self) -> list[RunCurves]:
        """The runs of the list: pinned ones, and those that the filter lets through."""
        text = self.query_one("#overlay-filter", Input).value
        return [run for run in self._runs if run.run_id in self.pinned or run.matches(text)]

    @property
    def shown(self) -> list[RunCurves]:
        """The runs of the charts, newest first."""
        return [run for run in self.listed if run.run_id in self.pinned or run.run_id not in self.hidden]

    @property
    def _chosen(self) -> RunCurves | None:
        index, listed = self.query_one(PickList).highlighted, self.listed
        return listed[index] if index is not None and index < len(listed) else None

    def _list(self) -> None:
        listing, listed = self.query_one(PickList), self.listed
        before = listing.highlighted
        listing.set_options([Option(self._row(run)) for run in listed])
        listing.highlighted = min(before or 0, len(listed) - 1) if listed else None

    def _row(self, run: RunCurves) -> Content:
        shown = run in self.shown
        mark = self._mark(run)
        state = "\u2316" if run.run_id in self.pinned else mark.glyph if shown else "\u25cb"
        when = "" if self.has_class("-short") else f" {local_time(run.started, '%m-%d %H:%M')}"
        return assemble(
            (f"{state} ", mark.color if shown else "dim"),
            (sanitize(run.label, one_line=True)[:18].ljust(18), "" if shown else "dim"),
            (sanitize(when, one_line=True), "dim"),
        )

    def _mark(self, run: RunCurves) -> Mark:
        return _RUN_MARKS[self._runs.index(run) % len(_RUN_MARKS)]

    @on(Input.Changed)
    def _filtered(self) -> None:
        self._list()
        self._draw()

    @on(Input.Submitted)
    def _to_the_list(self) -> None:
        self.query_one(PickList).focus()

    @on(OptionList.OptionSelected)
    def _taken(self) -> None:
        self.action_mark()

    def action_mark(self) -> None:
        """Hide the highlighted run, or show it."""
        if (run := self._chosen) is not None:
            self.pinned.discard(run.run_id)
            self.hidden ^= {run.run_id}
            self._list()
            self._draw()

    def action_keep(self) -> None:
        """Pin the highlighted run, or let it go."""
        if (run := self._chosen) is not None:
            self.pinned ^= {run.run_id}
            self._list()
            self._draw()

    # ---- the charts ------------------------------------------------------------------------------------------------

    def action_next_curve(self) -> None:
        """Loss, validation loss, preference losses that there are, gate loss, entropy, mean weights."""
        names = metrics_of(self._runs)
        self.metric = names[(names.index(self.metric) + 1) % len(names)]
        self.cursor = None
        self._draw()

    def action_smooth(self) -> None:
        """Not at all, some, much."""
        self.smoothing = (self.smoothing + 1) % len(SMOOTHINGS)
        self._draw()

    def action_logarithmic(self) -> None:
        """The values, or their logarithm."""
        self.logarithmic = not self.logarithmic
        self._draw()

    def action_move_cursor(self, way: int) -> None:
        """The cursor of all charts, to the next point of any run."""
        places = sorted({x for points in self._curves(self.metric).values() for x, _ in points})
        if not places:
            return
        if self.cursor is None:
            self.cursor = places[-1] if way < 0 else places[0]
        else:
            beyond = [x for x in places if (x - self.cursor) * way > 0]
            self.cursor = (min(beyond) if way > 0 else max(beyond)) if beyond else self.cursor
        self._draw()

    @on(HistoryChart.Pointed)
    def _pointed(self, event: HistoryChart.Pointed) -> None:
        self.cursor = event.x
        self._draw()

    def _curves(self, metric: Metric) -> dict[str, Points]:
        """The lines of a chart, by label, as they are drawn but for the logarithm."""
        strength = SMOOTHINGS[self.smoothing]
        if metric != "weights":
            by_label = _by_label(self.shown, metric)
            found = {label: smoothed(run.curves.get(metric, ()), strength) for label, run in by_label.items()}
        else:
            over = [run for run in reversed(self.shown) if run.weights and run.training is not None]
            names = dict.fromkeys(name for run in over for name in run.weights)
            found = {
                name: tuple((float(run.training or 0), run.weights[name]) for run in over if name in run.weights)
                for name in names
            }
        return {label: points for label, points in found.items() if points}

    def _series(self, metric: Metric) -> list[Series]:
        by_label = _by_label(self.shown, metric)
        found = []
        for number, (label, points) in enumerate(self._curves(metric).items()):
            if metric == "weights":
                mark = self._marks.get(label) or _RUN_MARKS[number % len(_RUN_MARKS)]  # of an adapter that is gone
            else:
                mark = self._mark(by_label[label])
            drawn = logarithmic(points) if self.logarithmic else points
            found.append(Series(sanitize(label, one_line=True), mark.color, drawn, mark.glyph))
        return found

    def _draw(self) -> None:
        if not self.is_mounted:
            return
        for place, metric in (("first", self.metric), ("second", _SECOND[self.metric])):
            chart = self.query_one(f"#overlay-{place}", HistoryChart)
            chart.retitle(self._title(metric))
            # Trainings and steps are different axes: there the charts have no place in common.
            shared = (metric == "weights") == (self.metric == "weights")
            series = self._series(metric)
            # Lines that cross are told apart by a mark on each, also without colour.
            marks = [Event(*_marked(line.points), line.glyph, line.color) for line in series if line.points]
            chart.show(series, marks, self.cursor if shared else None)
        self._tell()

    def _title(self, metric: Metric) -> str:
        how = [f"smoothed {SMOOTHINGS[self.smoothing]:g}"] if self.smoothing and metric != "weights" else []
        return " \u00b7 ".join([("log10 of " if self.logarithmic else "") + METRICS[metric], *how])

    def _tell(self) -> None:
        parts: list[str | tuple[str, str]] = []
        curves = self._curves(self.metric)
        if not curves:
            parts.append(("No run that is shown has this curve.", "dim"))
        elif self.cursor is None:
            parts.append(("\u2190 \u2192 or a click on a chart: the values at a step", "dim"))
        else:
            parts.append((f"{'training' if self.metric == 'weights' else 'step'} {self.cursor:.0f}  ", "bold"))
            for series, points in zip(self._series(self.metric), curves.values(), strict=True):
                value = value_at(points, self.cursor)
                text = "\u2013" if value is None else f"{value:.4f}"
                parts.append((f"{series.glyph} {series.label} {text}  ", series.color))
        self.query_one("#overlay-values", LiteralStatic).show(assemble(*parts))
        runs = self.shown[:4]
        lines = []
        for name, values in differing(runs).items():
            told = "  ".join(f"{run.number}: {value_text(value)}" for run, value in zip(runs, values, strict=True))
            lines.append(f"{name}  {told}")
        text = "\n".join(sanitize(line, one_line=True) for line in lines)
        if len(runs) > 1:
            self.query_one("#overlay-differences", LiteralStatic).show(
                text or "The settings of these runs are the same."
            )
        else:
            self.query_one("#overlay-differences", LiteralStatic).show("")

    # ---- files -----------------------------------------------------------------------------------------------------

    def action_save_csv(self) -> None:
        """Every point of the shown runs, as recorded."""
        self.on_save("runs.csv", as_csv(self.shown))

    def action_save_svg(self) -> None:
        """The first chart, as drawn."""
        series = self._series(self.metric)
        curves = {line.label: line.points for line in series}
        on_paper = dict(zip(_RUN_MARKS, _SVG_COLORS, strict=True))
        light = marks_for(tuple(self._marks), LIGHT)
        on_paper |= {mark: light[name].color for name, mark in self._marks.items()}
        colors = {line.label: on_paper[Mark(line.glyph, line.color)] for line in series}
        self.on_save("runs.svg", as_svg(self._title(self.metric), curves, colors))


def _by_label(runs: Sequence[RunCurves], metric: Metric) -> dict[str, RunCurves]:
    """What the runs' lines are called: a curve of the gate is the gate's, whichever adapter's run it was recorded with.

    Where a training has several of them they keep the names of their runs.
    """
    found: dict[str, RunCurves] = {}
    for run in runs:
        gate = f"{run.number} gate"
        own = metric in ("gate_loss", "gate_entropy") and run.curves.get(metric) and gate not in found
        found[gate if own else run.label] = run
    return found


def _marked(points: Points) -> tuple[float, float]:
    """Where a line has its mark: at two thirds."""
    return points[(len(points) - 1) * 2 // 3]
