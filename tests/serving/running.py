"""A real server on a free loopback port, in a thread of the test process, and raw requests to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import uvicorn

from dlm_tui.serving.api import Recorder
from dlm_tui.serving.backend import Backend
from dlm_tui.serving.security import Policy
from dlm_tui.serving.server import PatientProtocol, listen, server
from dlm_tui.serving.views import Mixes, no_mixes

PATIENCE = 60.0


class Running:
    """A server that takes requests."""

    def __init__(self, backend: Any, port: int, built: uvicorn.Server, loop: asyncio.AbstractEventLoop) -> None:
        self.backend = backend
        self.port = port
        self.built = built
        self.loop = loop
        self.url = f"http://127.0.0.1:{port}"
        self._client: openai.OpenAI | None = None

    def client(self, **options: Any) -> openai.OpenAI:
        """The package that people use, without retries, so that what is refused is seen; one for all threads."""
        if not options and self._client is not None:
            return self._client
        given = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": PATIENCE, **options}
        made = openai.OpenAI(**given)
        if not options:
            self._client = made
        return made

    def raw(self, head: str, body: bytes = b"", *, timeout: float = PATIENCE) -> tuple[int, dict[str, str], bytes]:
        """Send a request as it is written, the Host header filled in; status, headers, and all that came back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(head.replace("\n", "\r\n").replace("HOST", f"127.0.0.1:{self.port}").encode() + body)
            return read_answer(connection)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
        """A JSON request; status, headers, and the answer as JSON where it is JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Host": "HOST", "Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        lines = "".join(f"{name}: {value}\n" for name, value in given.items())
        status, found, answer = self.raw(f"POST {path} HTTP/1.1\n{lines}Connection: close\n\n", data)
        with contextlib.suppress(ValueError):
            return status, found, json.loads(answer)
        return status, found, answer

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        given = {"Host": "HOST", **headers}
        lines = "".join(f"{name}: {value}\n" for name, value in given.items())
        return self.raw(f"GET {path} HTTP/1.1\n{lines}Connection: close\n\n")


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Everything until the server closes; chunked bodies put together."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            data += piece
    if not data:
        return 0, {}, b""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        whole = b""
        while body:
            size, _, rest = body.partition(b"\r\n")
            count = int(size, 16)
            whole += rest[:count]
            body = rest[count + 2 :]
            if not count:
                break
        body = whole
    return int(first.split()[1]), headers, body


@contextlib.contextmanager
def serving(
    backend: Backend,
    *,
    recorder: Recorder | None = None,
    mixes: Callable[[], Mixes] = no_mixes,
    protocol: type[PatientProtocol] = PatientProtocol,
    **policy: Any,
) -> Iterator[Running]:
    """Serve until the block ends; the backend is closed with it."""
    connections = policy.pop("connections", 64)
    bound = listen("127.0.0.1", 0)
    port = bound.getsockname()[1]
    built = server(
        backend,
        Policy("127.0.0.1", port, **policy),
        recorder=recorder,
        mixes=mixes,
        connections=connections,
        protocol=protocol,
    )
    ended: list[BaseException] = []

    loops: list[asyncio.AbstractEventLoop] = []

    async def noted() -> None:
        loops.append(asyncio.get_running_loop())
        await built.serve(sockets=[bound])

    def main() -> None:
        try:
            asyncio.run(noted())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    until(lambda: built.started or bool(ended) or not thread.is_alive())
    assert built.started, ended
    try:
        yield Running(backend, port, built, loops[0])
    finally:
        built.should_exit = True
        backend.close()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not end"


def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for a condition that another thread makes true; fails with a reason when it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
