"""Background work: what runs, how far it is, what came of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, Protocol

import msgspec

from dlm_tui.app.progress import progress_words, share_of, stage_words, time_text
from dlm_tui.engine.job_client import Job
from dlm_tui.engine.protocol import (
    Event,
    Exported,
    ExportJob,
    ExportReport,
    Failed,
    GateTrained,
    Log,
    Progress,
    Stopped,
    Trained,
    TrainJob,
    TrainReport,
)
from dlm_tui.errors import DlmTuiError


class Stoppable(Protocol):
    """A child process that works on a job."""

    async def cancel(self) -> str:
        """Stop it; says what it took."""
        ...


JobStarter = Callable[[TrainJob | ExportJob], Awaitable[Job]]
Kind = Literal["train", "gate", "export", "serve"]
JobState = Literal["running", "done", "failed", "cancelled"]
_KEEP = 20
_LOG = 400


@dataclass
class JobRecord:
    """One job."""

    kind: Kind
    title: str
    state: JobState = "running"
    started: float = field(default_factory=lambda: monotonic())
    ended: float | None = None
    progress: Progress | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LOG))
    summary: str = ""
    note: str = ""
    warnings: list[str] = field(default_factory=list)
    training: TrainReport | None = None
    export: ExportReport | None = None
    trained: GateTrained | None = None

    @property
    def fraction(self) -> float | None:
        """How much is done, in [0, 1], where that can be told."""
        return share_of(self.progress)

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return (self.ended or monotonic()) - self.started

    def detail(self) -> str:
        """What it is at, how far and the time left, in one line."""
        return progress_words(self.progress) if self.progress else self.note or "starting"

    def take(self, event: Event) -> None:
        """Note an event."""
        match event:
            case Progress():
                before, self.progress = self.progress, _forward(self.progress, event)
                if before is None or (before.stage, before.scope) != (event.stage, event.scope):
                    self.log.append(f"{time_text(self.seconds):>6s}  {stage_words(event)}")
            case Log(text=text, level=level):
                self.log.append(text)
                if level == "warning":
                    self.warnings.append(text)
            case Trained(report=report):
                self.training = report
                self._end("done", f"done in {time_text(self.seconds)}")
            case Exported(report=finished):
                self.export = finished
                self._end("done", f"done in {time_text(self.seconds)}")
            case GateTrained(mode=mode, reason=reason):
                self.trained = event
                self._end("failed" if mode == "diverged" else "done", f"{mode}, {time_text(self.seconds)}: {reason}")
            case Stopped(text=text):
                left = text or "what was in force stays"
                self._end("cancelled", f"cancelled after {time_text(self.seconds)}; {left}")
            case Failed(text=text):
                self.log.append(text)
                self._end("failed", text)

    def _end(self, state: JobState, summary: str) -> None:
        self.ended = monotonic()
        self.state, self.summary = state, summary


def _forward(before: Progress | None, now: Progress) -> Progress:
    """The newer event; of one piece of work, neither its count nor what is left of it goes backwards."""
    same = before is not None and (before.stage, before.scope, before.total) == (now.stage, now.scope, now.total)
    if before is None or not same or now.done >= before.done:
        return now
    return msgspec.structs.replace(now, done=before.done, eta=before.eta)


class JobBoard:
    """Runs jobs, at most one of a kind, and remembers the last ones. `changed` is called at every event."""

    def __init__(self, starter: JobStarter, changed: Callable[[JobRecord, Event | None], None]) -> None:
        self._starter = starter
        self._changed = changed
        self._jobs: dict[int, Stoppable] = {}
        self.records: deque[JobRecord] = deque(maxlen=_KEEP)
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
        self.records.appendleft(record)
        if self.failure is not None and self.failure.kind == kind:
            self.failure = None
        self._changed(record, None)
        return record

    async def run(self, request: TrainJob | ExportJob, kind: Kind, title: str) -> JobRecord:
        """Start a job child and follow it to its end."""
        record = self._begin(kind, title)
        try:
            job = await self._starter(request)
        except (DlmTuiError, OSError) as error:
            self._note(record, Failed(kind=type(error).__name__, text=str(error)))
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

    def begin(self, kind: Kind, title: str) -> JobRecord:
        """Record work that somebody else follows to its end, with `attach` and `note`."""
        record = JobRecord(kind, title)
        self.records.appendleft(record)
        self._changed(record, None)
        return record

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
        """Stop a job child; says what it took."""
        job = self._jobs.get(id(record))
        return await job.cancel() if job else "already over"
