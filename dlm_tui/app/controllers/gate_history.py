"""The gate's history over training runs, and the adapters' kinds, read while others write."""

from __future__ import annotations

import asyncio

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.surfaces import RunsSurface
from dlm_tui.store import MetricsReader, TrainingRecord, training_records

_RUNS = 400


class GateHistory:
    """Reads in a thread, and only when the database has changed."""

    def __init__(self, context: Context, runs: RunsSurface) -> None:
        self._context, self._runs = context, runs
        self._version: object = None
        self._reading = self._anew = False

    def poll(self) -> None:
        """Look whether there is something new, unless that is being done."""
        if not self._reading:
            self._reading = True
            self._context.ui.run(self._read, "metrics", "metrics", exclusive=True)

    def show_again(self) -> None:
        """Show everything anew, as after a change of colours."""
        self._anew = True
        self.poll()

    async def _read(self) -> None:
        try:
            await self._show_new()
        finally:
            self._reading = False

    async def _show_new(self) -> None:
        anew, self._anew = self._anew, False
        opened = self._context.opened
        reader = MetricsReader(self._context.store)
        version = await asyncio.to_thread(reader.data_version), dict(opened.versions) if opened else {}
        if version == self._version and not anew:
            return
        history = await asyncio.to_thread(reader.gate_overview, _RUNS)
        traffic = await asyncio.to_thread(reader.traffic_entropies)
        records = await asyncio.to_thread(training_records, self._context.store, self._context.names)
        self._version = version
        if history:
            self._context.gate_run = history[-1].run_id
        context = self._context
        has_gate = context.document.gate_enabled
        self._runs.show_history(history, context.names, context.marks, traffic, has_gate=has_gate)
        self._runs.show_kinds({name: _words(record) for name, record in records.items() if record.words})


def _words(record: TrainingRecord) -> str:
    """The kind of a version's training, with the mean tail depth of its selection."""
    depth = record.mean_tail_depth
    return record.words if depth is None else f"{record.words}, tail {depth:.2f}"
