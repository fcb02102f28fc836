"""Running jobs: what they report, and how they are stopped."""

from __future__ import annotations

from time import monotonic

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.surfaces import Pages, Redrawn
from dlm_tui.app.jobs import JobRecord
from dlm_tui.engine.protocol import Event

_TWICE_SECONDS = 2.0


class Jobs:
    """Keeps the jobs pane up to date and cancels jobs."""

    def __init__(self, context: Context, pane: Redrawn, pages: Pages) -> None:
        self._context, self._pane, self._pages = context, pane, pages
        self._cancel_asked = 0.0

    def job_changed(self, record: JobRecord, event: Event | None) -> None:
        """An event of a job."""
        self.mark_seen()
        self.redraw()

    def mark_seen(self) -> None:
        """A failure that is on the screen needs no mark."""
        if self._pages.is_shown("jobs"):
            self._context.board.looked()

    def redraw(self) -> None:
        """Draw the jobs pane, in a moment."""
        self._pane.ask()

    def cancel_running(self, marked: JobRecord | None = None) -> None:
        """Stop the marked job, or take it out of the line; without one the newest running one."""
        record = marked or self._context.board.running()
        if record is None:
            self._context.ui.say("No job is running.")
        elif record.over.is_set():
            self._context.ui.say(f"{record.title}: already over.")
        else:
            self._cancel(record)

    def _cancel(self, record: JobRecord) -> None:
        async def stop() -> None:
            how = await self._context.board.cancel(record)
            self._context.ui.say(f"{record.title}: {how}.")

        self._context.ui.run(stop, "job-cancel", "cancel job")

    def ask_cancel(self) -> bool:
        """Esc with a job running: the second press within two seconds stops it. False when no job runs."""
        record = self._context.board.running("train", "export", "evaluate", "sweep", "import")
        if record is None:
            return False
        if monotonic() - self._cancel_asked < _TWICE_SECONDS:
            self._cancel_asked = 0.0
            self._cancel(record)
        else:
            self._cancel_asked = monotonic()
            self._context.ui.say(f"Esc again stops: {record.title}.", warning=True)
        return True
