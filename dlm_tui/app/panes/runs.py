"""The gate's history over runs, and the loss of the current run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.pane import Pane
from dlm_tui.counting import counted
from dlm_tui.document.probes import NO_GATE
from dlm_tui.losses import GATE, loss_name, short_unit_of
from dlm_tui.store import GateRun
from dlm_tui.store.collapse import COLLAPSED_ENTROPY, COLLAPSED_WEIGHT
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble
from dlm_widgets.throttled import Throttled

if TYPE_CHECKING:
    from dlm_widgets.history_chart import HistoryChart

_LOSS_CHARTS = ("loss-chart", "loss-chart-2", "loss-chart-3")
_NOT_TRAINED = "No gate has been trained yet; the chart begins with the first training."
_MODE_GLYPHS = {"uniform": ("\u25cb", "ansi_yellow"), "diverged": ("\u2716", "ansi_red")}


class ChartArea(Vertical, can_focus=True):
    """Holds the charts, which are made when first shown: they bring numpy in."""


class RunsPane(Pane, Throttled):
    """Entropy and mean weights over runs; space shows the loss curve instead."""

    TITLE = "Runs"
    JUMP = "r"
    DRAWS_PER_SECOND: ClassVar[float] = 4.0
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("runs"))

    class DetailsPressed(Message):
        """Show how the adapters were trained."""

    class OverlayPressed(Message):
        """Runs are to be laid over one another."""

    def __init__(self) -> None:
        super().__init__(id="runs")
        self._history: tuple[GateRun, ...] = ()
        self._losses: dict[str | None, dict[str, list[tuple[float, float]]]] = {}
        self._latest_kinds: list[str | None] = []  # of the losses, the one of the last step at the end
        self._marks: dict[str, Mark] = {}
        self._names: tuple[str, ...] = ()
        self._traffic: dict[int, float] = {}
        self._kinds: dict[str, str] = {}
        self._has_gate = True
        self.showing_loss = False

    def compose(self) -> ComposeResult:
        """A summary line, how the adapters were trained, what the curve is, and the charts' place."""
        yield LiteralStatic(id="runs-summary")
        yield LiteralStatic(id="runs-kinds")
        note = f"Low is a collapse only with a weight \u2265 {COLLAPSED_WEIGHT:.1f}."
        yield LiteralStatic(Content.styled(note, "dim"), id="runs-note")
        yield ChartArea(id="charts")

    def on_mount(self) -> None:
        """Say what will be here."""
        super().on_mount()
        self.ask()

    def show_history(
        self,
        history: Sequence[GateRun],
        names: Sequence[str],
        marks: Mapping[str, Mark],
        traffic: Mapping[int, float],
        *,
        has_gate: bool = True,
    ) -> None:
        """Runs with gate events, oldest first; run → mean entropy of the requests served under its gate, nats; whether
        the document has a gate at all."""
        self._has_gate = has_gate
        self._history, self._names, self._marks = tuple(history), tuple(names), dict(marks)
        self._traffic = dict(traffic)
        self.ask()

    def show_kinds(self, kinds: Mapping[str, str]) -> None:
        """How the versions in force were trained, in words, by adapter; none where it is not known."""
        self._kinds = dict(kinds)
        self.ask()

    def begin_losses(self, scope: str | None = None) -> None:
        """A training run begins, of `scope` alone if that is given."""
        kept = {
            kind: {name: points for name, points in curves.items() if scope not in (None, name)}
            for kind, curves in self._losses.items()
        }
        self._losses = {kind: curves for kind, curves in kept.items() if curves}
        self.ask()

    def add_loss(self, scope: str, kind: str | None, step: float, loss: float) -> None:
        """One step of the current run; `scope` is an adapter or "gate"."""
        self._losses.setdefault(kind, {}).setdefault(scope, []).append((step, loss))
        self._latest_kinds = [known for known in self._latest_kinds if known != kind] + [kind]
        if self.showing_loss:
            self.ask()

    def _summarise(self) -> None:
        line = self.query_one("#runs-summary", LiteralStatic)
        kinds = self.query_one("#runs-kinds", LiteralStatic)
        kinds.display = bool(self._kinds)
        kinds.show(kinds_line(self._kinds, self._marks))
        self.query_one("#runs-note").display = bool(self._history) and not self.showing_loss
        if self.showing_loss and not self._losses:
            line.show(
                Content.styled("No training has run since the start: its losses appear here step by step.", "dim")
            )
            return
        if not self._history and not self.showing_loss:
            line.show(Content.styled(_NOT_TRAINED if self._has_gate else NO_GATE, "dim"))
            return
        if not self._history:
            line.show("")
            return
        last = self._history[-1]
        line.show(run_summary(last, len(self._history), self._marks))
        self.retitle(
            f"{counted(len(self._history), 'training')} of the gate",
            "loss" if self.showing_loss else "",
        )

    def draw(self) -> None:
        """The summary and the charts."""
        self._summarise()
        area = self.query_one(ChartArea)
        shown = 0
        if self.showing_loss and self._losses:
            shown = self._draw_losses(area)
        elif self._history:
            self._draw_history(area)
        for chart_id, visible in (
            *((name, self.showing_loss and number < shown) for number, name in enumerate(_LOSS_CHARTS)),
            ("entropy-chart", not self.showing_loss and bool(self._history)),
            ("weights-chart", not self.showing_loss and bool(self._history) and _room(area) > 1),
        ):
            for chart in area.query(f"#{chart_id}"):
                chart.display = visible

    def _draw_losses(self, area: ChartArea) -> int:
        """The adapters' losses, a chart for each kind, as kinds have no axis in common; where there is no room for all,
        those of the last steps. The gate's is drawn where there is no other. Returns how many charts there are."""
        from dlm_widgets.history_chart import Series

        room = min(len(_LOSS_CHARTS), _room(area))
        of_adapters = [kind for kind in self._latest_kinds if kind in self._losses and kind != GATE]
        latest = (of_adapters or [GATE])[-room:]
        kinds = [kind for kind in self._losses if kind in latest]
        for name, kind in zip(_LOSS_CHARTS, kinds, strict=False):
            chart = self._chart(area, name, "", None)
            chart.retitle(f"{loss_name(kind)} {short_unit_of(kind)}".rstrip())
            chart.show(
                [
                    Series(scope, self._color(scope), tuple(points), self._glyph(scope))
                    for scope, points in self._losses[kind].items()
                ]
            )
        return len(kinds)

    def _draw_history(self, area: ChartArea) -> None:
        from dlm_widgets.history_chart import Event, Series

        most = math.log(max(2, len(self._names)))
        entropy = self._chart(area, "entropy-chart", "entropy", most * 1.05)
        weights = self._chart(area, "weights-chart", "mean weights", 1.0)
        events = [
            Event(float(number), entropy_of(run) or 0.0, *_MODE_GLYPHS[run.mode])
            for number, run in enumerate(self._history, 1)
            if run.mode in _MODE_GLYPHS
        ]
        ink = self.app.current_theme.primary
        first, last = 1.0, float(len(self._history))
        if first == last:
            first, last = first - 0.5, last + 0.5
        floor = ((first, COLLAPSED_ENTROPY * most), (last, COLLAPSED_ENTROPY * most))
        curves = [
            Series(label, color, points)
            for label, color, points in (
                ("mean of prompts", ink, _points(self._history, of_prompts=True)),
                ("of mean weights", "ansi_bright_black", _points(self._history, of_prompts=False)),
                ("served traffic", self.app.current_theme.warning or "ansi_yellow", self._served()),
            )
            if points
        ]
        entropy.show([*curves, Series("floor", "ansi_red", floor, "", " nats")], events)
        weights.show(
            [
                Series(
                    name,
                    self._color(name),
                    tuple(
                        (float(number), run.weights[name])
                        for number, run in enumerate(self._history, 1)
                        if name in run.weights and run.mode != "diverged"
                    ),
                    self._glyph(name),
                )
                for name in self._names
            ],
        )

    def _served(self) -> tuple[tuple[float, float], ...]:
        """The traffic's entropy at the run whose gate it met: apart from the training's, the traffic is another."""
        return tuple(
            (float(number), self._traffic[run.run_id])
            for number, run in enumerate(self._history, 1)
            if run.run_id in self._traffic
        )

    def _chart(self, area: ChartArea, chart_id: str, title: str, upper: float | None) -> HistoryChart:
        from dlm_widgets.history_chart import HistoryChart

        found = area.query(f"#{chart_id}").results(HistoryChart)
        for chart in found:
            return chart
        chart = HistoryChart(title, upper=upper, id=chart_id)
        area.mount(chart)
        return chart

    def _color(self, name: str) -> str:
        return self._marks[name].color if name in self._marks else "ansi_white"

    def _glyph(self, name: str) -> str:
        return self._marks[name].glyph if name in self._marks else ""

    def on_resize(self) -> None:
        """One or two charts, by height."""
        self.ask()

    def focus_target(self) -> Widget:
        """The charts."""
        return self.query_one(ChartArea)

    def action_run_details(self) -> None:
        """Ask for the details of the trainings."""
        self.post_message(self.DetailsPressed())

    def action_overlay_runs(self) -> None:
        """Lay runs over one another."""
        self.post_message(self.OverlayPressed())

    def action_toggle_chart(self) -> None:
        """History or loss."""
        self.showing_loss = not self.showing_loss
        self.ask()


