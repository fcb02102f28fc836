"""The label loop and exports: from what is on the screen to the document and to folders."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial

from textual import on

from dlm_tui.app.panes.answers import AnswersPane
from dlm_tui.app.screens.label import Label, LabelScreen
from dlm_tui.app.state import ExportSettings
from dlm_tui.app.viewing import Viewing
from dlm_tui.document.append import AppendResult, append_section, undo_append
from dlm_tui.engine.protocol import ExportJob
from dlm_tui.errors import DlmTuiError


class Labelling(Viewing):
    """Label a prompt, take it back, export."""

    _labels: list[AppendResult]

    # ---- labels ----------------------------------------------------------------------------------------------------

    def action_label(self) -> None:
        """Say which adapter the prompt belongs to."""
        self._ask_label("")

    @on(AnswersPane.LabelPressed)
    def _label_answer(self, event: AnswersPane.LabelPressed) -> None:
        self._ask_label(event.text.strip())

    def _ask_label(self, answer: str) -> None:
        prompt = self.prompt_pane.text.strip()
        if not prompt:
            self.say("There is no prompt to label yet.", warning=True)
            return
        if not self.document.adapter_names:
            self.say("This document declares no named adapters, so there is nothing to choose from.", warning=True)
            return
        try:
            data = self.setup.path.read_bytes()
        except OSError as error:
            self.say(f"The document cannot be read: {error}", error=True)
            return
        weights = dict(self.weights or {})
        ranked = sorted(weights, key=lambda name: -weights[name])
        # The strongest adapter is what a person who labels disagrees with.
        guess = ranked[1] if len(ranked) > 1 else None
        screen = LabelScreen(prompt, answer, self.names, self.marks, data, guess)
        self.app.push_screen(screen, self._label_chosen)

    def _label_chosen(self, label: Label | None) -> None:
        if label is not None:
            self.background(partial(self._add_label, label), "label", "label")

    async def _add_label(self, label: Label) -> None:
        try:
            result = await asyncio.to_thread(
                append_section,
                self.setup.path,
                label.expected_sha256,
                type=label.type,
                adapter=label.adapter,
                content=label.content,
            )
        except (DlmTuiError, OSError) as error:
            self.say(str(error), error=True, title="Nothing was added")
            return
        self._labels.append(result)
        undo = f"{self.key('prompt.undo_label')} takes it back."
        await self._after_edit(f"Labelled as {label.adapter}", f"Added at line {result.line}.", undo)

    def action_undo_label(self) -> None:
        """Take the last added section back."""
        if not self._labels:
            self.say("No label was added since the start.", warning=True)
            return
        self.background(self._undo_label, "label", "undo label")

    async def _undo_label(self) -> None:
        result = self._labels[-1]
        try:
            await asyncio.to_thread(undo_append, self.setup.path, result)
        except (DlmTuiError, OSError) as error:
            self.say(str(error), error=True, title="The label stays")
            return
        self._labels.pop()
        await self._after_edit("Label taken back", f"The section at line {result.line} is gone.")

    async def _after_edit(self, title: str, lead: str, trail: str = "") -> None:
        """The document changed by our hand: train the gate on it, then say in one toast what was done and moved."""
        text = self.prompt_pane.text
        if not self.link.ready or not self.trained_names:
            self.say(f"{lead} There is no gate to retrain yet. {trail}".strip(), title=title)
            return
        record = await self.retrain_gate()
        self.say_gate(record, text, lead=lead, trail=trail, title=title)
        if len(self.moved) > 1 and any(change.top_changed for change in self.moved):
            self.action_moved()

    # ---- export ----------------------------------------------------------------------------------------------------

    def action_export(self) -> None:
        """Export with the last used settings, at once."""
        self.start_export(self.state.export)

    def action_export_dialog(self) -> None:
        """Choose what to export and where."""
        from dlm_tui.app.screens.export import ExportScreen

        hand_mix = None
        if self.state.mix.mode == "custom":
            hand_mix = ",".join(f"{name}:{value:g}" for name, value in self.coefficients().items() if value)
        last = next((record.export for record in self.board.records if record.export), None)
        screen = ExportScreen(
            self.state.export, hand_mix, self.state.last_export, self.trained_names, last, shutil.which("ollama")
        )
        self.app.push_screen(screen, self._export_chosen)

    def _export_chosen(self, settings: ExportSettings | None) -> None:
        if settings is not None:
            self.state.export = settings
            self.save_soon()
            self.start_export(settings)

    def start_export(self, settings: ExportSettings) -> None:
        """Start the export job; one at a time."""
        if self.board.running("export"):
            self.say("An export is already running; it is in the jobs pane.", warning=True)
            return
        if not self.trained_names:
            self.say(f"There is nothing to export yet: {self.key('train.all')} trains the adapters.", warning=True)
            return
        request = ExportJob(
            document=str(self.setup.path),
            home=str(self.setup.home),
            base=self.setup.base,
            target=settings.target,
            quant=settings.quant,
            mix=settings.mix,
            signed=bool(settings.mix and "-" in settings.mix),
            out=settings.out,
            register=settings.register,
        )
        title = f"export {settings.target}"
        self.background(partial(self._export, request, title), "job-export", title)

    async def _export(self, request: ExportJob, title: str) -> None:
        record = await self.board.run(request, "export", title)
        if record.state == "done" and (report := record.export):
            folder, command = report.folder, report.next_command
            self.state.last_export = command or folder
            record.summary = f"{record.summary} \u00b7 {folder}"
            self.save_soon()
            title = f"Exported; {self.key('view.copy')} copies the command"
            if problem := report.register_error:
                self.say(f"{folder}\nNot registered with Ollama: {problem}\n{command}", warning=True, title=title)
            else:
                registered = f"Registered with Ollama as {report.registered}." if report.registered else ""
                self.say("\n".join(part for part in (folder, registered, command) if part), title=title)
            self.ask_jobs()
        elif record.state == "failed":
            self.say(record.summary, error=True, title="Nothing was exported")

    # ---- copying ---------------------------------------------------------------------------------------------------

    def action_copy(self) -> None:
        """The current answer; without one, the last export's command."""
        card = self.answers.current
        if card is not None and card.text.strip() and self.pane_of(self.focused) != "jobs":
            self.copy_text(card.text.strip(), f"the answer of {card.view}")
        elif self.state.last_export:
            self.copy_text(self.state.last_export, "the command of the last export")
        else:
            self.say("There is nothing to copy yet.", warning=True)

    def copy_text(self, text: str, what: str) -> None:
        """Copy and say how."""
        from dlm_tui.app.clipboard import copy_with_tool

        self.app.copy_to_clipboard(text)

        async def also() -> None:
            tool = await copy_with_tool(text)
            way = f"through {tool} and the terminal (OSC 52)" if tool else "through the terminal (OSC 52)"
            self.say(f"Copied {what} {way}.")

        self.background(also, "copy", "copy", exclusive=True)

    def action_save_screenshot(self) -> None:
        """The screen as SVG."""
        try:
            path = self.app.save_screenshot(path=str(self.setup.screenshot_folder))
        except OSError as error:
            self.say(f"The screenshot cannot be saved: {error}", error=True)
            return
        self.say(f"Saved {path}")
