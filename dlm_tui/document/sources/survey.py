"""What the sources of a document hold now, without their texts, and noticing when that changes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.document.document import Document
from dlm_tui.document.errors import DirectiveError
from dlm_tui.document.side_file import SideFileError, side_file_path, source_bindings
from dlm_tui.document.sources.memory import FileMemory
from dlm_tui.document.sources.roots import base_folder, resolve_below
from dlm_tui.document.sources.scan import SourceCounts, SourceScan
from dlm_tui.errors import Cancelled

# Called in the scanning thread with files looked at and bytes taken in so far.
OnFiles = Callable[[int, int], None]

_REPORT_SECONDS = 0.1
# Events within this many milliseconds are one change; the longest burst that is waited for.
_QUIET_MS, _BURST_MS = 100, 1000
# Without events the side file is still looked at this often, and the sources that often.
_POLL_MS, _RESCAN_SECONDS, _RETRY_SECONDS = 500, 30.0, 5.0


@dataclass(frozen=True, slots=True)
class SurveyedFile:
    """A file that is taken in: which source it belongs to, its path below it, and what its section is."""

    source: str
    label: str
    path: str
    adapter: str | None
    section_id: str
    size: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The outcome of one pass; `error` says why there was none, and then the rest is empty."""

    files: tuple[SurveyedFile, ...] = ()
    counts: tuple[SourceCounts, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def per_adapter(self) -> Counter[str | None]:
        """Files per adapter that a folder binds them to; None for those that train all."""
        return Counter(file.adapter for file in self.files)

    def news(self, trained: Collection[str]) -> tuple[int, int]:
        """How many sections a training would take in for the first time, and how many files that is of all."""
        known = set(trained)
        return sum(file.section_id not in known for file in self.files), len(self.files)


def survey_sources(
    document: Document,
    memory: FileMemory | None = None,
    on_files: OnFiles | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Survey:
    """Look at every file of the sources; unchanged ones that `memory` knows are not read.

    Raises Cancelled as soon as `stopped` says so.
    """
    try:
        scan = SourceScan(document, bindings=source_bindings(document), memory=memory)
    except (DirectiveError, SideFileError) as error:
        return Survey(error=str(error))
    files: list[SurveyedFile] = []
    size, told = 0, time.monotonic()
    for looked_at, outcome in enumerate(scan, 1):
        if (section := outcome.section) is not None:
            origin = section.origin
            facts = section.facts
            size += facts.raw_bytes
            files.append(
                SurveyedFile(
                    origin.source, origin.label, section.path, section.adapter, facts.section_id, facts.raw_bytes
                )
            )
        if looked_at % 64 == 0:
            if stopped():
                raise Cancelled("the scan of the sources was stopped")
            if on_files is not None and time.monotonic() - told > _REPORT_SECONDS:
                told = time.monotonic()
                on_files(looked_at, size)
    if memory is not None:
        memory.save()
    return Survey(tuple(files), tuple(scan.counts), tuple(scan.warnings))


async def watch_sources(
    document: Document, memory: FileMemory, on_files: OnFiles | None = None
) -> AsyncGenerator[Survey, None]:
    """A survey at once, and one after every change of a source file or the side file, until the iterator is closed.

    Closing it also stops a pass that is under way. Ends at once for a document without sources.
    """
    if not document.training.sources:
        return
    stop = False

    def look() -> Survey:
        return survey_sources(document, memory, on_files, lambda: stop)

    last: Survey | None = None
    try:
        while True:
            if (survey := await asyncio.to_thread(look)) != last:
                last = survey
                yield survey
            async with aclosing(_wakes(document)) as wakes:
                async for _ in wakes:
                    if (survey := await asyncio.to_thread(look)) != last:
                        last = survey
                        yield survey
    finally:
        stop = True


async def _wakes(document: Document) -> AsyncGenerator[None, None]:
    """An item whenever something below the sources, or the side file, may have changed.

    Ends when the folders to watch are not what they were.
    """
    folders, single = _places(document)
    before, since, first = _signatures(single), time.monotonic(), True
    try:
        async with aclosing(_folder_events(folders)) as events:
            async for changed in events:
                # What changed before the watch began gave no event, and not every file system gives any.
                due = first or time.monotonic() - since > _RESCAN_SECONDS
                if changed or due or _signatures(single) != before:
                    before, since, first = _signatures(single), time.monotonic(), False
                    yield
                if _places(document) != (folders, single):
                    return
    except (OSError, RuntimeError):
        # Too many folders to watch, or one that vanished.
        await asyncio.sleep(_RETRY_SECONDS)


async def _folder_events(folders: Collection[Path]) -> AsyncGenerator[bool, None]:
    """True when something happened below the folders, False every now and then when nothing did."""
    if not folders:
        while True:
            await asyncio.sleep(_POLL_MS / 1000)
            yield False
    from watchfiles import awatch

    events = awatch(
        *folders,
        watch_filter=None,
        debounce=_BURST_MS,
        step=_QUIET_MS,
        rust_timeout=_POLL_MS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    )
    async with aclosing(events):
        async for changes in events:
            yield bool(changes)


def _places(document: Document) -> tuple[set[Path], set[Path]]:
    """The folders to watch, and the single files to look at: sources that are files or missing, the side file."""
    document_path = document.path or Path()
    base = base_folder(document_path)
    folders: set[Path] = set()
    single = {side_file_path(document_path)}
    for source in document.training.sources or ():
        try:
            root = resolve_below(source.path, base)[1]
        except DirectiveError:
            continue
        (folders if root.is_dir() else single).add(root)
    return folders, single


def _signatures(paths: Collection[Path]) -> dict[Path, tuple[int, int, int] | None]:
    return {path: _signature(path) for path in paths}


def _signature(path: Path) -> tuple[int, int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino
