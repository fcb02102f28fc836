"""A set of prompts, run under chosen views, and what moved since the run before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.progress import progress_words
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.app.screens.set_file import SetFileScreen
from dlm_tui.app.screens.view_list import ViewList
from dlm_tui.counting import counted
from dlm_tui.document.prompt_sets import PromptCase
from dlm_tui.engine.protocol import Progress
from dlm_tui.model.views import adapter_of
from dlm_tui.store.set_comparison import (
    SORTS,
    MovedAnswer,
    compare_runs,
    drawn_otherwise,
    new_answers,
    sorted_answers,
    sorted_moves,
)
from dlm_tui.store.set_run_files import results_csv, results_jsonl
from dlm_tui.store.set_runs import SetAnswer, SetRun
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize

_HEAD = "weights  answer    \u0394 log p  checks  view        prompt"
_SORTED = {
    "order": "in the order of the set",
    "weights": "most moved weights first",
    "answer": "changed answers first",
    "logprob": "former answers that became least likely first",
    "checks": "newly broken expectations first",
}
_FIRST_SORTS = ("order", "checks")
"""By what a run can be sorted that has none before it."""
_BROKEN_FIRST = "broken expectations first"


class SetRunScreen(Dialog[None]):
    """Views to mark, then a row per prompt and view; Enter on a row shows both answers."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Run"),
        ("dialog.mark", "Mark view"),
        ("dialog.sort", "Sort"),
        ("dialog.file", "File"),
        ("dialog.close", "Close"),
    )

    def __init__(
        self,
        name: str,
        cases: Sequence[PromptCase],
        views: Sequence[str],
        marked: Sequence[str],
        marks: Mapping[str, Mark],
        folder: Path,
    ) -> None:
        super().__init__()
        self._set_name, self._cases, self._views, self._folder = name, list(cases), views, folder
        self._marked, self._marks = marked, marks
        self._run: SetRun | None = None
        self._before: SetRun | None = None
        self._rows: list[MovedAnswer | SetAnswer] = []
        self._sort = SORTS[0]
        self.on_run: Callable[[list[str]], object] = lambda views: None

    def compose_body(self) -> ComposeResult:
        """Views, how far it is, rows, the answers of a row."""
        yield LiteralStatic("Views", classes="field")
        yield ViewList(self._views, self._marked, self._marks, id="run-views")
        yield LiteralStatic(id="run-note", classes="note")
        yield LiteralStatic(id="run-head")
        yield PickList(id="run-rows", markup=False)
        yield LiteralStatic(id="run-detail")

    def on_mount(self) -> None:
        """Start at the views."""
        super().on_mount()
        expected = sum(len(case.expect) for case in self._cases)
        self.retitle(f"{self._set_name}: {counted(len(self._cases), 'prompt')}, {counted(expected, 'expectation')}")
        self._show()
        self.query_one(ViewList).focus()

    def action_mark(self) -> None:
        """Take the highlighted view in, or leave it out."""
        views = self.query_one(ViewList)
        if views.has_focus:
            views.toggle()

    @on(OptionList.OptionSelected, "#run-views")
    def _view_chosen(self) -> None:
        self.action_mark()

    def action_accept(self) -> None:
        """Run the set under the marked views."""
        chosen = self.query_one(ViewList).marked
        if chosen:
            self.on_run(chosen)
        else:
            self.show_note("Mark a view first.")

    def show_note(self, text: str, *, problem: bool = False) -> None:
        """What is to be said."""
        self.query_one("#run-note", LiteralStatic).show(literal(text, "$error" if problem else ""))

    def show_progress(self, event: Progress) -> None:
        """How far it is."""
        self.show_note(progress_words(event))

    def show_run(self, run: SetRun, before: SetRun | None) -> None:
        """The results, and what moved since `before`."""
        self._run, self._before = run, before
        if before is None and self._sort not in _FIRST_SORTS:
            self._sort = SORTS[0]
        self._show()
        rows = self.query_one("#run-rows", PickList)
        rows.highlighted = 0 if self._rows else None
        rows.focus()

    def _show(self) -> None:
        run, before = self._run, self._before
        head, rows = self.query_one("#run-head", LiteralStatic), self.query_one("#run-rows", PickList)
        head.display = rows.display = run is not None
        if run is None:
            return
        moved = sorted_moves(compare_runs(before, run), self._sort) if before is not None else []
        self._rows = [*moved, *sorted_answers(new_answers(before, run), self._sort)]
        head.show(literal(_HEAD, "dim"))
        rows.set_options([Option(self._row(row)) for row in self._rows])
        checked = [answer for answer in run.answers if answer.expected]
        words = [f"{sum(not answer.broken for answer in checked)} of {len(checked)} as expected"] if checked else []
        if before is not None:
            words.append(f"{sum(move.changed for move in moved)} of {counted(len(moved), 'answer')} changed")
            words.append(f"{_versions(before)} \u2192 {_versions(run)}")
            words += [f"drawn otherwise: {otherwise}"] if (otherwise := drawn_otherwise(before, run)) else []
            words.append(_SORTED[self._sort])
        else:
            words.append("the first run of this set under these views")
            words += [_BROKEN_FIRST] if self._sort == "checks" else []
        self.show_note(" \u00b7 ".join(words))

    def _row(self, row: MovedAnswer | SetAnswer) -> Content:
        after = row.after if isinstance(row, MovedAnswer) else row
        checks = "\u2013" if not after.expected else "fails" if after.broken else "ok"
        if isinstance(row, MovedAnswer):
            logprob = "\u2013" if row.logprob is None else f"{row.logprob:+.1f}"
            figures = f"{row.weight:7.2f}  {'changed' if row.changed else 'same':7s} {logprob:>8s}  "
        else:
            figures = f"{'new':>7s}  {'':7s} {'':>8s}  "
        mark = self._marks.get(adapter_of(after.view) or "")
        style = "$error" if after.broken else ""
        return assemble(
            figures,
            (f"{checks:6s}", style),
            "  ",
            (f"{sanitize(after.view, one_line=True)[:10]:10s}", mark.color if mark else ""),
            "  ",
            sanitize(after.prompt, one_line=True)[:200],
        )

    @on(OptionList.OptionHighlighted, "#run-rows")
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option_index >= len(self._rows):
            return
        row = self._rows[event.option_index]
        after = row.after if isinstance(row, MovedAnswer) else row
        parts: list[str | tuple[str, str]] = []
        if isinstance(row, MovedAnswer):
            parts += [("before  ", "dim"), f"{sanitize(row.before.text, one_line=True)[:400]}\n"]
        parts += [("after   " if parts else "answer  ", "dim"), sanitize(after.text, one_line=True)[:400]]
        for why in after.broken:
            parts += ["\n", (sanitize(why, one_line=True), "$error")]
        self.query_one("#run-detail", LiteralStatic).show(assemble(*parts))

    def action_sort(self) -> None:
        """Sort by the next column."""
        if self._run is not None:
            sorts = SORTS if self._before is not None else _FIRST_SORTS
            self._sort = sorts[(sorts.index(self._sort) + 1) % len(sorts)]
            self._show()
            self.query_one("#run-rows", PickList).highlighted = 0 if self._rows else None

    def action_file(self) -> None:
        """Write the results into a file."""
        run, cases = self._run, self._cases
        if run is None:
            self.show_note("Run the set first: its results can then be written.")
            return
        forms = {".csv": lambda: results_csv(run), ".jsonl": lambda: results_jsonl(run, cases)}
        name = f"{self._set_name}-results.csv"
        self.app.push_screen(SetFileScreen("Write the results", self._folder, name, forms, reads=False))


def _versions(run: SetRun) -> str:
    numbers = set(run.versions.values())
    if len(numbers) == 1:
        return f"version {next(iter(numbers))}"
    return " ".join(f"{name} {number}" for name, number in run.versions.items()) or "untrained"
