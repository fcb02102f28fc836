"""Background jobs, one child each: training, judging, export. No torch here."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from dlm_tui.engine.process import ChildProcess, EngineGone
from dlm_tui.engine.protocol import Event, Failed, JobRequest, Stopped

_ASK_SECONDS = 5.0
_TERM_SECONDS = 2.0


class Job(Protocol):
    """A running job; the tests put a recorded one in its place."""

    log: deque[str]

    def events(self) -> AsyncIterator[Event]:
        """Progress, then Trained, Evaluated or Exported, Failed or Stopped."""

    async def cancel(self) -> str:
        """Stop the job and say what it took."""


class ChildJob:
    """A job in its own process group."""

    def __init__(self, request: JobRequest):
        self.request = request
        self._child = ChildProcess("dlm_tui.engine.job_worker")
        self.log = self._child.log
        self._cancelled = False

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._child.pid

    async def start(self) -> None:
        """Spawn the child."""
        await self._child.start()

    async def events(self) -> AsyncIterator[Event]:
        """The job's events; a child that dies gives Failed, or Stopped if that was asked for."""
        try:
            async for event in self._child.stream(self.request):
                yield event
        except EngineGone as error:
            if self._cancelled:
                yield Stopped(id=self.request.id, reason="cancelled")
            else:
                yield Failed(id=self.request.id, kind="JobGone", text=str(error).replace("the engine", "the job", 1))
        finally:
            await self._child.close()

    async def cancel(self) -> str:
        """Message, then SIGTERM to the group, then SIGKILL; returns what it took."""
        self._cancelled = True
        await self._child.cancel(self.request)
        # The child ends by itself once it has answered.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._child.wait_exit(), _ASK_SECONDS)
            return "stopped when asked"
        self._child.end_group(at_once=False)
        if await self._child.end_within(_TERM_SECONDS):
            return "ended by SIGTERM"
        return "ended by SIGKILL"


async def start_job(request: JobRequest) -> Job:
    """Start a job child for this request."""
    job = ChildJob(request)
    await job.start()
    return job
