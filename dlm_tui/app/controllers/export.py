"""Exports: settings from the dialog or from last time, one job, and what to run next."""

from __future__ import annotations

import shutil
from functools import partial

import msgspec

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.copying import Copying
from dlm_tui.app.controllers.mixing import Mixing
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.state import ExportSettings
from dlm_tui.counting import counted
from dlm_tui.document.mix import format_mix
from dlm_tui.document.named_mixes import NamedMixes, NamedMixesError
from dlm_tui.engine.protocol import ExportJob, ExportReport
from dlm_tui.export.cost_table import FormatCost
from dlm_tui.store import StoreError
from dlm_tui.system_errors import sentence_of

_SHORT = 200  # characters of a command that a toast shows


class Export:
    """One export at a time."""

    def __init__(self, context: Context, mixing: Mixing, copying: Copying) -> None:
        self._context, self._mixing, self._copying = context, mixing, copying
        self.finished: Signal[[]] = Signal()
        """An export is over and its summary is complete."""

    def open(self, mix: str | None = None) -> None:
        """Choose what to export and where; `mix` names a saved one to begin with."""
        from dlm_tui.app.screens.export import ExportScreen

        context, state = self._context, self._context.state
        hand_mix = None
        if state.mix.mode == "custom":
            hand_mix = ",".join(f"{name}:{value:g}" for name, value in self._mixing.coefficients().items() if value)
        last = next((record.export for record in context.board.records if record.export), None)
        settings = msgspec.structs.replace(state.export, mix=mix) if mix else state.export
        dialog = ExportScreen(
            settings,
            hand_mix,
            self._saved_mixes(),
            state.last_export,
            context.trained_names or context.names,
            last,
            shutil.which("ollama"),
            has_gate=context.document.gate_enabled,
            no_exports=context.opened.no_exports if context.opened else {},
        )
        dialog.on_copy = lambda command: self._copying.copy(command, "the command of the last export")
        context.ui.open_dialog(dialog, self._chosen)

    def _saved_mixes(self) -> dict[str, str]:
        """Name → mix string of the saved mixes; none where their file cannot be used, which its own dialog says."""
        try:
            mixes = NamedMixes(self._context.setup.path).load()
        except NamedMixesError:
            return {}
        return {name: format_mix(mix) for name, mix in mixes.items()}

    def _chosen(self, settings: ExportSettings | None) -> None:
        if settings is not None:
            self._context.state.export = msgspec.structs.replace(settings, compare=False)
            self._context.saver.soon()
            self.start(settings)

    def start(self, settings: ExportSettings | None = None) -> None:
        """Start the export job; without settings with those of last time."""
        context = self._context
        settings = settings or context.state.export
        if context.board.line is None and context.board.running("export"):
            context.ui.say("An export is already running; it is in the jobs pane.", warning=True)
            return
        needs_choice = not context.document.gate_enabled and len(context.names) > 1
        if needs_choice and settings.mix in (None, "best"):
            chooses = f"{context.key('export.dialog')} chooses a mix"
            context.ui.say(f"The document has no gate to freeze: {chooses}.", warning=True)
            return
        request = ExportJob(
            document=str(context.setup.path),
            home=str(context.setup.home),
            base=context.setup.base,
            target=settings.target,
            quant=settings.quant,
            mix=settings.mix,
            signed=bool(settings.mix and "-" in settings.mix),
            out=settings.out,
            register=settings.register,
            compare=settings.compare,
            comparison=[] if settings.compare else self._measured(settings.quant),
        )
        title = "compare formats" if settings.compare else f"export {settings.target}"
        context.ui.run(partial(self._export, request, title), "job-export", title)

    def _measured(self, quant: str | None) -> list[FormatCost]:
        """The newest comparison that has this format, for the export's manifest."""
        found = (record.export.comparison for record in self._context.board.records if record.export)
        lines = next((lines for lines in found if lines), [])
        return lines if any(line.quant == quant for line in lines) else []

    async def _export(self, request: ExportJob, title: str) -> None:
        context = self._context
        try:
            is_trained = bool(context.on_disk or await context.names_in_force())
        except (StoreError, OSError) as error:
            context.ui.say(sentence_of(error), error=True, title="Nothing was exported")
            return
        if not is_trained:
            trains = f"{context.key('train.all')} trains the adapters"
            why = "the adapters are in training" if context.board.running("train") is not None else trains
            context.ui.say(f"There is nothing to export yet: {why}.", warning=True)
            return
        await self.follow(await self._context.board.run(request, "export", title))

    async def follow(self, record: JobRecord) -> None:
        """An export to its end, which is then said."""
        await record.over.wait()
        if record.state == "done" and record.export and record.export.comparison and not record.export.folder:
            lines = len(record.export.comparison)
            self._context.ui.say(f"{self._context.key('export.dialog')} shows the {lines} lines.", title="Compared")
        elif record.state == "done" and record.export:
            self._say_done(record, record.export)
            self.finished.emit()
        elif record.state == "failed":
            self._context.ui.say(record.summary, error=True, title="Nothing was exported")

    def _say_done(self, record: JobRecord, report: ExportReport) -> None:
        context, folder, command = self._context, report.folder, report.next_command
        shown = command if command is None or len(command) <= _SHORT else ""  # a program of its own fills the screen
        context.state.last_export = command or folder
        notes = f" \u00b7 {counted(len(report.notes), 'note')}" if report.notes else ""
        record.summary = f"{record.summary}{notes} \u00b7 {folder}"
        context.saver.soon()
        title = f"Exported; {context.key('view.copy')} copies the command"
        if problem := report.register_error:
            context.ui.say(f"{folder}\nNot registered with Ollama: {problem}\n{shown}", warning=True, title=title)
        else:
            registered = f"Registered with Ollama as {report.registered}." if report.registered else ""
            parts = (folder, *report.notes, registered, shown)
            context.ui.say("\n".join(part for part in parts if part), warning=bool(report.notes), title=title)
