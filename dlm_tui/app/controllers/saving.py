"""Writing the remembered state: a moment after it changes, and before leaving."""

from __future__ import annotations

import asyncio
import contextlib

from dlm_tui.app.controllers.ui import Ui
from dlm_tui.app.state import State, StateFile
from dlm_tui.errors import DlmTuiError
from dlm_tui.system_errors import sentence_of

_AFTER = 0.25  # seconds; many changes in a row make one write
_AGAIN = 3.0  # seconds until the disk may have room again


class StateSaver:
    """Nothing typed is lost, and the disk is never waited for."""

    def __init__(self, file: StateFile, state: State, ui: Ui) -> None:
        self._file, self._state, self._ui = file, state, ui
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._failing = False

    @property
    def is_due(self) -> bool:
        """Whether a write is still to come."""
        return self._timer is not None

    def soon(self, seconds: float = _AFTER) -> None:
        """Write in a moment; many calls make one write."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._start)

    def _start(self) -> None:
        self._timer = None
        self._ui.run(self._write, "save", "saving what is typed")

    async def _write(self) -> None:
        async with self._lock:
            data = self._file.encode(self._state)
            try:
                await asyncio.to_thread(self._file.write, data)
            except (DlmTuiError, OSError) as error:
                if not self._failing:
                    text = sentence_of(error)
                    self._ui.say(f"What you type cannot be saved: {text.rstrip('.')}. It is tried again.", error=True)
                self._failing = True
                self.soon(_AGAIN)
            else:
                self._failing = False

    def now(self) -> None:
        """Write before leaving; a full disk must not keep anybody from leaving."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with contextlib.suppress(DlmTuiError, OSError):
            self._file.write(self._file.encode(self._state))
