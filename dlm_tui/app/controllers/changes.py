"""What was changed in the document by this program, so that the newest change is taken back first, whatever it was."""

from __future__ import annotations

import asyncio

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.document.change_log import ChangeLog, DocumentChange, NothingToUndo
from dlm_tui.errors import DlmTuiError
from dlm_tui.system_errors import cause, sentence_of


class Changes:
    """Keeps the changes beside the remembered state, also over restarts."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._log = ChangeLog(context.setup.state_file.path.with_suffix(".changes.json"))
        self._lock = asyncio.Lock()
        self.taken_back: Signal[[DocumentChange]] = Signal()
        """A change is undone."""

    @property
    def hint(self) -> str:
        """The sentence that tells how a change is taken back."""
        return f"{self._context.key('prompt.undo_label')} takes it back."

    async def note(self, change: DocumentChange) -> None:
        """Something was changed."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._log.add, change)
            except (DlmTuiError, OSError) as error:
                self._context.ui.say(f"The way back cannot be kept: {cause(error)}", warning=True)

    def undo(self) -> None:
        """Take the newest change back."""
        self._context.ui.run(self._undo, "section", "undo")

    async def _undo(self) -> None:
        context = self._context
        async with self._lock:
            try:
                change = await asyncio.to_thread(self._log.undo, context.setup.path)
            except NothingToUndo as error:
                text = str(error)
                context.ui.say(f"{text[:1].upper()}{text[1:]}.".replace("..", "."), warning=True)
                return
            except (DlmTuiError, OSError) as error:
                context.ui.say(sentence_of(error), error=True, title="The change stays")
                return
        self.taken_back.emit(change)
