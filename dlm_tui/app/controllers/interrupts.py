"""Esc and quit: what runs is stopped first, and nothing is stopped without a word."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.conversing import Conversing
from dlm_tui.app.controllers.generation import Generation
from dlm_tui.app.controllers.jobs import Jobs
from dlm_tui.app.controllers.queue import Queue
from dlm_tui.app.controllers.sources import Sources
from dlm_tui.app.controllers.surfaces import Pages
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.leave import Leave, LeaveScreen
from dlm_tui.app.screens.new_document import NewDocumentScreen
from dlm_tui.app.screens.open_document import OpenDocumentScreen
from dlm_tui.errors import DlmTuiError
from dlm_tui.shell_word import shell_word
from dlm_tui.system_errors import sentence_of


class Interrupts:
    """Ends answers, jobs, the zoom, the program, also to go on with another document."""

    def __init__(
        self,
        context: Context,
        generation: Generation,
        conversing: Conversing,
        jobs: Jobs,
        sources: Sources,
        queue: Queue,
        pages: Pages,
    ) -> None:
        self._context, self._generation, self._conversing, self._jobs = context, generation, conversing, jobs
        self._sources, self._queue, self._pages = sources, queue, pages
        self._leaving = False  # the line is being told

    async def escape(self) -> None:
        """Stop an answer or a search; else leave the prompt, and only outside it stop a job; else unzoom.

        Warnings that stay are taken as read.
        """
        self._context.ui.clear_lasting()
        if await self._generation.stop() or await self._conversing.stop() or self._sources.stop():
            return
        if self._pages.focused_pane == "prompt":
            if not self._pages.end_zoom():
                self._pages.focus_pane("desk")
        elif not self._jobs.ask_cancel():
            self._pages.end_zoom()

    def begin_document(self) -> None:
        """Ask for a new document, write it and go on with it; while a job runs it is only written."""
        self._context.ui.open_dialog(NewDocumentScreen(self._context.setup.path.parent), self._begun)

    def _begun(self, path: Path | None) -> None:
        if path is not None:
            self._go_on_with(path, "is written", new=True)

    def open_document(self) -> None:
        """Ask for a document and go on with it; while a job runs only the command for it is told."""
        dialog = OpenDocumentScreen(self._context.setup.path)
        self._context.ui.open_dialog(dialog, lambda path: self._go_on_with(path, "is not opened") if path else None)

    def _go_on_with(self, path: Path, else_: str, *, new: bool = False) -> None:
        if self._context.board.running() is not None:
            command = f"dlm-tui {shell_word(path)}"
            self._context.ui.say(f"A job is running here; `{command}` opens it.", title=f"{path.name} {else_}")
            return
        self._context.ui.leave_for(path, new=new)

    def quit(self) -> None:
        """Leave; with work in line ask whether it goes on, with other jobs running ask once."""
        if self._leaving:
            self._context.ui.say("The line of jobs is still being told; then this closes.")
            return
        board = self._context.board
        placed = [record for record in board.listed() if record.number is not None and not record.over.is_set()]
        if self._queue.line is not None and self._queue.line.lives and placed:
            first, others = placed[0], len(placed) - 1
            more = f" {others} more {'waits' if others == 1 else 'wait'} in line." if others else ""
            here = [record.title for record in board.listed() if record.state == "running" and record.number is None]
            ends = f" {', '.join(here)} {'stops' if len(here) == 1 else 'stop'} either way." if here else ""
            asked = LeaveScreen(f"{first.title} is running ({first.detail()}).{more}{ends}")
            self._context.ui.open_dialog(asked, self._leave_work)
            return
        record = board.running()
        if record is None:
            self._context.ui.exit()
            return
        question = f"{record.title} is running ({record.detail()}). Leaving stops it; what is in force stays."
        dialog = ConfirmScreen(question, "Stop it and leave")
        self._context.ui.open_dialog(dialog, lambda yes: self._context.ui.exit() if yes else None)

    def _leave_work(self, choice: Leave | None) -> None:
        if choice is not None:
            self._leaving = True
            self._context.ui.run(partial(self._tell_and_leave, choice), "leave", "leave")

    async def _tell_and_leave(self, choice: Leave) -> None:
        """Close when the line knows what becomes of the work; where it cannot be told, that is asked about first."""
        stays = choice == "stay"
        try:
            await self._queue.leave(stays=stays)
        except (DlmTuiError, OSError) as error:
            work = "stops, and can be continued next time" if stays else "may go on"
            question = (
                f"The line of jobs cannot be told: {sentence_of(error).rstrip('.')}. If you leave, its work {work}."
            )
            dialog = ConfirmScreen(question, "Leave all the same", "Stay here")
            self._context.ui.open_dialog(dialog, lambda yes: self._context.ui.exit() if yes else None)
        else:
            self._context.ui.exit()
        finally:
            self._leaving = False
