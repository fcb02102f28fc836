"""The document: every save is read again, the outline shows it, and the editor opens it."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from pathlib import Path

from textual.app import SuspendNotSupported

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.surfaces import OutlineSurface
from dlm_tui.app.editor import editor_command, run_editor
from dlm_tui.app.engine_link import LinkState
from dlm_tui.document import Document
from dlm_tui.document.document import read_document_bytes
from dlm_tui.document.errors import SchemaValidationError
from dlm_tui.document.field_lines import line_of_field
from dlm_tui.document.problems import body_problems
from dlm_tui.document.watch import Change, watch_document
from dlm_tui.engine.client import EngineGone
from dlm_tui.errors import DlmTuiError, full_stop
from dlm_tui.store import Store


class Documents:
    """Watches the file, and keeps the last good state when a save cannot be read."""

    def __init__(self, context: Context, outline: OutlineSurface) -> None:
        self._context, self._outline = context, outline
        self._missed = False
        context.engine_changed.connect(self._engine_changed)
        self.changed: Signal[[]] = Signal()
        """The document is another, or cannot be read any more."""

    async def watch(self) -> None:
        """Take in every save until this is cancelled."""
        async for change in watch_document(self._context.setup.path, self._context.document.sha256):
            await self.take(change)

    async def take(self, change: Change) -> None:
        """Use a save, or say why it cannot be used."""
        context = self._context
        if change.document is None:
            wrong, line = await asyncio.to_thread(place_of, change.error, context.setup.path)
            context.document_error = wrong
            self._outline.show_error(f"{full_stop(wrong)} The last good state is shown.", line)
            self.changed.emit()
            return
        context.document_error = None
        self._outline.show_error(None)
        base = context.document.base_model
        self.use(change.document)
        link = context.link
        if change.document.base_model != base or link.state.phase == "failed":
            link.begin_anew()  # what the document says now may be what was missing
        elif link.ready:
            await self._reload()
        else:
            self._missed = True

    def _engine_changed(self, state: LinkState) -> None:
        """What was saved while the engine was reading the document before it is read as soon as it can be."""
        if self._missed and state.phase == "ready":
            self._missed = False
            self._context.ui.run(self._reload, "reload", "read the document again")

    async def _reload(self) -> None:
        with contextlib.suppress(EngineGone):
            await self._context.link.reload()

    def use(self, document: Document) -> None:
        """Show another state of the document."""
        context = self._context
        context.document = document
        context.state.mix.keep_only([*context.names, *context.state.desk_versions])
        if document.dlm_id != context.store.root.name:
            context.store = Store(context.setup.home, document.dlm_id)
        self.show()
        self.changed.emit()

    def show(self) -> None:
        """Draw the outline: rows, counts, problems."""
        context = self._context
        versions = {**dict.fromkeys(context.on_disk), **context.opened.versions} if context.opened else None
        problems = body_problems(context.document)
        trained = set(context.state.trained_sections)
        from_files = context.survey.per_adapter if context.survey is not None else {}
        self._outline.show(context.document, problems, context.marks, versions, trained, from_files)
        self._outline.show_files(context.survey, context.new_files)

    def show_reading(self, text: str | None) -> None:
        """How far the pass over the source folders is; None once it is over."""
        self._outline.show_reading(text)

    def open_file(self, path: str) -> None:
        """Open a file of a source folder in the editor."""
        self.edit(Path(path))

    def open_line(self, line: int) -> None:
        """Open the document in the editor; the screen comes back when it is closed."""
        self.edit(self._context.setup.path, line)

    def edit(self, path: Path, line: int = 1) -> None:
        """Run the editor on a file with the screen put aside."""
        ui = self._context.ui
        try:
            command = editor_command(self._context.config.editor, path, line)
        except ValueError as error:  # of $VISUAL or $EDITOR: the configuration's is checked when it is read
            ui.say(f"The command of the editor: {str(error).lower()}.", error=True, title="The editor did not work")
            return
        try:
            with ui.suspended():
                problem = run_editor(command)
        except SuspendNotSupported:
            ui.say(f"No editor can be opened here; the place is {path.name}:{line}.", warning=True)
            return
        if problem:
            ui.say(f"{shlex.join(command)}: {problem}", error=True, title="The editor did not work")


def place_of(error: DlmTuiError | None, path: Path) -> tuple[str, int]:
    """What is wrong with a document, with the line of the key where the schema is not met, and that line."""
    if not isinstance(error, SchemaValidationError) or not error.fields:
        return str(error), getattr(error, "line", 0) or 1
    try:
        line = line_of_field(read_document_bytes(path).decode(), error.fields[0])
    except (DlmTuiError, UnicodeDecodeError):
        return str(error), error.line
    return f"line {line}: {error.text}", line