def _room(area: Widget) -> int:
    """For how many charts there is room below one another: eleven rows are two."""
    return max(1, (area.size.height + 1) // 6)


def entropy_of(run: GateRun) -> float | None:
    """What the chart draws of a run, nats: its prompts' mean entropy, else the entropy of its mean weights."""
    return run.entropy if run.prompt_entropy is None else run.prompt_entropy


def _points(history: Sequence[GateRun], *, of_prompts: bool) -> tuple[tuple[float, float], ...]:
    return tuple(
        (float(number), entropy)
        for number, run in enumerate(history, 1)
        if (entropy := entropy_of(run)) is not None and (run.prompt_entropy is not None) == of_prompts
    )


def kinds_line(kinds: Mapping[str, str], marks: Mapping[str, Mark]) -> Content:
    """Adapters with the kind of their training: `\u25b2 tone pissa wanda r8 \u00b12 0.31`."""
    parts: list[str | tuple[str, str]] = []
    for name, words in kinds.items():
        mark = marks.get(name)
        parts.append((f"{mark.glyph if mark else ''} {name} ".lstrip(), mark.color if mark else ""))
        parts.append((f"{words}  ", "dim"))
    return assemble(*parts)


def run_summary(run: GateRun, number: int, marks: Mapping[str, Mark]) -> Content:
    """One line about a training of the gate, counted from 1: mode, entropy, mean weights."""
    if run.mode == "diverged":
        return assemble(
            (f"training {number} ", "bold"), ("diverged", "bold $error"), ": the gate before it stays in force"
        )
    parts: list[str | tuple[str, str]] = [(f"training {number} ", "bold"), run.mode]
    entropy = entropy_of(run)
    share = run.normalised_entropy if run.prompt_entropy is None else run.normalised_prompt_entropy
    if entropy is not None:
        parts.append(f"  {entropy:.2f} nats" + (f" ({share:.0%}) " if share is not None else " "))
    for name in sorted(run.weights, key=lambda name: list(marks).index(name) if name in marks else len(marks)):
        mark = marks.get(name)
        parts.append(" ")
        text = f"{mark.glyph if mark else ''} {name} {run.weights[name]:.2f}".strip()
        parts.append((text, mark.color if mark else ""))
    return assemble(*parts)
