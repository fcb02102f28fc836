"""Works off a document's line of jobs, one child at a time. `python -m dlm_tui.engine.queue_runner HOME ID`.

As a process of its own it outlives the screen that started it if the line says so (`stays`); otherwise the end of its
standard input, which is that screen's end, stops what runs so that it can go on another time.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import time

import msgspec

from dlm_tui.document import load
from dlm_tui.engine.job_client import Job, start_job
from dlm_tui.engine.protocol import (
    Evaluated,
    Event,
    Exported,
    Failed,
    Imported,
    JobRequest,
    Log,
    Stopped,
    Swept,
    Trained,
    TrainJob,
    encode,
)
from dlm_tui.engine.queue_file import OVER, Entry, Line, QueueFile
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.files import remove
from dlm_tui.shell_word import shell_word
from dlm_tui.store import LockHeld, Store, resolve_home, utc_seconds
from dlm_tui.store.locks import TRAINING, named_lock
from dlm_tui.store.run_lock import training_elsewhere

JobStarter = Callable[[JobRequest], Awaitable[Job]]
_POLL_SECONDS = 0.2
_DEATHS = 3
"""A child that is ended from outside goes on; one that is ended so often in a row has failed."""


class QueueRunner:
    """One who works off the line; at most one per store, which is held by a lock that dies with its holder."""

    def __init__(
        self,
        queue: QueueFile,
        start: JobStarter = start_job,
        *,
        poll: float = _POLL_SECONDS,
        on_event: Callable[[Entry, Event], None] = lambda entry, event: None,
    ) -> None:
        self._queue, self._start, self._poll, self._on_event = queue, start, poll, on_event
        self._leave = asyncio.Event()

    def leave(self) -> None:
        """Stop what runs, so that it can go on another time, and end."""
        self._leave.set()

    async def run(self, wait: float = 5.0) -> None:
        """Until nothing waits, the line is paused, or it is asked to leave. Raises LockHeld when another one works."""
        with self._queue.working(wait):
            self._recover()
            while (entry := self._next()) is not None:
                await self._run(entry)
            with self._queue.change() as line:
                line.halt = line.stays = False

    # ---- the line ----

    def _recover(self) -> None:
        """What a killed runner left in the middle goes on first."""
        with self._queue.change() as line:
            line.halt = False
            cut = [entry for entry in line.entries if entry.state == "running"]
            for entry in cut:
                _back_in_line(entry)
            waiting = [entry for entry in line.entries if entry.state == "waiting" and entry not in cut]
            line.entries = [entry for entry in line.entries if entry.state in OVER] + cut + waiting

    def _next(self) -> Entry | None:
        """The next job, now running; None when it is time to end."""
        with self._queue.change() as line:
            waiting = [entry for entry in line.entries if entry.state == "waiting"]
            if line.paused or line.halt or self._leave.is_set() or not waiting:
                return None
            entry = waiting[0]
            entry.state, entry.began, entry.tries = "running", utc_seconds(), entry.tries + 1
            line.entries.remove(entry)
            line.entries.insert(len(line.entries) - len(waiting) + 1, entry)
            return entry

    async def _run(self, entry: Entry) -> None:
        """One try of a job, to its end or until it is put back in line."""
        asked = asyncio.Event()  # to stop, whatever for
        watch = asyncio.create_task(self._watch(entry, asked))
        try:
            last = await self._follow(entry, asked)
        finally:
            watch.cancel()
        with self._queue.change() as line:
            current = line.find(entry.number)
            asked_for = current.stop or _asked_to_leave(line, self._leave)
            current.deaths = 0 if asked_for or not _was_ended(last) else current.deaths + 1
            if _was_ended(last) and not current.stop and current.deaths < _DEATHS:
                _back_in_line(current)
                return
            _end(current, last)
        remove(self._queue.store.root / self._queue.receipt(entry.number))

    async def _follow(self, entry: Entry, asked: asyncio.Event) -> Event:
        """Run the child and write down what it says; its last event."""
        path = self._queue.events(entry.number, entry.tries)
        last: Event = Failed(kind="JobGone", text="the job ended without a result")
        with path.open("wb", buffering=0) as out:

            def note(event: Event) -> None:
                out.write(encode(msgspec.structs.replace(event, at=time())))  # who reads it may come much later
                self._on_event(entry, event)

            if not await self._until_free(entry, asked, note):
                last = Stopped(reason="cancelled")
                note(last)
                return last
            try:
                _refuse_other_store(self._queue.store, entry.request)
                job = await self._start(entry.request)
            except (DlmTuiError, OSError) as error:
                last = Failed(kind=type(error).__name__, text=str(error))
                note(last)
                return last
            stop = asyncio.create_task(_stop_when(asked, job))
            try:
                async for event in job.events():
                    last = event
                    if isinstance(event, Failed):
                        for text in job.log:
                            note(Log(text=text, level="error"))
                    note(event)
            finally:
                stop.cancel()
            return last

    async def _until_free(self, entry: Entry, asked: asyncio.Event, note: Callable[[Event], None]) -> bool:
        """Wait for whoever trains the document now; False when the job is to be stopped before that."""
        if not isinstance(entry.request, TrainJob):
            return not asked.is_set()
        told = False
        while not asked.is_set():
            try:
                with named_lock(self._queue.store, TRAINING, 0.0):
                    return True
            except LockHeld:
                if not told:
                    note(Log(text=f"{training_elsewhere(self._queue.store)}; this one waits for it"))
                    told = True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asked.wait(), self._poll)
        return False

    async def _watch(self, entry: Entry, asked: asyncio.Event) -> None:
        """Notice what a person wants of the running job, or of the whole line."""
        seen = None
        while not asked.is_set():
            with contextlib.suppress(OSError):
                info = self._queue.path.stat()
                if (mark := (info.st_mtime_ns, info.st_ino)) != seen:
                    seen = mark
                    line = self._queue.read()
                    if _asked_to_leave(line, self._leave) or line.find(entry.number).stop:
                        asked.set()
            if self._leave.is_set():
                asked.set()
            else:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._leave.wait(), self._poll)


def _asked_to_leave(line: Line, leave: asyncio.Event) -> bool:
    return line.paused or line.halt or leave.is_set()


def _was_ended(last: Event) -> bool:
    """Whether the job did not end by itself: stopped, or its process was killed."""
    return isinstance(last, Stopped) or (isinstance(last, Failed) and last.kind == "JobGone")


def _back_in_line(entry: Entry) -> None:
    """It waits again, to go on where it was: a training from its last checkpoint."""
    entry.state = "waiting"
    if isinstance(entry.request, TrainJob):
        entry.request = msgspec.structs.replace(entry.request, resume=True)


def _end(entry: Entry, last: Event) -> None:
    entry.ended, entry.state, entry.summary = utc_seconds(), "done", ""
    match last:
        case Trained() | Evaluated() | Exported() | Swept() | Imported():
            entry.result = last
        case Stopped(text=text):
            entry.state, entry.summary = "cancelled", text
        case Failed(text=text):
            entry.state, entry.summary = "failed", text
        case _:
            entry.state, entry.summary = "failed", "the job ended without a result"


def _refuse_other_store(store: Store, request: JobRequest) -> None:
    """A line can come from anywhere, so what it names is asked for: nobody else's document is worked on.

    Raises UsageError for a job whose document has another store than this one, DocumentError for one without an id.
    """
    dlm_id = load(Path(request.document)).dlm_id
    root = Store(resolve_home(request.home), dlm_id).root
    if root.resolve() != store.root.resolve():
        raise UsageError(
            f"the job is for {request.document} with its store {root}, the line is that of {store.root}; "
            f"`dlm-tui queue {shell_word(request.document)} add` puts it into its own"
        )


async def _stop_when(asked: asyncio.Event, job: Job) -> None:
    await asked.wait()
    await job.cancel()


async def _serve(queue: QueueFile) -> None:
    runner = QueueRunner(queue)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runner.leave)
    gone = asyncio.create_task(_leave_with_stdin(queue, runner))
    try:
        with contextlib.suppress(LockHeld):
            await runner.run()
    finally:
        gone.cancel()


async def _leave_with_stdin(queue: QueueFile, runner: QueueRunner) -> None:
    """Whoever started this process has ended: stop with it, unless it said that the work goes on."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1 << 12):
        pass
    with contextlib.suppress(OSError):
        if not queue.read().stays:
            runner.leave()


def main() -> None:
    """Work off the line of one store, then end."""
    home, dlm_id = sys.argv[1:]
    asyncio.run(_serve(QueueFile(Store(Path(home), dlm_id))))


if __name__ == "__main__":
    main()
