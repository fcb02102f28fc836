"""Serving: start and stop the server, follow its traffic, and take from it what is worth a look or a label."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from time import monotonic

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.copying import Copying
from dlm_tui.app.controllers.labelling import Labelling
from dlm_tui.app.controllers.surfaces import Pages, PromptSurface
from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.screens.traffic import Taken, TrafficScreen
from dlm_tui.app.server_process import ServerProcess, Starting, server_words
from dlm_tui.counting import counted
from dlm_tui.engine.protocol import Failed, Stopped
from dlm_tui.errors import DlmTuiError
from dlm_tui.store.traffic import TrafficRow, traffic_rows
from dlm_tui.system_errors import sentence_of

_KEPT = 200
_RATE_SECONDS = 10.0


class Serving:
    """One server at a time, as one job on the board."""

    def __init__(
        self, context: Context, copying: Copying, labelling: Labelling, prompt: PromptSurface, pages: Pages
    ) -> None:
        self._context, self._copying, self._labelling = context, copying, labelling
        self._prompt, self._pages = prompt, pages
        self._dialog: TrafficScreen | None = None
        self._rows: deque[TrafficRow] = deque(maxlen=_KEPT)
        self._last = 0
        self._answered = 0
        self._came: deque[tuple[float, int]] = deque()
        self.process: ServerProcess | None = None

    @property
    def record(self) -> JobRecord | None:
        """The job of the running server."""
        return self._context.board.running("serve")

    def toggle(self) -> None:
        """Start the server, or stop it."""
        record = self.record
        if record is None:
            self._context.ui.run(self._serve, "serve", "server")
        else:
            self._context.ui.run(partial(self._stop, record), "serve-stop", "stop the server")

    def open(self) -> None:
        """The last requests with their weights."""
        self._context.ui.run_to_dialog(self._open, "traffic", "traffic", exclusive=True)

    async def _stop(self, record: JobRecord) -> None:
        how = await self._context.board.cancel(record)
        self._context.ui.say(f"The server: {how}.")

    async def _serve(self) -> None:
        context = self._context
        settings = context.config.serve
        words = context.setup.server_words or server_words(
            context.setup.path, context.setup.home, context.setup.base, settings.port, settings.keep_prompts
        )
        record = context.board.begin("serve", "Server")
        starting = Starting(asyncio.ensure_future(self._started(words)))
        context.board.attach(record, starting)
        try:
            self.process = process = await starting.process
        except asyncio.CancelledError:
            if not starting.was_stopped:
                raise
            context.board.note(record, Stopped(reason="cancelled", text="before it took requests"))
            return
        except (DlmTuiError, OSError) as error:
            context.board.note(record, Failed(kind=type(error).__name__, text=sentence_of(error)))
            context.ui.say(sentence_of(error), error=True, title="Not serving")
            return
        context.board.attach(record, process)
        record.title = f"Serving {process.address}/v1"
        record.note = counted(0, "request")
        context.job_changed.emit(record, None)
        self._copying.copy(f"{process.address}/v1", f"the address {process.address}/v1")
        following = asyncio.ensure_future(self._follow(record))
        try:
            problem = await process.ended()
        finally:
            following.cancel()
            self.process = None
        if problem is None:
            came = counted(self._answered, "request")
            context.board.note(record, Stopped(reason="cancelled", text=came))
        else:
            record.log.extend(process.log)
            context.board.note(record, Failed(kind="ServerGone", text=problem))
            context.ui.say(problem, error=True, title="No longer serving")

    async def _started(self, words: Sequence[str]) -> ServerProcess:
        await self._skip_old()
        return await ServerProcess.start(words)

    # ---- traffic ---------------------------------------------------------------------------------------------------

    async def _skip_old(self) -> None:
        """What was served before is listed, but does not count as news."""
        rows = await asyncio.to_thread(traffic_rows, self._context.store, limit=_KEPT)
        self._rows = deque(rows, maxlen=_KEPT)
        self._last = rows[-1].traffic_id if rows else 0
        self._answered = 0
        self._came.clear()

    async def _follow(self, record: JobRecord) -> None:
        """Look at the table once a second while the server runs."""
        told = False
        while True:
            await asyncio.sleep(1.0)
            try:
                rows = await asyncio.to_thread(traffic_rows, self._context.store, after=self._last, limit=_KEPT)
            except DlmTuiError as error:
                if not told:
                    self._context.ui.say(str(error), warning=True, title="The traffic cannot be read")
                told = True
                continue
            told = False
            self._answered += self._take(rows)
            if self._answered:
                record.note = f"{self._rate():.1f} requests/s \u00b7 {self._answered} so far"
            self._context.job_changed.emit(record, None)
            self._redraw()

    def _take(self, rows: list[TrafficRow]) -> int:
        if rows:
            self._last = rows[-1].traffic_id
            self._rows.extend(rows)
            self._came.append((monotonic(), len(rows)))
        return len(rows)

    def _rate(self) -> float:
        """Requests per second over the last ten."""
        while self._came and monotonic() - self._came[0][0] > _RATE_SECONDS:
            self._came.popleft()
        return sum(count for _, count in self._came) / _RATE_SECONDS

    # ---- the dialog ------------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        if self.record is None:
            try:
                await self._skip_old()
            except DlmTuiError as error:
                self._context.ui.say(str(error), error=True)
                return
        self._dialog = dialog = TrafficScreen(self._context.marks)
        dialog.on_copy, dialog.on_toggle = self._copy, self.toggle
        dialog.on_closed = self._closed
        await self._context.ui.open_dialog(dialog, self._taken)
        self._redraw()

    def _redraw(self) -> None:
        if self._dialog is not None and self._dialog.is_open:
            self._dialog.show(list(self._rows), self._words())

    def _words(self) -> str:
        record, key = self.record, self._context.key("serve.toggle")
        if record is None:
            return f"No server runs; {key} starts one."
        return f"{record.title} \u00b7 {record.detail()} \u00b7 {key} stops it"

    def _copy(self) -> None:
        if self.process is not None:
            self._copying.copy(f"{self.process.address}/v1", f"the address {self.process.address}/v1")

    def _closed(self) -> None:
        self._dialog = None

    def _taken(self, taken: Taken | None) -> None:
        """A request's prompt goes into the editor, and on to the label dialog where that was asked for."""
        if taken is None:
            return
        self._prompt.set_text(taken.prompt)
        self._pages.go_to("prompt")
        if taken.label:
            self._labelling.open()
