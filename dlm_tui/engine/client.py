"""The screen's side of the engine child."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

from dlm_tui.engine.process import ChildProcess, EngineFailed, EngineGone, ExitInfo
from dlm_tui.engine.protocol import FINAL_EVENTS, Event, Hello, Message

__all__ = ["FINAL_EVENTS", "Engine", "EngineClient", "EngineFailed", "EngineGone", "ExitInfo"]


class Engine(Protocol):
    """What the screen needs of an engine; the tests put a recorded one in its place."""

    hello: Hello | None
    log: deque[str]

    async def start(self) -> Hello:
        """Start the engine and wait for its hello."""

    def stream(self, request: Message) -> AsyncIterator[Event]:
        """Send a request and yield its events, the final one included."""

    async def ask(self, request: Message) -> Event:
        """The final event of a request; raises EngineFailed or EngineGone."""

    async def cancel(self, request: Message) -> None:
        """Ask for a running request to be stopped."""

    async def wait_exit(self) -> ExitInfo:
        """Wait until the engine has ended."""

    async def close(self) -> None:
        """End the engine."""


class EngineClient(ChildProcess):
    """The engine child: base, adapters and gate resident, latest-wins routing."""

    def __init__(self, threads: int | None = None):
        """`threads`: compute threads of the child; None lets it choose."""
        super().__init__("dlm_tui.engine.server", [] if threads is None else ["--threads", str(threads)])
