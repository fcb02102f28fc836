"""The server as a child of the screen: started, watched and stopped, its address read from what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from dlm_tui.child import module_words
from dlm_tui.engine.client import ExitInfo
from dlm_tui.errors import DlmTuiError

_GRACE_SECONDS = 8.0
_LEAVING_SECONDS = 1.0
_LINES = 50
_SAYS = "dlm-tui: "


def server_words(document: Path, home: Path, base: str | None, port: int, keep_prompts: int) -> list[str]:
    """The command that serves a document for this screen."""
    words = module_words("dlm_tui", "serve", str(document), "--home", str(home), "--port", str(port))
    words += ["--keep-prompts", str(keep_prompts), "--json", "--until-eof"]
    return [*words, *(["--base", base] if base else [])]


class ServerProcess:
    """A server that takes requests at `address`. It ends with the screen, whatever ends that."""

    def __init__(
        self, process: asyncio.subprocess.Process, address: str, lines: deque[str], reading: asyncio.Future[None]
    ) -> None:
        self._process, self._reading = process, reading
        self.address = address
        self.log = lines
        self._stopped = False

    @classmethod
    async def start(cls, words: Sequence[str]) -> ServerProcess:
        """Start it and wait until it takes requests. Raises DlmTuiError with its last sentence when it does not."""
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,  # it ends when this closes, however this process ends
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None and process.stderr is not None
        lines: deque[str] = deque(maxlen=_LINES)
        reading = asyncio.ensure_future(_read(process.stderr, lines))
        try:
            told = await process.stdout.readline()
            try:
                return cls(process, str(json.loads(told)["address"]), lines, reading)
            except (ValueError, KeyError, TypeError):
                code = await process.wait()
                await reading
                raise DlmTuiError(_end_words(code, lines, served=False)) from None
        except BaseException:
            _kill(process)
            _let_go(process)
            raise

    async def ended(self) -> str | None:
        """Wait for its end: None when it was stopped, else its last sentence, or how it ended."""
        try:
            code = await self._process.wait()
            await self._reading  # its last sentence may still be on the way
        except BaseException:
            # the screen is being left: it is told to end and goes on doing so by itself
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                self._process.terminate()
                await asyncio.wait_for(self._process.wait(), _LEAVING_SECONDS)
            raise
        finally:
            _let_go(self._process)
        return None if self._stopped or code == 0 else _end_words(code, self.log, served=True)

    async def cancel(self) -> str:
        """Stop it; what is being answered gets some seconds to end. Says what it took."""
        if self._process.returncode is not None:
            return "already over"
        self._stopped = True
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), _GRACE_SECONDS)
        except TimeoutError:
            _kill(self._process)
            return "had to be killed"
        return "stopped"


class Starting:
    """A server that does not take requests yet."""

    def __init__(self, process: asyncio.Future[ServerProcess]) -> None:
        self.process = process
        self.was_stopped = False

    async def cancel(self) -> str:
        """Stop it before it does; says what it took."""
        self.was_stopped = self.process.cancel()
        return "stopped" if self.was_stopped else "already over"


async def _read(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode("utf-8", "replace").strip())


def _end_words(code: int, lines: Sequence[str], *, served: bool) -> str:
    """How it ended: its own last sentence, whatever a library wrote behind it; by a signal nothing it said is of that.

    Before it served its last line is of its end, too; later that may be where it listens.
    """
    ended = f"the server {ExitInfo.of(code, ()).text}"
    said = [line.removeprefix(_SAYS) for line in lines if line.startswith(_SAYS)]
    if code < 0:
        return ended
    return next(iter([*said[-1:], *(() if served else reversed(lines))]), ended)


def _let_go(process: asyncio.subprocess.Process) -> None:
    """Close its standard input, which nothing else does before the loop ends."""
    if process.stdin is not None:
        process.stdin.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
