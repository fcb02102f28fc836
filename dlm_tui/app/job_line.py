"""The document's line of jobs as the screen follows it: entries become records, what jobs say becomes events."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from dlm_tui.app.jobs import JobBoard, JobRecord, Kind
from dlm_tui.engine.protocol import FINAL_EVENTS, Event, Failed, JobRequest, Stopped
from dlm_tui.engine.queue_client import EventLog, start_runner
from dlm_tui.engine.queue_file import OVER, TAKEN_OUT, Entry, Line, QueueFile, kind_of
from dlm_tui.engine.queue_results import result_words
from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.store import Store

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
"""How often it is made sure that somebody works the line off."""


class Runner(Protocol):
    """Whoever works the line off for this screen."""

    def poll(self) -> int | None:
        """None while it lives."""

    def leave(self) -> None:
        """Have it stop what runs, so that it can go on another time, and end."""


RunnerStarter = Callable[[QueueFile], Awaitable[Runner]]


class _RunnerBeside:
    """A process, which the end of its standard input tells to leave."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def leave(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


async def start_runner_beside(queue: QueueFile) -> Runner:
    """A process that works the line off until this one ends, or longer if the line says so."""
    return _RunnerBeside(await asyncio.to_thread(start_runner, queue))


@dataclass
class Found:
    """What the line held when the screen came: jobs that ended meanwhile, that run, and that wait with nobody to work.

    `standing` are those that wait or were cut short while no runner lives.
    """

    ended: list[JobRecord] = field(default_factory=list)
    live: list[JobRecord] = field(default_factory=list)
    standing: list[JobRecord] = field(default_factory=list)


@dataclass
class _Followed:
    record: JobRecord
    tries: int = 0
    log: EventLog | None = None
    last: Event | None = None


