"""The one way into a database file: SQLite itself.

Nothing else ever opens the database, its `-wal` or its `-shm`: POSIX drops all locks that a process has on a file as
soon as it closes *any* descriptor of it, and SQLite's locks with them.

A reader opens read-write and promises to change nothing (`query_only`): only so can SQLite recover what a killed
writer left, and the last one out takes `-wal` and `-shm` away again. Where this process may not write, the database is
opened as immutable, but an answer counts only if nobody can write there or if nothing changed meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from dlm_tui.platform import may_write, on_read_only_medium, sync_directory
from dlm_tui.small_files import file_mark

_T = TypeVar("_T")
BUSY_SECONDS = 5.0
_TRIES = 20
_PAUSE_SECONDS = 0.02
# Kernel time stamps are as coarse as a timer tick: a file touched this recently may change again unseen.
_SETTLED_NS = 20_000_000
# A WAL of this size has a header and no rows.
_WAL_HEADER_BYTES = 32
_SIDE_FILES = ("-wal", "-shm", "-journal")
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}

Fingerprint = tuple[tuple[int, int, int] | None, ...]


def fingerprint(path: Path) -> Fingerprint:
    """(inode, size, mtime in ns) of the database, its WAL and its rollback journal; None for absent."""
    return tuple(file_mark(Path(f"{path}{suffix}")) for suffix in ("", "-wal", "-journal"))


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file is malformed or no database: waiting and trying again will not help."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGE


def read_database(path: Path, query: Callable[[sqlite3.Connection], _T]) -> _T:
    """Run `query` in one transaction on the database at `path`; several statements of it see the same rows.

    Raises FileNotFoundError when there is no database, OSError when something else has its place, sqlite3.Error when
    SQLite cannot read it.
    """
    _refuse_odd(path)
    if may_write(path):
        try:
            return _ask(f"{_uri(path)}?mode=rw", query)
        except sqlite3.OperationalError as error:
            if not path.exists():
                raise FileNotFoundError(path) from error
            if "no such" in str(error) or error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                raise
            # A full disk has no room for the side files; the main file can still be read as it is.
            try:
                return _read_unwritable(path, query)
            except (sqlite3.Error, OSError):
                raise error from None
    return _read_unwritable(path, query)


def open_for_writing(path: Path, schema: str) -> sqlite3.Connection:
    """A connection in autocommit and WAL mode with the tables of `schema`. Raises sqlite3.Error, OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        _refuse_odd(path)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


def problems_of(path: Path) -> list[str]:
    """What SQLite's integrity check finds, at most ten sentences; [] for a sound or absent database."""
    try:
        rows = read_database(path, lambda connection: connection.execute("PRAGMA integrity_check(10)").fetchall())
    except FileNotFoundError:
        return []
    except sqlite3.Error as error:
        return [str(error)]
    except OSError as error:
        return [error.strerror or str(error)]
    found = [str(row[0]) for row in rows]
    return [] if found == ["ok"] else found


def set_aside(path: Path) -> Path:
    """Give a damaged database and its side files another name, and return it. Raises OSError.

    The side files go first: a WAL that stayed behind would be read into the next database.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    number = 0
    while True:
        mark = f"{moment}-{number}" if number else moment
        aside = path.with_name(f"{path.stem}.damaged-{mark}{path.suffix}")
        if not os.path.lexists(aside) and not os.path.lexists(f"{aside}-wal"):
            break
        number += 1
    for suffix in (*_SIDE_FILES, ""):
        side = Path(f"{path}{suffix}")
        if os.path.lexists(side):
            side.replace(f"{aside}{suffix}")
    sync_directory(path.parent)
    return aside


def _refuse_odd(path: Path) -> None:
    """Raises FileNotFoundError where nothing is, OSError for what is no plain file, which SQLite has no words for."""
    try:
        mode = path.stat().st_mode
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "it is a link that leads round in a circle; move it away", str(path)) from error
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder and no database; move it away", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a plain file; move it away", str(path))


def _read_unwritable(path: Path, query: Callable[[sqlite3.Connection], _T]) -> _T:
    for _ in range(_TRIES):
        before = fingerprint(path)
        if before[0] is None:
            raise FileNotFoundError(path)
        if (before[1] is not None and before[1][1] > _WAL_HEADER_BYTES) or (before[2] is not None and before[2][1]):
            return _ask(f"{_uri(path)}?mode=ro", query)
        answer = _ask(f"{_uri(path)}?mode=ro&immutable=1", query)
        if on_read_only_medium(path) or (fingerprint(path) == before and _settled(before)):
            return answer
        time.sleep(_PAUSE_SECONDS)
    raise sqlite3.OperationalError("it changes faster than it can be read")


def _ask(uri: str, query: Callable[[sqlite3.Connection], _T]) -> _T:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.execute("BEGIN")
        return query(connection)
    finally:
        connection.close()


def _settled(found: Fingerprint) -> bool:
    newest = max(entry[2] for entry in found if entry is not None)
    return abs(time.time_ns() - newest) > _SETTLED_NS or newest > time.time_ns()


def _uri(path: Path) -> str:
    return "file:" + quote(str(path.absolute()).encode("utf-8", "surrogateescape"))
