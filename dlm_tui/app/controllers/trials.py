"""Sweeps of settings: the dialog with the last table, a job, and what is said when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import msgspec

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.screens.trials import TrialsOrder
from dlm_tui.document import parse_bytes, read_document_bytes
from dlm_tui.engine.protocol import SweepJob, SweepReport
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import MetricsReader
from dlm_tui.training.sweep_grid import parse_grid, trials_of


class Trials:
    """Opens the dialog and starts the job."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def open(self) -> None:
        """Choose what to try."""
        self._context.ui.run_to_dialog(self._open, "trials", "settings to try", exclusive=True)

    async def _open(self) -> None:
        from dlm_tui.app.screens.trials import TrialsScreen

        try:
            report = await asyncio.to_thread(_latest, MetricsReader(self._context.store))
        except DlmTuiError as error:
            self._context.ui.say(str(error), error=True)
            return
        await self._context.ui.open_dialog(TrialsScreen(report, self._check), self._ordered)

    def _check(self, settings: Sequence[str]) -> None:
        """Raises DlmTuiError for what the job would refuse, too, once it has begun."""
        path = self._context.setup.path
        data = read_document_bytes(path)
        trials_of(parse_bytes(data, path), data, parse_grid(settings))

    def _ordered(self, order: TrialsOrder | None) -> None:
        if order is None:
            return
        setup = self._context.setup
        request = SweepJob(
            document=str(setup.path),
            home=str(setup.home),
            base=setup.base,
            settings=list(order.settings),
            folds=order.folds,
            write=order.write,
        )
        title = f"try {' '.join(order.settings)}"
        self._context.ui.run(partial(self._run, request, title), "job-sweep", title)

    async def _run(self, request: SweepJob, title: str) -> None:
        context = self._context
        record = await context.board.run(request, "sweep", title)
        if record.state == "failed":
            context.ui.say(record.summary, error=True, title="No settings were tried")
        elif record.sweep is not None:
            written = record.sweep.written is not None
            said = "The best is in the document" if written else f"Tried; {context.key('train.sweep')} shows the table"
            context.ui.say(record.sweep.reason or "No trial could be judged.", title=said)


def _latest(reader: MetricsReader) -> SweepReport | None:
    """The newest sweep; what another version wrote is none."""
    try:
        return msgspec.convert(reader.latest_sweep(), SweepReport)
    except msgspec.ValidationError:
        return None
