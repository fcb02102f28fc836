"""Settings to try on held-out sections, and what came of the last try."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Input

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.engine.protocol import SweepReport
from dlm_tui.errors import DlmTuiError
from dlm_tui.plain_numbers import whole_number
from dlm_tui.system_errors import sentence_of
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, literal, sanitize

_BAR = 12
_NARROW = 76  # columns of the terminal


@dataclass(frozen=True)
class TrialsOrder:
    """What to try, over how many folds; `write` puts the best into the document."""

    settings: tuple[str, ...]
    folds: int
    write: bool = False


class TrialsScreen(Dialog[TrialsOrder]):
    """One line of settings; below it the table of the last sweep, a row per trial."""

    TITLE_TEXT = "Try settings"
    SCROLLS = True
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Try them"),
        ("trials.write", ""),
        ("dialog.close", "Close"),
    )

    def __init__(self, report: SweepReport | None, check: Callable[[Sequence[str]], None]) -> None:
        """`check` raises DlmTuiError or OSError for settings that cannot be tried; it may take a moment."""
        super().__init__()
        self._report, self._check = report, check
        self._busy = False

    def compose_body(self) -> ComposeResult:
        """What to try, the folds, the last table."""
        yield LiteralStatic("Paths below training and their values, a space between settings", classes="field")
        yield Input(self._before(), placeholder="learning_rate=1e-4,3e-4 lora_r=8,16", id="trials-settings")
        yield LiteralStatic("Folds", classes="field")
        yield Input(str(self._report.folds if self._report else 5), type="integer", id="trials-folds")
        yield LiteralStatic(id="trials-note", classes="note")
        yield LiteralStatic(self._table(), id="trials-table")

    def on_mount(self) -> None:
        """Start at the settings."""
        super().on_mount()
        self.query_one("#trials-settings", Input).focus()
        self._tell("Each combination trains without a part of the sections and is judged on it; nothing changes.")

    @on(Input.Submitted)
    async def _submitted(self) -> None:
        await self.action_accept()

    async def action_accept(self) -> None:  # type: ignore[override]
        """Try them."""
        await self._order(write=False)

    async def action_write_best(self) -> None:  # type: ignore[override]
        """Put the best into the document; what was tried before is not tried again."""
        await self._order(write=True)

    async def _order(self, *, write: bool) -> None:
        settings = tuple(self.query_one("#trials-settings", Input).value.split())
        try:
            folds = whole_number(self.query_one("#trials-folds", Input).value)
        except ValueError:
            folds = 0
        wrong = next((text for text in settings if not all(text.partition("="))), None)
        if not settings or wrong is not None:
            self._tell(f"{wrong or 'Nothing'} is not PATH=VALUE,VALUE, such as lora_r=8,16", error=True)
        elif folds < 2:
            self._tell("At least two folds are needed: one is held out.", error=True)
        elif not self._busy and await self._can_be_tried(settings):
            self.dismiss(TrialsOrder(settings, folds, write))

    async def _can_be_tried(self, settings: Sequence[str]) -> bool:
        """Whether the document takes every value; where it does not, that is told."""
        self._busy = True
        try:
            await asyncio.to_thread(self._check, settings)
        except (DlmTuiError, OSError) as error:
            self._tell(sentence_of(error).removeprefix("--set "), error=True)
            return False
        finally:
            self._busy = False
        return True

    def _before(self) -> str:
        """The settings of the last sweep."""
        values: dict[str, dict[str, None]] = {}
        for trial in self._report.trials if self._report else ():
            for path, value in trial.settings.items():
                values.setdefault(path, {})[value] = None
        return " ".join(f"{path}={','.join(found)}" for path, found in values.items())

    def _table(self) -> Content:
        report = self._report
        if report is None or not report.trials:
            return Content("")
        narrow = self.app.size.width < _NARROW
        names = [*report.trials[0].settings, *(("loss", "gate") if narrow else ("loss", "effect", "gate", "log loss"))]
        rows = []
        for trial in report.trials:
            few, all_of_them = (trial.loss, trial.accuracy), (trial.loss, trial.effect, trial.accuracy, trial.log_loss)
            rows.append([*trial.settings.values(), *map(_figure, few if narrow else all_of_them)])
        widths = [max(len(row[at]) for row in [names, *rows]) for at in range(len(names))]
        lines = [Content.styled(f"{_line(names, widths)}  {report.scale()}", "dim")]
        for number, (row, bar) in enumerate(zip(rows, report.chart(_BAR // 2 if narrow else _BAR), strict=True)):
            style = "bold" if number == report.best else ""
            mark = " best" if number == report.best else ""
            lines.append(assemble((sanitize(_line(row, widths), one_line=True), style), f"  {bar}{mark}"))
        if report.reason:
            lines.append(literal(report.reason))
        return Content("\n").join(lines)

    def _tell(self, text: str, *, error: bool = False) -> None:
        self.query_one("#trials-note", LiteralStatic).show(literal(text, "$error" if error else ""))


def _line(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _figure(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"
