"""Reading a database without leaving a trace of it.

SQLite's own read-only mode creates `-wal` and `-shm` files for a WAL database that has none, and rewrites a
`-shm` that it may write. So the way in depends on what lies there:

* no WAL content: the main file is complete; opened as immutable, and the answer is kept only if the file did
  not change meanwhile;
* WAL content and a `-shm`: a writer is active or crashed; `readonly_shm` reads live rows and changes nothing;
* WAL content without `-shm`, or what the two ways cannot open: a private copy of database and WAL is read;
* a writer so busy that no copy holds still: the ordinary read-only mode, which at worst touches its `-shm`.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from dlm_tui.store.errors import MetricsError

_T = TypeVar("_T")
_TRIES = 20
_COPY_FROM = 2
_ORDINARY_FROM = 12
_PAUSE_SECONDS = 0.02
# Kernel time stamps are as coarse as a timer tick: a file touched this recently may change again unseen.
_SETTLED_NS = 20_000_000
_WAL_HEADER = b"\x02\x02"

Fingerprint = tuple[tuple[int, int, int] | None, ...]


def fingerprint(path: Path) -> Fingerprint:
    """(inode, size, mtime in ns) of the database, its WAL and its rollback journal; None for absent."""
    return tuple(_stat(Path(f"{path}{suffix}")) for suffix in ("", "-wal", "-journal"))


def read_database(path: Path, query: Callable[[sqlite3.Connection], _T]) -> _T:
    """Run `query` on a consistent view of the database at `path`, creating and changing nothing beside it.

    Raises FileNotFoundError when there is no database, MetricsError when it is not readable as one.
    """
    failure: Exception | None = None
    for attempt in range(_TRIES):
        before = fingerprint(path)
        if before[0] is None:
            raise FileNotFoundError(path)
        if before[0][1] == 0:
            return _ask(":memory:", query)
        try:
            answer, live = _ask_as_found(path, before, query, attempt)
        except (sqlite3.OperationalError, sqlite3.DatabaseError, OSError) as error:
            failure = error
        else:
            if live or (fingerprint(path) == before and _settled(before)):
                return answer
            failure = None
        if failure is not None and attempt > _COPY_FROM and fingerprint(path) == before:
            break
        time.sleep(_PAUSE_SECONDS)
    reason = failure or "it changes faster than it can be read"
    raise MetricsError(f"{path} cannot be read: {reason}.") from failure


def _ask_as_found(
    path: Path, found: Fingerprint, query: Callable[[sqlite3.Connection], _T], attempt: int
) -> tuple[_T, bool]:
    """The answer, and whether SQLite's own locks made it consistent."""
    wal_has_content = found[1] is not None and found[1][1] > 0
    has_index = _stat(Path(f"{path}-shm")) is not None
    if attempt >= _ORDINARY_FROM and wal_has_content and has_index:
        return _ask(f"{_uri(path)}?mode=ro", query), True
    if attempt >= _COPY_FROM:
        return _ask_copy(path, query), False
    with path.open("rb") as handle:
        handle.seek(18)
        is_wal = handle.read(2) == _WAL_HEADER
    if found[2] is not None and found[2][1] > 0:
        return _ask_copy(path, query), False
    if not is_wal:
        return _ask(f"{_uri(path)}?mode=ro", query), True
    if not wal_has_content:
        return _ask(f"{_uri(path)}?mode=ro&immutable=1", query), False
    if has_index:
        return _ask(f"{_uri(path)}?mode=ro&readonly_shm=1", query), True
    return _ask_copy(path, query), False


def _ask(uri: str, query: Callable[[sqlite3.Connection], _T]) -> _T:
    connection = sqlite3.connect(uri, uri=True, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        # One transaction: several statements of one question see the same rows.
        connection.execute("BEGIN")
        return query(connection)
    finally:
        connection.close()


def _ask_copy(path: Path, query: Callable[[sqlite3.Connection], _T]) -> _T:
    with tempfile.TemporaryDirectory(prefix="dlm-tui-") as folder:
        copy = Path(folder, "metrics.sqlite")
        for suffix in ("", "-wal", "-journal"):
            source = Path(f"{path}{suffix}")
            if source.is_file():
                shutil.copyfile(source, f"{copy}{suffix}")
        return _ask(str(copy), query)


def _settled(found: Fingerprint) -> bool:
    newest = max(entry[2] for entry in found if entry is not None)
    return abs(time.time_ns() - newest) > _SETTLED_NS or newest > time.time_ns()


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _uri(path: Path) -> str:
    return "file:" + quote(str(path.absolute()))
