"""The line of jobs: what happened while nobody looked, going on with it, order, pause, results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import msgspec

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.controllers.surfaces import Pages, Redrawn
from dlm_tui.app.job_line import Found, JobLine
from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.counting import counted
from dlm_tui.engine.protocol import TrainJob
from dlm_tui.errors import DlmTuiError
from dlm_tui.store import Store
from dlm_tui.store.checkpoints import Interrupted, interrupted
from dlm_tui.store.run_lock import may_train
from dlm_tui.system_errors import sentence_of

_log = logging.getLogger(__name__)


class Queue:
    """Follows the line for as long as the screen is there. Without a line (`JobLine`) there is nothing to do here."""

    def __init__(self, context: Context, pane: Redrawn, pages: Pages) -> None:
        self._context, self._pane, self._pages = context, pane, pages
        self.found: Signal[[JobRecord]] = Signal()
        """A job runs or waits that this screen did not ask for."""
        self.resumed: Signal[[TrainJob, str]] = Signal()
        """A training from before is to go on, under that title."""
        self.changed: Signal[[]] = Signal()
        """The line was paused, or goes on."""

    @property
    def line(self) -> JobLine | None:
        """The line of this document."""
        line = self._context.board.line
        return line if isinstance(line, JobLine) else None

    def start(self) -> None:
        """Look at the line, and follow it."""
        if self.line is not None:
            self._context.ui.run(self._follow, "queue", "line of jobs", exclusive=True)

    def document_changed(self) -> None:
        """A document with another id has another store, and another line: the jobs of the one before stay in it."""
        context, line = self._context, self.line
        starter = context.setup.runner_starter
        if line is None or starter is None or line.queue.store.root == context.store.root:
            return
        goes_on = line.lives and not line.works_here
        if left := line.let_go():
            self._say_left(left, line, goes_on=goes_on)
        context.board.line = JobLine(context.store, context.board, starter)
        self.start()

    def _say_left(self, left: list[JobRecord], line: JobLine, *, goes_on: bool) -> None:
        first, others = left[0], len(left) - 1
        more = f", {counted(others, 'job')} behind it" if others else ""
        where = f"in the line of {line.queue.store.dlm_id}{more}"
        text = f"{first.title} stays {where}. Nobody works on it now; a document with that dlm_id goes on with it."
        if goes_on:
            text = f"{first.title} goes on {where}, where another runner works."
        self._context.ui.say(text, title="The document has another dlm_id", warning=True, lasting=True)

    async def _follow(self) -> None:
        line = self.line
        if line is None:
            return
        line.tell = partial(self._context.ui.say, warning=True, lasting=True)
        found = await line.begin()
        self._tell_ended(found)
        for record in [*found.live, *found.standing]:
            self.found.emit(record)
        if found.standing and not line.line.paused:
            self._offer(found)
        elif not found.standing and not found.live:
            await self._look_for_training()
        self._pane.ask()
        await line.watch()

    def _tell_ended(self, found: Found) -> None:
        words = {"done": "done", "failed": "failed", "cancelled": "cancelled"}
        lines = []
        for record in found.ended:
            word = words[record.state]
            more = f". {record.summary}" if record.summary and record.summary != word else "."
            lines.append(f"{record.title}: {word}{more}")
        if lines:
            failed = any(record.state == "failed" for record in found.ended)
            self._context.ui.say("\n".join(lines), title="While you were away", warning=failed, lasting=failed)

    # ---- going on --------------------------------------------------------------------------------------------------

    def _offer(self, found: Found) -> None:
        first, others, line, store = found.standing[0], len(found.standing) - 1, self.line, self._context.store
        cut = line is not None and line.line.find(first.number or 0).tries > 0
        more = f" {others} more {'waits' if others == 1 else 'wait'} behind it." if others else ""
        question = f"{first.title} {'was interrupted' if cut else 'waits in line'}.{more} Nobody works on it now."
        dialog = ConfirmScreen(question, "Continue", "Not now", title="Continue?", safe=True)
        self._context.ui.open_dialog(dialog, lambda yes: self._go_on(store) if yes else self._hold())

    def continue_training(self) -> None:
        """Offer to go on with what a training outside of the line left, also where it was declined before."""
        look = partial(self._look_for_training, wanted=True)
        self._context.ui.run_to_dialog(look, "interrupted", "look for a training")

    async def _look_for_training(self, wanted: bool = False) -> None:
        context = self._context
        cut = await asyncio.to_thread(interrupted, context.store)
        if cut is None or not await asyncio.to_thread(may_train, context.store):
            if wanted:
                context.ui.say("No training was interrupted." if cut is None else "A training is running.")
        elif wanted or cut.at != context.state.declined_training:
            self._offer_training(cut)

    def _offer_training(self, cut: Interrupted) -> None:
        store = self._context.store
        at = cut.words if cut.adapter else "before it was put in force"
        question = f"A training was interrupted: {at}."
        dialog = ConfirmScreen(question, "Continue", "Not now", title="Continue?", safe=True)
        self._context.ui.open_dialog(
            dialog, lambda yes: self._resume_training(cut, store) if yes else self._decline_training(cut)
        )

    def _decline_training(self, cut: Interrupted) -> None:
        """It is not offered again by itself."""
        self._context.state.declined_training = cut.at
        self._context.saver.soon()
        self._context.ui.say('"train: continue interrupted" in the command palette goes on with it.')

    def _resume_training(self, cut: Interrupted, store: Store) -> None:
        if not self._is_still(store):
            return
        setup = self._context.setup
        request = TrainJob(document=str(setup.path), home=str(setup.home), base=setup.base, resume=True)
        if (asked := cut.asked) is not None:
            request = msgspec.structs.replace(
                request,
                base=asked.base or setup.base,
                adapters=asked.adapters,
                choices=asked.choices,
                calibration=asked.calibration,
                checkpoint_steps=asked.checkpoint_steps,
                trainer=asked.trainer,
            )
        self.resumed.emit(request, "continue the training")

    def _go_on(self, store: Store) -> None:
        if self._is_still(store):
            self._work()
            self._pages.show_page("jobs")

    def _is_still(self, store: Store) -> bool:
        """Whether the document has the store that was asked about; where it has not, that is said."""
        is_still = self._context.store.root == store.root
        if not is_still:
            self._context.ui.say(f"That was for dlm_id {store.dlm_id}; the document has another by now.", warning=True)
        return is_still

    def _hold(self) -> None:
        self._context.ui.say(f"{self._context.key('jobs.pause')} in the jobs pane goes on with the line.")

    def _work(self) -> None:
        line = self.line
        if line is not None:
            self._do(line.work, "go on with the line")

    def toggle_pause(self) -> None:
        """Stop what runs and hold the line, or go on with it."""
        line, context = self.line, self._context
        if line is None or not line.line.ahead:
            context.ui.say("Nothing is in line.")
        elif line.held:
            self._work()
        else:
            self._do(line.pause, "pause the line")

    def _do(self, work: Callable[[], object], what: str) -> None:
        async def run() -> None:
            line = self.line
            try:
                await work()  # type: ignore[misc]
                if line is not None:
                    await line.look()
            except (DlmTuiError, OSError) as error:
                self._context.ui.say(sentence_of(error), error=True)
            self._pane.ask()
            self.changed.emit()

        self._context.ui.run(run, "queue-change", what)

    def words(self) -> str:
        """How the line stands, where it does not go its way."""
        line = self.line
        if line is None or not line.held:
            return ""
        how = "The line is paused" if line.line.paused else "Nobody works the line off"
        return f"{how}; {self._context.key('jobs.pause')} goes on."

    # ---- one job ---------------------------------------------------------------------------------------------------

    def move(self, record: JobRecord | None, by: int) -> None:
        """Let a waiting job wait shorter or longer."""
        line = self.line
        if line is None or record is None or record.state != "waiting":
            self._context.ui.say("Only jobs that wait can be moved.", warning=True)
        else:
            self._do(partial(line.move, record, by), "move a job")

    def go_on_alone(self) -> None:
        """The terminal is gone, as when a connection breaks: nobody asked the work to stop, nor looks at the screen."""
        line = self.line
        if line is not None and line.lives:
            try:
                line.queue.leave(stays=True)
            except (DlmTuiError, OSError) as error:
                _log.warning("the work in line stops with the screen: %s", sentence_of(error))

    async def leave(self, *, stays: bool) -> None:
        """The screen ends: say whether the work goes on. Raises StoreError, OSError."""
        if self.line is not None:
            await self.line.leave(stays=stays)