class JobLine:
    """One store's line. `watch` runs for as long as the screen; everything that touches a file runs in a thread."""

    def __init__(self, store: Store, board: JobBoard, start_runner: RunnerStarter, poll: float = 0.2) -> None:
        self.queue = QueueFile(store)
        self._board, self._start_runner, self._poll = board, start_runner, poll
        self._followed: dict[int, _Followed] = {}
        self._submitted: set[int] = set()
        self._runner: Runner | None = None
        self._wanted = False  # this screen wants the line to be worked off
        self._is_left = False
        self._mark: object = None
        self._looking = asyncio.Lock()
        self.line = Line()
        self.lives = False
        """Whether somebody works the line off."""
        self.tell: Callable[[str], None] = _log.warning
        """Hears of a line that could not be read and was begun anew."""

    @property
    def stands(self) -> bool:
        """Whether jobs wait and nobody works."""
        return bool(self.line.ahead) and not self.lives

    @property
    def held(self) -> bool:
        """Whether jobs wait and the line is paused, or nobody works."""
        return bool(self.line.ahead) and (self.line.paused or not self.lives)

    # ---- what a person does ----

    async def submit(self, request: JobRequest, kind: Kind, title: str) -> JobRecord | None:
        """Put a job in line and have the line worked off; None where the store cannot be written."""
        async with self._looking:
            try:
                entry = await asyncio.to_thread(self.queue.add, request, title)
            except (DlmTuiError, OSError):
                return None
            self._submitted.add(entry.number)
            record = self._take_in(entry)
        if not self.line.paused and not self._is_left:
            await self.work()
        return record

    async def work(self) -> None:
        """Go on with the line: no longer paused, and with somebody who works. Raises StoreError, OSError."""
        self._wanted = True
        if self.line.paused:
            await asyncio.to_thread(self.queue.pause, False)
        await self._ensure_runner()

    async def pause(self) -> None:
        """Stop what runs, to go on later; nothing starts. Raises StoreError, OSError."""
        self._wanted = False
        await asyncio.to_thread(self.queue.pause, True)

    async def move(self, record: JobRecord, by: int) -> None:
        """Let a waiting job wait shorter or longer. Raises UsageError, StoreError, OSError."""
        if record.number is None:
            raise UsageError("Only jobs that wait can be moved.")
        await asyncio.to_thread(self.queue.shift, record.number, by)
        await self.look()

    async def cancel(self, record: JobRecord) -> str:
        """Take a job out of the line, or have it stopped for good."""
        try:
            entry = await asyncio.to_thread(self.queue.cancel, record.number or 0)
        except UsageError:
            return "already over"
        await self.look()
        return TAKEN_OUT if entry.state in OVER else "being stopped"  # the row may not say yet that it runs

    async def leave(self, *, stays: bool) -> None:
        """The screen ends; its work goes on, or stops to be continued another time. Raises StoreError, OSError."""
        await asyncio.to_thread(self.queue.leave, stays=stays)

    def let_go(self) -> list[JobRecord]:
        """The document has another store: its jobs are no longer on the board, and a runner of this screen leaves.

        Those that were not over; they stay in line and can go on another time.
        """
        self._is_left = True
        records = [followed.record for followed in self._followed.values()]
        ahead = [record for record in records if not record.over.is_set()]
        for record in records:
            self._board.drop(record)
        if self.works_here and self._runner is not None:
            self._runner.leave()
        return sorted(ahead, key=lambda record: record.place)

    @property
    def works_here(self) -> bool:
        """Whether a runner that this screen started works the line off."""
        return self._runner is not None and self._runner.poll() is None

    # ---- following ----

    async def begin(self) -> Found:
        """Look at the line for the first time; those who ended since somebody looked count as told from now on.

        What this screen has put in line before that was not found.
        """
        await self.look()
        found = Found()
        for entry in self.line.entries:
            if entry.number in self._submitted:
                continue
            record = self._followed[entry.number].record
            if entry.state in OVER:
                found.ended += [record] if not entry.seen else []
            elif self.lives:
                found.live.append(record)
            else:
                found.standing.append(record)
        if found.ended:
            await asyncio.to_thread(self.queue.mark_seen)
        self._wanted |= self.lives
        return found

    async def watch(self) -> None:
        """Follow the line until cancelled."""
        since = 0.0
        while True:
            await self.look()
            since += self._poll
            if since >= _LOOK_SECONDS:
                since = 0.0
                self.lives = await self._is_worked_off()
                if self._wanted and self.stands and not self.line.paused:
                    await self._ensure_runner()
            await asyncio.sleep(self._poll)

    async def look(self) -> None:
        """Take in what has changed."""
        async with self._looking:
            mark = await asyncio.to_thread(self._marked)
            if mark != self._mark:
                told: list[str] = []
                self.line = await asyncio.to_thread(self.queue.read, told.append)
                for text in told:
                    self.tell(text)
                self.lives = await self._is_worked_off()
                self._mark = mark  # only now: a look that is cancelled in the middle has seen nothing
            places = {entry.number: place for place, entry in enumerate(self.line.ahead)}
            for entry in self.line.entries:
                followed = self._followed.get(entry.number)
                if followed is None:
                    self._take_in(entry)
                    followed = self._followed[entry.number]
                place = places.get(entry.number, -entry.number)
                if place != followed.record.place:
                    followed.record.place = place
                    self._board.tell(followed.record)
                if not followed.record.over.is_set():
                    await self._follow(entry, followed)

    def _marked(self) -> object:
        try:
            info = self.queue.path.stat()
        except OSError:
            return None
        return info.st_mtime_ns, info.st_ino

    def _take_in(self, entry: Entry) -> JobRecord:
        """A record for an entry that was not seen before."""
        known = self._followed.get(entry.number)
        if known is not None:
            return known.record
        record = JobRecord(kind_of(entry.request), entry.title, state="waiting")
        record.number, record.request, record.note = (
            entry.number,
            entry.request,
            _cut_words(entry) if entry.tries else "waits",
        )
        ahead = sum(not other.record.over.is_set() for other in self._followed.values())
        record.place = ahead if entry.state not in OVER else -entry.number
        self._followed[entry.number] = _Followed(record)
        if entry.state in OVER:
            _end_at_once(record, entry)
        self._board.put(record)
        if self._is_left:  # while it was put in line
            self._board.drop(record)
        return record

    async def _follow(self, entry: Entry, followed: _Followed) -> None:
        record = followed.record
        works = entry.state == "running" and self.lives  # a killed runner leaves the word behind
        if entry.tries != followed.tries and (works or entry.state in OVER):
            followed.tries, followed.last = entry.tries, None
            followed.log = EventLog(self.queue.events(entry.number, entry.tries))
        if works and record.state == "waiting":
            record.since = _unread_until(entry)
            record.take_up()
            self._board.tell(record)
        if followed.log is not None and (works or entry.state in OVER):
            for event in await asyncio.to_thread(followed.log.more):
                if isinstance(event, FINAL_EVENTS):
                    followed.last = event  # whether that was its end stands in the line
                else:
                    self._board.note(record, event)
        if entry.state in OVER:
            said = None if entry.summary == TAKEN_OUT else followed.last  # a try before that may have been stopped
            self._board.note(record, said or _end_of(entry))
            if not entry.seen:  # whoever sits here sees it
                await asyncio.to_thread(self.queue.mark_seen)
        elif not works and record.state == "running":
            record.wait_again(_cut_words(entry))
            self._board.tell(record)

    async def _is_worked_off(self) -> bool:
        """Whether somebody works the line off; a runner that this screen started is about to while it starts."""
        if self.works_here:
            return True
        return await asyncio.to_thread(self.queue.is_worked_off)

    async def _ensure_runner(self) -> None:
        if self.works_here:
            return
        if not await asyncio.to_thread(self.queue.is_worked_off):
            self._runner = await self._start_runner(self.queue)
            self.lives = True
            if self._is_left:  # while it started
                self._runner.leave()


def _unread_until(entry: Entry) -> float | None:
    """Seconds since 1970, before which the job had not read its document; of one that was cut, the first try counts."""
    try:
        moment = datetime.fromisoformat(entry.began if entry.tries == 1 else entry.added)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC).timestamp()


def _cut_words(entry: Entry) -> str:
    """How a job that was cut short stands in line."""
    return f"interrupted, {'goes on from there' if entry.goes_on else 'begins again'}"


def _end_of(entry: Entry) -> Event:
    """How a job ended whose words are gone."""
    if entry.state == "done" and entry.result is not None:
        return entry.result
    if entry.state == "failed":
        return Failed(kind="JobFailed", text=entry.summary)
    return Stopped(reason="cancelled", text=entry.summary)


def _end_at_once(record: JobRecord, entry: Entry) -> None:
    """A job that was over before the screen came."""
    record.take(_end_of(entry))
    record.summary = result_words(entry.result) or entry.summary or record.state
