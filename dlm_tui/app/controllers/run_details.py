"""How the adapters in force were trained: kinds, losses, and how far down the spectrum their selections lie."""

from __future__ import annotations

import asyncio

from textual.content import Content

from dlm_tui.app.controllers.context import Context
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import read_training_record
from dlm_tui.store.adapter_history import VersionFacts, version_history
from dlm_tui.store.adapter_kind import tail_lines, tail_words
from dlm_tui.system_errors import sentence_of
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.sanitize import assemble


class RunDetails:
    """Reads in a thread and shows what it finds."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def open(self) -> None:
        """Show how each adapter was trained."""
        self._context.ui.run_to_dialog(self._open, "run-details", "details of the runs", exclusive=True)

    async def _open(self) -> None:
        from dlm_tui.app.screens.run_details import RunDetailsScreen

        context = self._context
        try:
            rows = await asyncio.to_thread(self._rows)
        except (DlmTuiError, OSError) as error:
            context.ui.say(sentence_of(error), error=True)
            return
        if not rows:
            context.ui.say(f"No adapter is trained yet. {context.key('train.all')} trains them.", warning=True)
            return
        context.ui.open_dialog(RunDetailsScreen(rows))

    def _rows(self) -> list[Content]:
        history = version_history(self._context.store, self._context.names)
        in_force = [facts for versions in history.values() for facts in versions if facts.in_force]
        return [row for facts in in_force for row in details_of(facts, self._context.marks.get(facts.name))]


def details_of(facts: VersionFacts, mark: Mark | None) -> list[Content]:
    """One version: its kind and run, what its selection looked at, and its tail depth per layer."""
    record = read_training_record(facts.path)
    selection = record.kind.selection
    head = assemble(
        (f"{mark.glyph if mark else ' '} {facts.name}@{facts.version}", f"bold {mark.color}" if mark else "bold"),
        f" {facts.kind}",
        (f" \u00b7 training {facts.training}" if facts.training is not None else f" \u00b7 {facts.origin}", "dim"),
        ("".join(f" \u00b7 {words}" for words in facts.loss_words), "dim"),
    )
    rows = [head]
    if record.calibration:
        rows.append(assemble((f"  calibrated on {record.calibration}", "dim")))
    if words := tail_words(selection, record.tail_depth):
        rows.append(assemble(f"  {words}"))
    return rows + [assemble((f"    {line}", "dim")) for line in tail_lines(record.tail_depth)]
