"""The scheduler as the HTTP side sees it: requests go in from the event loop, events come back to it in bundles."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from dlm_tui.serving.backend import Ask, Event, Load, ServedModel, Stream
from dlm_tui.serving.native.scheduler import QUEUE, REUSE_BYTES, ROWS, Job, Scheduler
from dlm_tui.session import Session


class NativeBackend:
    """Answers with the engine of this program."""

    def __init__(
        self,
        session: Session,
        *,
        rows: int = ROWS,
        queue: int = QUEUE,
        reuse_bytes: int = REUSE_BYTES,
        context_length: int | None = None,
    ) -> None:
        self._session = session
        self._outbox: list[tuple[Stream, Event]] = []
        self._scheduler = Scheduler(
            session,
            rows=rows,
            queue=queue,
            reuse_bytes=reuse_bytes,
            context_length=context_length,
            flush=self._flush,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._created = int(time.time())

    @property
    def rows(self) -> int:
        """Rows decoded together, which bounds the choices of one request."""
        return self._scheduler.seats

    @property
    def model(self) -> ServedModel:
        session = self._session
        return ServedModel(
            base=session.base.identity.id,
            adapters=tuple(session.model.names),
            gate=session.gate_status.mode,
            backend=f"native ({session.model.generation.tier})",
            context_length=self._scheduler.context_length,
            hidden_size=session.base.hidden_size,
            created=self._created,
            versions=dict(session.versions),
            warnings=tuple(session.warnings),
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._session.model.names)

    @property
    def load(self) -> Load:
        scheduler = self._scheduler
        return Load(scheduler.running, scheduler.waiting, scheduler.steps, scheduler.reloads)

    @property
    def problem(self) -> str:
        return self._scheduler.problem

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._scheduler.start()

    async def notes(self) -> list[str]:
        return self._scheduler.notes

    def answer(self, ask: Ask) -> Stream:
        return self._submit(lambda send: Job(ask.client, send, ask=ask))

    def route(self, client: str, prompt: str) -> Stream:
        return self._submit(lambda send: Job(client, send, route=prompt))

    def embed(self, client: str, prompt: str) -> Stream:
        return self._submit(lambda send: Job(client, send, embed=prompt))

    def refuse(self) -> None:
        self._scheduler.refuse()

    def close(self) -> None:
        self._scheduler.close()

    def _submit(self, make: Callable[[Callable[[Event], None]], Job]) -> Stream:
        scheduler = self._scheduler
        stream = Stream(lambda: scheduler.cancel(job), lambda choice: scheduler.stop_choice(job, choice))
        job = make(lambda event: self._outbox.append((stream, event)))
        scheduler.submit(job)
        return stream

    def _flush(self) -> None:
        """Hand the events of a round to the loop in one call. Called from the scheduler's thread."""
        if not self._outbox or self._loop is None:
            return
        events, self._outbox = self._outbox, []
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens
            self._loop.call_soon_threadsafe(_put, events)


def _put(events: list[tuple[Stream, Event]]) -> None:
    for stream, event in events:
        stream.put(event)
