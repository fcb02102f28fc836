"""Background work: what runs, how far it is, what came of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from time import time
from typing import Literal, Protocol

import msgspec

from dlm_tui.app.progress import progress_parts, progress_words, share_of, stage_words, time_text
from dlm_tui.engine.job_client import Job
from dlm_tui.engine.protocol import (
    EarlyLook,
    Evaluated,
    EvaluationReport,
    Event,
    Exported,
    ExportReport,
    Failed,
    GateTrained,
    Imported,
    JobRequest,
    Log,
    Looked,
    Progress,
    Stopped,
    SweepReport,
    Swept,
    Trained,
    TrainReport,
)
from dlm_tui.engine.queue_file import TAKEN_OUT
from dlm_tui.engine.queue_results import result_words
from dlm_tui.errors import DlmTuiError
from dlm_tui.system_errors import sentence_of


class Stoppable(Protocol):
    """A child process that works on a job."""

    async def cancel(self) -> str:
        """Stop it; says what it took."""
        ...


JobStarter = Callable[[JobRequest], Awaitable[Job]]
Kind = Literal["train", "gate", "export", "serve", "evaluate", "sweep", "import"]
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
_LEFT: dict[Kind, str] = {
    "train": "what was in force stays",
    "gate": "what was in force stays",
    "export": "what was exported before stays",
    "import": "what was in force stays",
}
"""What a job that is cancelled leaves as it was."""
_KEEP = 20
_LOG = 400


@dataclass
class JobRecord:
    """One job. `number` and `request` are those of the line it stands in, None for what runs outside of it."""

    kind: Kind
    title: str
    state: JobState = "running"
    started: float = field(default_factory=lambda: time())
    """Seconds since 1970, as `ended` is; what its events say counts, whoever follows it since when."""
    ended: float | None = None
    progress: Progress | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG))
    looks: dict[str, EarlyLook] = field(default_factory=dict)
    """The last look at each adapter that was trained, the newest at the end."""
    summary: str = ""
    note: str = ""
    warnings: list[str] = field(default_factory=list)
    training: TrainReport | None = None
    export: ExportReport | None = None
    trained: GateTrained | None = None
    evaluation: EvaluationReport | None = None
    sweep: SweepReport | None = None
    imported: Imported | None = None
    number: int | None = None
    request: JobRequest | None = None
    since: float | None = None
    """A moment, in seconds since 1970, before which it has not read its document; None where that is not known."""
    place: int = 0
    """Among those that wait."""
    left: bool = False
    """It stands in the line of another store than the document has by now, and nobody follows it here any more."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its turn has come, or it ended before."""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has ended, however that was."""

    @property
    def fraction(self) -> float | None:
        """How much is done, in [0, 1], where that can be told."""
        return share_of(self.progress)

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return max(0.0, (self.ended or time()) - self.started)

    def detail(self) -> str:
        """What it is at, how far and the time left, in one line."""
        return progress_words(self.progress) if self.progress else self.note or "starting"

    def details(self) -> list[str]:
        """The pieces of `detail`, the weightiest first."""
        return progress_parts(self.progress) if self.progress else [self.detail()]

    def take(self, event: Event) -> None:
        """Note an event: of its own moment, which may be long before anybody here followed the job, else of now."""
        self.take_up()
        at = event.at or time()
        self.started = min(self.started, at)
        took = time_text(at - self.started)
        match event:
            case Progress():
                before, self.progress = self.progress, _forward(self.progress, event)
                if before is None or (before.stage, before.scope) != (event.stage, event.scope):
                    self.log.append(f"{took:>6s}  {stage_words(event)}")
            case Looked(scope=scope, look=look):
                self.looks.pop(scope, None)
                self.looks[scope] = look
            case Log(text=text, level=level):
                self.log.append(text)
                if level == "warning":
                    self.warnings.append(text)
            case Trained(report=report):
                self.training = report
                self._end("done", f"done in {took}", at)
            case Exported(report=finished):
                self.export = finished
                self._end("done", f"done in {took}", at)
            case Evaluated(report=judged):
                self.evaluation = judged
                self._end("done", result_words(event), at)
            case Swept(report=swept):
                self.sweep = swept
                self._end("done", result_words(event), at)
            case Imported():
                self.imported = event
                self._end("done", result_words(event), at)
            case GateTrained(mode=mode, reason=reason):
                self.trained = event
                self._end("failed" if mode == "diverged" else "done", f"{mode}, {took}: {reason}", at)
            case Stopped(text=text) if text == TAKEN_OUT:
                self._end("cancelled", text, at)
            case Stopped(text=text):
                left = text or _LEFT.get(self.kind, "")
                word = "stopped" if self.kind == "serve" else "cancelled"  # a server has no other end
                self._end("cancelled", f"{word} after {took}" + (f"; {left}" if left else ""), at)
            case Failed(text=text):
                self.log.append(text)
                self._end("failed", text, at)

    def _end(self, state: JobState, summary: str, at: float) -> None:
        self.ended = at
        self.state, self.summary = state, summary
        self.begun.set()
        self.over.set()

    def take_up(self) -> None:
        """Its turn has come."""
        if self.state == "waiting":
            self.state, self.started, self.note = "running", time(), ""
        self.begun.set()

    def let_go(self) -> None:
        """Nobody follows it here any more."""
        self.left = True
        if not self.over.is_set():
            self._end("cancelled", "left in its line", time())

    def wait_again(self, note: str) -> None:
        """It was stopped to go on later, and waits in line."""
        self.state, self.note, self.progress = "waiting", note, None


def _forward(before: Progress | None, now: Progress) -> Progress:
    """The newer event; of one piece of work, neither its count nor what is left of it goes backwards.

    A piece that has reached its total is over: what counts from further back under the same name is another one.
    """
    if before is None or _piece(before) != _piece(now) or now.done >= before.done or before.done >= before.total > 0:
        return now
    return msgspec.structs.replace(now, done=before.done, eta=before.eta)


def _piece(step: Progress) -> tuple[object, ...]:
    return step.stage, step.scope, step.text, step.total


class Line(Protocol):
    """Where jobs wait for one another, outside of this process."""

    async def submit(self, request: JobRequest, kind: Kind, title: str) -> JobRecord | None:
        """Put a job in line; None where no line can be kept."""

    async def cancel(self, record: JobRecord) -> str:
        """Take it out of the line, or stop it; says which."""

    @property
    def held(self) -> bool:
        """Whether jobs wait in it that nobody goes on with until somebody says so."""


class JobBoard:
    """Runs jobs, and remembers the last ones. `changed` is called at every event.

    With a `line` jobs wait for one another there; without one each runs at once, as a child of this process.
    """

    def __init__(self, starter: JobStarter, changed: Callable[[JobRecord, Event | None], None]) -> None:
        self._starter = starter
        self.line: Line | None = None
        self._changed = changed
        self._jobs: dict[int, Stoppable] = {}
        self.records: deque[JobRecord] = deque()
        self.failure: JobRecord | None = None
        """The last job that failed, until somebody has looked or another one of its kind begins."""

    def running(self, *kinds: Kind) -> JobRecord | None:
        """The newest running job, of one of `kinds` if given."""
        return next(
            (record for record in self.records if record.state == "running" and (not kinds or record.kind in kinds)),
            None,
        )

    def looked(self) -> None:
        """The jobs are in view."""
        self.failure = None

    def _begin(self, kind: Kind, title: str) -> JobRecord:
        record = JobRecord(kind, title)
        self._list(record)
        if self.failure is not None and self.failure.kind == kind:
            self.failure = None
        self._changed(record, None)
        return record

    async def run(self, request: JobRequest, kind: Kind, title: str) -> JobRecord:
        """Put a job in line, or start a child for it, and follow it to its end."""
        placed = await self.place(request, kind, title)
        if placed is not None:
            await placed.over.wait()
            return placed
        return await self.run_here(request, kind, title)

    async def place(self, request: JobRequest, kind: Kind, title: str) -> JobRecord | None:
        """Put a job in line; None where there is no line, or none that can be written."""
        return await self.line.submit(request, kind, title) if self.line is not None else None

    async def run_here(self, request: JobRequest, kind: Kind, title: str) -> JobRecord:
        """Start a child for a job and follow it to its end."""
        record = self._begin(kind, title)
        try:
            job = await self._starter(request)
        except (DlmTuiError, OSError) as error:
            self._note(record, Failed(kind=type(error).__name__, text=sentence_of(error)))
            return record
        self._jobs[id(record)] = job
        try:
            await self._follow(record, job.events())
            if record.state == "failed":
                record.log.extend(job.log)
        except asyncio.CancelledError:
            await job.cancel()
            raise
        finally:
            del self._jobs[id(record)]
        return record

    def put(self, record: JobRecord) -> None:
        """Take over a record of a job that is somebody else's to follow."""
        if record.state in ("waiting", "running"):
            if self.failure is not None and self.failure.kind == record.kind:
                self.failure = None
            self._list(record)
        else:
            self._list(record, newest=False)
        self._changed(record, None)

    def _list(self, record: JobRecord, *, newest: bool = True) -> None:
        """Add a record at the end where it belongs; of those that are over the oldest go when there are many."""
        if newest:
            self.records.appendleft(record)
        else:
            self.records.append(record)
        over = [one for one in self.records if one.state not in ("waiting", "running")]
        for one in over[_KEEP:]:
            self.records.remove(one)

    def drop(self, record: JobRecord) -> None:
        """Take a record off: the document has another store than the line that the job stands in."""
        if record in self.records:
            self.records.remove(record)
        if self.failure is record:
            self.failure = None
        record.let_go()
        self._changed(record, None)

    def tell(self, record: JobRecord) -> None:
        """A record was changed by who follows it."""
        self._changed(record, None)

    def listed(self) -> list[JobRecord]:
        """As they are shown: what runs, what waits in the order of the line, what is over, the newest first."""
        ranks = {"running": 0, "waiting": 1}
        return sorted(self.records, key=lambda record: (ranks.get(record.state, 2), record.place))

    def waiting(self) -> list[JobRecord]:
        """What waits, in the order of the line."""
        return [record for record in self.listed() if record.state == "waiting"]

    def begin(self, kind: Kind, title: str) -> JobRecord:
        """Record work that somebody else follows to its end, with `attach` and `note`."""
        return self._begin(kind, title)

    def attach(self, record: JobRecord, process: Stoppable) -> None:
        """What `cancel` stops from now on."""
        self._jobs[id(record)] = process

    def note(self, record: JobRecord, event: Event) -> None:
        """An event of work that was recorded by `begin`."""
        self._note(record, event)
        if record.state != "running":
            self._jobs.pop(id(record), None)

    async def follow(self, events: AsyncIterator[Event], kind: Kind, title: str) -> JobRecord:
        """Record work that the engine itself does."""
        record = self._begin(kind, title)
        try:
            await self._follow(record, events)
        except DlmTuiError as error:
            self._note(record, Failed(kind=type(error).__name__, text=str(error)))
        return record

    async def _follow(self, record: JobRecord, events: AsyncIterator[Event]) -> None:
        async for event in events:
            self._note(record, event)
        if record.state == "running":
            self._note(record, Failed(kind="JobGone", text="the job ended without a result"))

    def _note(self, record: JobRecord, event: Event) -> None:
        record.take(event)
        if record.state == "failed":
            self.failure = record
        self._changed(record, event)

    async def cancel(self, record: JobRecord) -> str:
        """Stop a job; says what it took."""
        if self.line is not None and record.number is not None and record.state in ("waiting", "running"):
            return await self.line.cancel(record)
        job = self._jobs.get(id(record))
        return await job.cancel() if job else "already over"
