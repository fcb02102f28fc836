"""Keeping answers: each is written down whole when it has ended, without the screen waiting for the disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.store import AnswersError, KeptAnswer


class Keeping:
    """Writes answers into the document's database, in the order in which they ended."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pending: asyncio.Queue[KeptAnswer] = asyncio.Queue()
        self._lock = asyncio.Lock()
        self._failing = False
        self.kept: Signal[[list[KeptAnswer]]] = Signal()
        """These are kept, and have their ids."""

    def keep(self, answers: Sequence[KeptAnswer]) -> None:
        """Keep answers, in a moment."""
        for answer in answers:
            self._pending.put_nowait(answer)
        if not self._pending.empty():
            self._context.ui.run(self._write, "keep", "keeping the answer")

    async def settled(self) -> None:
        """Until all that ended is kept, or could not be."""
        await self._pending.join()

    async def _write(self) -> None:
        async with self._lock:
            answers = self._taken()
            try:
                kept = await asyncio.to_thread(self._context.archive.keep, answers)
                self._failing = False
                if kept:
                    self.kept.emit(kept)
            except AnswersError as error:
                if not self._failing:  # said once, not with every answer
                    self._context.ui.say(str(error), error=True, title="Answers are not kept")
                self._failing = True
            finally:
                for _ in answers:
                    self._pending.task_done()

    def _taken(self) -> list[KeptAnswer]:
        return [self._pending.get_nowait() for _ in range(self._pending.qsize())]

    def now(self) -> None:
        """Keep what is still to be written, before leaving; a full disk must not keep anybody from leaving."""
        answers = self._taken()
        with contextlib.suppress(AnswersError):
            self._context.archive.keep(answers)
