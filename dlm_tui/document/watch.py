"""Noticing every save of a document, however the editor writes it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.document.document import Document, parse_bytes, read_document_bytes
from dlm_tui.errors import DlmTuiError

# Events within this many milliseconds are one save; the longest burst that is waited for.
_QUIET_MS, _BURST_MS = 15, 60
# Without events the file is still looked at this often: not every file system reports changes.
_POLL_MS = 500
_RETRY_SECONDS = 0.5
_SETTLED_NS = 50_000_000

_Signature = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Change:
    """A new state of the file: either the document, or why there is none. `at` is seconds since the epoch."""

    document: Document | None
    error: DlmTuiError | None
    at: float


async def watch_document(path: Path, known_sha256: str | None = None) -> AsyncGenerator[Change, None]:
    """Every new content of a document, until the iterator is closed.

    The folder is watched, not the file, because editors replace files; the kind of an event is never trusted, the
    file is looked at again. With `known_sha256`, the hash of what the caller has read, a save in between is reported
    at once; without it the content at the start counts as known. A broken or missing file is one item with an error;
    the last good document stays with the caller.
    """
    watched = _Watched(path, known_sha256)
    if (change := await asyncio.to_thread(watched.look)) is not None:
        yield change
    while True:
        try:
            async with aclosing(_folder_events(path)) as events:
                async for _ in events:
                    if (change := await asyncio.to_thread(watched.look)) is not None:
                        yield change
        except OSError:
            # The folder itself is gone for now; `look` says so for the file.
            if (change := await asyncio.to_thread(watched.look)) is not None:
                yield change
        await asyncio.sleep(_RETRY_SECONDS)


async def _folder_events(path: Path) -> AsyncGenerator[None, None]:
    from watchfiles import awatch

    folders = {path.absolute().parent, path.resolve().parent}
    events = awatch(
        *folders,
        watch_filter=None,
        debounce=_BURST_MS,
        step=_QUIET_MS,
        rust_timeout=_POLL_MS,
        yield_on_timeout=True,
        recursive=False,
        ignore_permission_denied=True,
    )
    async with aclosing(events):
        async for _ in events:
            yield
            if not all(folder.is_dir() for folder in folders):
                raise FileNotFoundError


class _Watched:
    """The last state of the file that was reported."""

    def __init__(self, path: Path, known_sha256: str | None) -> None:
        self._path = path
        self._signature: _Signature = None
        self._state = known_sha256
        if known_sha256 is None:
            self._signature = _signature(path)
            self._state = self._read()[0]

    def look(self) -> Change | None:
        """The change since the last look, or None."""
        signature = _signature(self._path)
        if signature is not None and signature == self._signature:
            return None
        state, data, error = self._read()
        self._signature = signature if _settled(signature) else None
        if state == self._state:
            return None
        self._state = state
        if data is None:
            return Change(None, error, time.time())
        try:
            return Change(parse_bytes(data, self._path), None, time.time())
        except DlmTuiError as broken:
            return Change(None, broken, time.time())

    def _read(self) -> tuple[str, bytes | None, DlmTuiError | None]:
        try:
            data = read_document_bytes(self._path)
        except DlmTuiError as error:
            return f"unreadable: {error}", None, error
        return hashlib.sha256(data).hexdigest(), data, None


def _settled(signature: _Signature) -> bool:
    """Whether a later write is sure to get another time stamp; file systems count in steps of milliseconds."""
    return signature is not None and time.time_ns() - signature[3] > _SETTLED_NS


def _signature(path: Path) -> _Signature:
    try:
        info = path.stat()
    except (OSError, ValueError):
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino, info.st_ctime_ns
