"""The engine's life as the screen sees it: started, opened, restarted when it dies. No widgets here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

from dlm_tui.app.progress import stage_words
from dlm_tui.engine.client import Engine, EngineGone, ExitInfo
from dlm_tui.engine.protocol import Event, Failed, Message, Open, Opened, Progress, Reload
from dlm_tui.errors import DlmTuiError

Phase = Literal["starting", "loading", "ready", "restarting", "failed", "closed"]
_QUICK_DEATHS = 3
_QUICK_SECONDS = 30.0


@dataclass(frozen=True)
class LinkState:
    """Where the engine stands. `text` is one sentence for a person; `progress` belongs to `loading`."""

    phase: Phase = "starting"
    text: str = ""
    progress: Progress | None = None
    opened: Opened | None = None
    device: str = ""
    log: tuple[str, ...] = ()


class EngineLink:
    """Keeps one engine running and open on a document.

    `changed` is called on the event loop whenever `state` changes. `stream` raises EngineGone while there is no engine.
    """

    def __init__(self, factory: Callable[[], Engine], request: Open, changed: Callable[[LinkState], None]) -> None:
        self._factory = factory
        self._request = request
        self._changed = changed
        self._engine: Engine | None = None
        self._restart = asyncio.Event()
        self._anew = asyncio.Event()
        self._deaths: list[float] = []
        self.state = LinkState()

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]
        self._changed(self.state)

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.state.phase == "ready"

    @property
    def engine(self) -> Engine | None:
        """The running engine."""
        return self._engine

    async def run(self) -> None:
        """Start, open, wait for the end, start again; cancel this to close."""
        try:
            while True:
                self._restart.clear()
                self._anew.clear()
                await self._one_life()
                if self.state.phase == "failed":
                    await self._restart.wait()
                    self._deaths.clear()
                    self._set(phase="starting", text="starting the engine")
        finally:
            await self._close()
            self.state = replace(self.state, phase="closed")

    async def _one_life(self) -> None:
        engine = self._engine = self._factory()
        try:
            hello = await engine.start()
            self._set(phase="loading", text="the document", device=hello.device, progress=None)
            opening, anew = asyncio.ensure_future(self._open()), asyncio.ensure_future(self._anew.wait())
            death = asyncio.ensure_future(engine.wait_exit())
            try:
                await asyncio.wait({opening, anew}, return_when=asyncio.FIRST_COMPLETED)
                if opening.done():
                    await opening
                    if self.state.phase != "failed":
                        await asyncio.wait({death, anew}, return_when=asyncio.FIRST_COMPLETED)
                if anew.done():
                    self._set(phase="starting", text="starting with another base", opened=None, progress=None)
                elif death.done():
                    self._note_death(death.result())
            finally:
                for task in (opening, anew, death):
                    task.cancel()
                await asyncio.gather(opening, anew, death, return_exceptions=True)
        except (EngineGone, OSError) as error:
            self._note_death(None, str(error))
        except DlmTuiError as error:
            self._set(phase="failed", text=str(error), log=tuple(engine.log))
        await self._close()

    async def _open(self) -> None:
        """Ask for the document; what cannot be opened is shown, and the engine is started again for another try."""
        assert self._engine is not None
        async for event in self._engine.stream(_fresh(self._request)):
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Progress():
                self._set(phase="loading", text=stage_words(event), progress=event)
            case Opened():
                self._set(phase="ready", text="", progress=None, opened=event)
            case Failed(text=text):
                self._set(phase="failed", text=text, log=tuple(self._engine.log) if self._engine else ())

    def _note_death(self, info: ExitInfo | None, text: str = "") -> None:
        if self.state.phase == "failed":
            return
        now = monotonic()
        self._deaths = [at for at in self._deaths if now - at < _QUICK_SECONDS] + [now]
        how = f"the engine {info.text}" if info else text or "the engine could not be started"
        log = tuple(info.log_tail) if info else ()
        if len(self._deaths) >= _QUICK_DEATHS:
            self._set(phase="failed", text=f"{how}; it ended {_QUICK_DEATHS} times in a row", log=log, progress=None)
        else:
            self._set(phase="restarting", text=f"{how}; starting it again", log=log, progress=None)

    def restart(self) -> None:
        """Try again after a failure."""
        self._restart.set()

    def begin_anew(self) -> None:
        """Open the document with another base: end the engine, whatever it is at, and start one."""
        self._anew.set()
        self._restart.set()

    async def reload(self) -> None:
        """Read document, adapters and gate again, keeping the base; a failure is told and the engine stays."""
        if self._engine is None:
            return
        async for event in self._engine.stream(Reload()):
            if isinstance(event, Opened):
                self._set(phase="ready", text="", opened=event)
            elif isinstance(event, Failed):
                self._set(text=event.text)

    async def stream(self, request: Message) -> AsyncIterator[Event]:
        """Events of a request; raises EngineGone when no engine is open."""
        if self._engine is None or not self.ready:
            raise EngineGone("the engine is not ready")
        events = self._engine.stream(request)
        try:
            async for event in events:
                yield event
        finally:
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    async def cancel(self, request: Message) -> None:
        """Ask the engine to stop a request; nothing happens when it is gone."""
        if self._engine is not None:
            with contextlib.suppress(EngineGone, OSError):
                await self._engine.cancel(request)

    async def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            with contextlib.suppress(Exception):
                await engine.close()


def _fresh(request: Open) -> Open:
    """A fresh request, since sending gives it an id."""
    return Open(document=request.document, home=request.home, base=request.base, dtype=request.dtype)
