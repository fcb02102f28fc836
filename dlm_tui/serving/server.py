"""Listening: the socket, uvicorn with connections that cannot be held up, and an orderly end. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.output import say
from dlm_tui.serving import responses
from dlm_tui.serving.api import Api, Recorder
from dlm_tui.serving.backend import Backend
from dlm_tui.serving.metrics import Metrics
from dlm_tui.serving.security import Guard, Policy
from dlm_tui.serving.views import Mixes, no_mixes

HEADER_BYTES = 32 << 10
HEADER_SECONDS = 10.0
UNREAD_SECONDS = 30.0
IDLE_SECONDS = 60
CONNECTIONS = 256
GRACE_SECONDS = 4.0
"""How long answers that are being written may still take once the server is to end."""
LAST_SECONDS = 1.0
"""Time in which everybody reads why nothing more comes; a connection that then still stands is cut."""


class PatientProtocol(H11Protocol):
    """uvicorn's connection, dropped when its request line and headers do not come, when what is left of a body that was
    answered unread does not, or when its answer is not read."""

    header_seconds = HEADER_SECONDS
    unread_seconds = UNREAD_SECONDS
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    idle_since = 0.0
    """When it was made or its last answer ended, by the clock of the loop."""

    @property
    def is_idle(self) -> bool:
        """Whether no request is at work, and all that was answered is on its way."""
        return not self._is_answering and self._unread is None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        # asyncio would say nothing of the last 64 KB, and an answer that ends there would wait for its reader for good
        transport.set_write_buffer_limits(high=0)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering:
            self._disarm()
        else:  # the beginning of another request, or of a body that nobody waits for: uvicorn has dropped its own timer
            self._arm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.idle_since = self.loop.time()
        half_read = self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]
        if half_read and not self._is_answering:
            self._arm()  # and not closed at once: a client that is still sending would lose its answer

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP ends the connection; uvicorn's own words are plain text, and fail behind an answer."""
        if self._is_answering:
            self.cycle.disconnected = True  # whose answer has no place any more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = responses.error("this is no HTTP request", "invalid_request_error")
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            events = h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    @property
    def _is_answering(self) -> bool:
        """Whether a request is at work; how long its body may take is the guard's to say."""
        return self.cycle is not None and not self.cycle.response_complete

    def _arm(self) -> None:
        if self._timer is None:  # bytes that come one by one do not renew the patience
            self._timer = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EndingServer(uvicorn.Server):
    """uvicorn, whose clients are told of the end. By itself it cancels what still runs, which nobody is told."""

    def __init__(self, config: uvicorn.Config, backend: Backend) -> None:
        super().__init__(config)
        self._backend = backend

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn would send them to this process again, once it has done what they ask."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what waits, let what runs come to its end for a while, then tell and cut off the rest."""
        self._backend.refuse()
        if self.server_state.tasks:
            say(f"stopping: answers that are being written may take {GRACE_SECONDS:g} seconds more")
        ending = asyncio.create_task(self._end(GRACE_SECONDS))
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()
        if self.force_exit:  # a second Ctrl+C waits for nobody, and uvicorn then leaves out its last step
            await self._end(0)
            await self.lifespan.shutdown()

    async def _end(self, after: float) -> None:
        if await self._idle_within(after):
            return
        # in a thread: it waits for the step that is being computed
        asyncio.get_running_loop().run_in_executor(None, self._backend.close)
        if await self._idle_within(LAST_SECONDS):
            return
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await self._idle_within(LAST_SECONDS)

    async def _idle_within(self, seconds: float) -> bool:
        """Whether by then every request has come to its end, and its answer was read."""
        state = self.server_state
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while state.connections or state.tasks:
                    await asyncio.sleep(0.02)
        return not state.connections and not state.tasks


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 chooses a free one. Raises DlmTuiError when the address cannot be had."""
    if not 0 <= port <= 65535:
        raise UsageError(f"a port is between 0 and 65535, not {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DlmTuiError(f"cannot listen on {host}:{port}: {reason}") from None
    return found


def address(host: str, bound: socket.socket) -> str:
    """The URL under which this machine reaches the server."""
    port = bound.getsockname()[1]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def server(
    backend: Backend,
    policy: Policy,
    *,
    recorder: Recorder | None = None,
    mixes: Callable[[], Mixes] = no_mixes,
    connections: int = CONNECTIONS,
    protocol: type[PatientProtocol] = PatientProtocol,
) -> uvicorn.Server:
    """A server that is ready to `serve(sockets=[…])`."""

    def crowded() -> bool:
        """Idle connections give way to one that asks: nobody holds a place by asking nothing, or for health."""
        standing = built.server_state.connections
        idle = [one for one in standing if isinstance(one, PatientProtocol) and one.is_idle]
        idle.sort(key=lambda one: one.idle_since)
        for one in idle[: max(0, len(standing) - connections)]:
            one.transport.abort()
        return len(standing) - len(idle) > connections

    app = Guard(Api(backend, Metrics(), recorder, mixes).application(), policy, crowded)
    built = EndingServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",  # what a client did wrong is its own to know
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_keep_alive=IDLE_SECONDS,
        ),
        backend,
    )
    return built


def serve(built: uvicorn.Server, bound: socket.socket, backend: Backend, ready: Callable[[], Awaitable[None]]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called once requests are taken. The backend is closed at the end."""

    async def main() -> None:
        task = asyncio.create_task(built.serve(sockets=[bound]))
        while not built.started and not task.done():
            await asyncio.sleep(0.01)
        if built.started:
            await ready()
        await task

    # uvicorn ends in good order on either signal; this is for one that comes before or behind it
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGTERM, previous)
        backend.close()
