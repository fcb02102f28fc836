"""Runs laid over one another: read in a thread, shown in a dialog, saved beside the document."""

from __future__ import annotations

import asyncio
from functools import partial

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.run_curves import read_runs
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import write_through_links
from dlm_tui.system_errors import cause


class RunOverlay:
    """Opens the dialog and writes its files."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def open(self) -> None:
        """Read the runs, then show them."""
        self._context.ui.run_to_dialog(self._open, "runs", "runs", exclusive=True)

    async def _open(self) -> None:
        from dlm_tui.app.screens.run_overlay import RunOverlayScreen

        context = self._context
        try:
            runs = await asyncio.to_thread(read_runs, context.store)
        except DlmTuiError as error:
            context.ui.say(str(error), error=True)
            return
        if not runs:
            context.ui.say(f"No run has a curve yet; {context.key('train.all')} trains.", warning=True)
            return
        dialog = RunOverlayScreen(runs, context.marks)
        dialog.on_save = self._save
        await context.ui.open_dialog(dialog, lambda _: None)

    def _save(self, name: str, text: str) -> None:
        self._context.ui.run(partial(self._write, name, text), "runs-save", "saving the runs")

    async def _write(self, name: str, text: str) -> None:
        document = self._context.setup.path
        path = document.with_name(f"{document.stem}.{name}")
        try:
            await asyncio.to_thread(write_through_links, path, text.encode())
        except OSError as error:
            self._context.ui.say(f"{path}: {cause(error)}", error=True, title="Not saved")
        else:
            self._context.ui.say(f"Saved {path}")
