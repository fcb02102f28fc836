"""Writing the remembered state: a moment after it changes, and before leaving."""

from __future__ import annotations

import asyncio
import contextlib

from dlm_tui.app.controllers.ui import Ui
from dlm_tui.app.state import State, StateFile

_AFTER = 0.25  # seconds; many changes in a row make one write


class StateSaver:
    """Nothing typed is lost, and the disk is never waited for."""

    def __init__(self, file: StateFile, state: State, ui: Ui) -> None:
        self._file, self._state, self._ui = file, state, ui
        self._lock = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_due(self) -> bool:
        """Whether a write is still to come."""
        return self._timer is not None

    def soon(self) -> None:
        """Write in a moment; many calls make one write."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_AFTER, self._start)

    def _start(self) -> None:
        self._timer = None
        self._ui.run(self._write, "save", "saving what is typed")

    async def _write(self) -> None:
        async with self._lock:
            data = self._file.encode(self._state)
            try:
                await asyncio.to_thread(self._file.write, data)
            except OSError as error:
                self._ui.say(f"What you type cannot be saved: {error}", error=True)

    def now(self) -> None:
        """Write before leaving; a full disk must not keep anybody from leaving."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with contextlib.suppress(OSError):
            self._file.write(self._file.encode(self._state))
