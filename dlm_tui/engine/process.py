"""A child process that speaks the wire protocol, seen from the asyncio side. No torch here."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import msgspec

from dlm_tui.child import module_words
from dlm_tui.engine.protocol import (
    FINAL_EVENTS,
    PROTOCOL,
    Cancel,
    Event,
    Failed,
    Hello,
    Message,
    decode_event,
    encode,
    unreadable,
)
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.environment import CHILD_ENVIRONMENT
from dlm_tui.platform import OWN_GROUP, end_group

_LINE_LIMIT = 64 * 1024 * 1024
_LOG_LINES = 500
_LOG_TAIL = 20


class EngineFailed(DlmTuiError):
    """A request failed in the child; `kind` names the error class there."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind
        self.text = text


class EngineGone(DlmTuiError):
    """The child ended while it was needed."""


@dataclass(frozen=True)
class ExitInfo:
    """How a child ended: exit code, or the signal that ended it, and the last lines it wrote to stderr."""

    code: int | None
    signal: str | None
    log_tail: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, code: int, log: Iterable[str]) -> ExitInfo:
        """For what waiting for a process gives: its exit code, or less than 0 for a signal."""
        name = signal.Signals(-code).name if code < 0 else None
        return cls(None if name else code, name, list(log)[-_LOG_TAIL:])

    @property
    def text(self) -> str:
        """One phrase for the screen."""
        return f"ended by {self.signal}" if self.signal else f"ended with code {self.code}"


class ChildProcess:
    """One child: requests go to its stdin, events come from its stdout, stderr fills `log`."""

    def __init__(self, module: str, arguments: list[str] | None = None):
        self.module = module
        self.arguments = arguments or []
        self.hello: Hello | None = None
        self.log: deque[str] = deque(maxlen=_LOG_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._queues: dict[int, asyncio.Queue[Event | None]] = {}
        self._next_id = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._exit: asyncio.Future[ExitInfo] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while the child exists."""
        return self._process.pid if self._process else None

    async def start(self) -> Hello:
        """Spawn the child and wait for its hello. Raises EngineGone when it ends before that."""
        loop = asyncio.get_running_loop()
        self._exit = loop.create_future()
        greeting: asyncio.Queue[Event | None] = asyncio.Queue()
        self._queues = {0: greeting}
        self._process = await asyncio.create_subprocess_exec(
            *module_words(self.module, *self.arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            **OWN_GROUP,
            env={**CHILD_ENVIRONMENT, "PYTHONUNBUFFERED": "1", **os.environ},
        )
        self._tasks = [
            asyncio.create_task(self._read_events(), name=f"{self.module} events"),
            asyncio.create_task(self._read_log(), name=f"{self.module} log"),
        ]
        first = await greeting.get()
        if not isinstance(first, Hello):
            info = await self.wait_exit()
            last = info.log_tail[-1] if info.log_tail else info.text
            raise EngineGone(f"the engine did not start: {last}")
        if first.protocol != PROTOCOL:
            await self.close()
            raise EngineGone(f"the engine speaks protocol {first.protocol}, this program {PROTOCOL}")
        self.hello = first
        del self._queues[0]
        return first

    async def stream(self, request: Message) -> AsyncIterator[Event]:
        """Send a request and yield its events, the final one included. Raises EngineGone when the child ends first."""
        self._next_id += 1
        request.id = self._next_id
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._queues[request.id] = queue
        try:
            self._send(request)
            while True:
                event = await queue.get()
                if event is None:
                    raise EngineGone(f"the engine {(await self.wait_exit()).text}")
                yield event
                if isinstance(event, FINAL_EVENTS):
                    return
        finally:
            self._queues.pop(request.id, None)

    async def ask(self, request: Message) -> Event:
        """The final event of a request. Raises EngineFailed when it is `Failed`, EngineGone when the child ends."""
        last: Event | None = None
        async for event in self.stream(request):
            last = event
        if isinstance(last, Failed):
            raise EngineFailed(last.kind, last.text)
        assert last is not None
        return last

    async def cancel(self, request: Message) -> None:
        """Ask the child to stop a request; its stream ends with `Stopped`, or with its result if that was faster."""
        self._next_id += 1
        with contextlib.suppress(EngineGone):
            self._send(Cancel(id=self._next_id, target=request.id))

    async def wait_exit(self) -> ExitInfo:
        """Wait until the child has ended."""
        assert self._exit is not None, "the child was never started"
        return await asyncio.shield(self._exit)

    async def close(self) -> None:
        """Let the child end by closing its stdin; kill its group if it does not within two seconds."""
        process = self._process
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        await self.end_within(2.0)

    async def end_within(self, seconds: float) -> bool:
        """Whether the child ended by itself within `seconds`; if not, its group is killed, and has ended."""
        try:
            await asyncio.wait_for(self.wait_exit(), seconds)
            return True
        except TimeoutError:
            self.end_group(at_once=True)
            await self.wait_exit()
            return False

    def end_group(self, *, at_once: bool) -> None:
        """End the child and everything it started; `at_once` does not ask them to."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                end_group(self._process.pid, at_once=at_once)

    def _send(self, request: Message) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing() or process.returncode is not None:
            raise EngineGone("the engine is not running")
        process.stdin.write(encode(request))

    async def _read_events(self) -> None:
        process = self._process
        assert process is not None and process.stdout is not None
        try:
            while line := await process.stdout.readline():
                try:
                    event = decode_event(line)
                except msgspec.DecodeError as error:
                    self.log.append(f"unreadable line from the engine: {error}")
                    ended = unreadable(line, error)
                    if ended is None:
                        continue
                    event = ended
                queue = self._queues.get(event.id)
                if queue is not None:
                    queue.put_nowait(event)
        except (ValueError, OSError) as error:
            self.log.append(f"the engine's output broke off: {error}")
            self.end_group(at_once=True)
        code = await process.wait()
        if process.stdin is not None:
            process.stdin.close()  # else the pipe outlives the event loop
            with contextlib.suppress(OSError):
                await process.stdin.wait_closed()
        await self._tasks[1]
        if self._exit is not None and not self._exit.done():
            self._exit.set_result(ExitInfo.of(code, self.log))
        for queue in self._queues.values():
            queue.put_nowait(None)

    async def _read_log(self) -> None:
        process = self._process
        assert process is not None and process.stderr is not None
        with contextlib.suppress(ValueError, OSError):
            while line := await process.stderr.readline():
                self.log.append(line.decode(errors="replace").rstrip())
