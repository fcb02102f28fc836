"""Reports of the gate: how well it routes, and what freezing it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.progress import progress_line
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.counting import counted
from dlm_tui.engine.protocol import DriftReport, EvaluationReport, MisroutedPrompt, Progress
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.confusion_table import ConfusionTable
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize

_Parts = list[str | tuple[str, str]]


class ReportScreen(Dialog[None]):
    """Progress first, then figures; cells and prompts open the sections behind them."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.close", "Close"),)

    def __init__(self, title: str, names: Sequence[str], marks: Mapping[str, Mark]) -> None:
        super().__init__()
        self._heading, self._names, self._marks = title, list(names), dict(marks)
        self._cells: dict[str, dict[str, list[int]]] = {}
        self._lines: list[int | None] = []
        self.on_line: Callable[[int], None] = lambda line: None

    def compose_body(self) -> ComposeResult:
        """Figures, table, prompts."""
        yield LiteralStatic(f"{self._heading}\u2026", id="report-figures")
        yield ConfusionTable(self._names, self._marks, id="report-table")
        yield LiteralStatic(classes="field", id="report-list-title")
        yield PickList(id="report-list", markup=False)

    def on_mount(self) -> None:
        """Only the progress is shown yet."""
        super().on_mount()
        self.retitle(self._heading[:1].upper() + self._heading[1:])
        for part in ("#report-table", "#report-list", "#report-list-title"):
            self.query_one(part).display = False

    def show_progress(self, event: Progress) -> None:
        """How far it is."""
        self.query_one("#report-figures", LiteralStatic).show(progress_line(event))

    def show_problem(self, text: str) -> None:
        """Why there is no report."""
        self.query_one("#report-figures", LiteralStatic).show(literal(text, "$error"))

    def show_evaluation(self, report: EvaluationReport) -> None:
        """Accuracy, log loss, calibration, confusion, the worst prompts."""
        parts: _Parts = []
        parts += _figure("accuracy", report.accuracy, "share of held-out prompts routed to their own adapter", "%")
        parts += _figure("log loss", report.log_loss, "nats per held-out prompt, lower is better")
        parts += _figure("calibration", report.ece, "expected calibration error, 0 is perfect")
        share = f"{report.normalised_entropy:.0%} of ln N"
        parts += _figure("entropy", report.mean_entropy, f"mean of the gate in force, nats ({share})")
        for name, weight in report.mean_weights.items():
            if mark := self._marks.get(name):
                parts.append((f"{mark.glyph} {name} {weight:.2f}  ", mark.color))
        parts.append("mean weights\n")
        parts.append((report.verdict, "bold"))
        if report.cold_start:
            parts.append(f"\n{report.cold_start}")
        self.query_one("#report-figures", LiteralStatic).show(assemble(*parts))
        table = self.query_one(ConfusionTable)
        table.show(report.confusion)
        table.display = True
        table.focus()
        self._cells = report.confused_lines
        self._list(
            "Most misrouted (Enter opens the section; choose a cell of the table for its sections)"
            if report.misrouted
            else "No held-out prompt is misrouted; choose a cell of the table for its sections",
            [(self._wrong_row(item), item.line) for item in report.misrouted],
        )

    def _wrong_row(self, item: MisroutedPrompt) -> Content:
        return assemble(
            (f"{item.line:5d} ", "dim"),
            (item.adapter, self._marks[item.adapter].color if item.adapter in self._marks else ""),
            " \u2192 ",
            (item.routed, self._marks[item.routed].color if item.routed in self._marks else ""),
            f"  {sanitize(item.prompt, one_line=True)}",
        )

    def show_drift(self, report: DriftReport) -> None:
        """KL to the live gate and changed answers of the frozen, uniform and best mixes."""
        parts: _Parts = [(f"{'mix':12s} {'KL (nats)':>9s} {'answers changed':>16s}\n", "dim")]
        for cost, label in (
            (report.frozen, "static mean"),
            (report.uniform, "uniform"),
            (report.best_static, "best fixed"),
        ):
            share = "\u2013" if cost.changed_answers is None else f"{cost.changed_answers:.0%}"
            parts.append(f"{label:12s} {cost.kl:>9.2f} {share:>16s}   ")
            for name, weight in cost.mix.items():
                mark = self._marks.get(name)
                parts.append((f"{mark.glyph if mark else name} {weight:.2f} ", mark.color if mark else ""))
            parts.append("\n")
        parts.append((f"over {counted(report.prompts, 'prompt')}, against the live gate\n", "dim"))
        parts.append((report.verdict, "bold"))
        self.query_one("#report-figures", LiteralStatic).show(assemble(*parts))
        rows = [
            (assemble((f"{item.kl:>6.2f} nats  ", "dim"), sanitize(item.prompt, one_line=True)), item.line)
            for item in report.most_changed
        ]
        self._list("Prompts that lose most by freezing", rows)
        self.query_one("#report-list").focus()

    def _list(self, title: str, rows: Sequence[tuple[Content, int | None]]) -> None:
        self._lines = [line for _, line in rows]
        listing = self.query_one("#report-list", PickList)
        listing.set_options([Option(content) for content, _ in rows])
        listing.highlighted = 0 if rows else None
        listing.display = bool(rows)
        heading = self.query_one("#report-list-title", LiteralStatic)
        heading.show(title)
        heading.display = True

    @on(ConfusionTable.Chosen)
    def _cell(self, event: ConfusionTable.Chosen) -> None:
        lines = self._cells.get(event.truth, {}).get(event.routed, [])
        rows = [(assemble((f"{line:5d} ", "dim"), f"line {line}"), line) for line in lines]
        self._list(f"{event.truth} routed to {event.routed}: {counted(len(lines), 'section')}", rows)
        if lines:
            self.query_one("#report-list").focus()

    @on(OptionList.OptionSelected)
    def _open(self, event: OptionList.OptionSelected) -> None:
        line = self._lines[event.option_index]
        if line is not None:
            self.on_line(line)


def _figure(label: str, value: float, meaning: str, unit: str = "") -> _Parts:
    shown = f"{value:.0%}" if unit == "%" else f"{value:.2f}"
    return [f"{label:12s} ", (f"{shown:>6s}", "bold"), (f"  {meaning}\n", "$foreground 60%")]
