"""Records in a database of ours alone, bounded in bytes: the oldest go first.

Every call opens it anew, so that any number of processes may keep and find records at the same time. A damaged one has
no records, and the next write sets it aside and begins a new one.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from dlm_tui.store.errors import StoreError
from dlm_tui.store.locks import file_lock
from dlm_tui.store.replaceable import ReplaceableDatabase
from dlm_tui.store.sqlite import is_damage, read_database
from dlm_tui.system_errors import database_reason

LIMIT_BYTES = 64 << 20
"""What all records of a database may take, unless told otherwise."""
_SET_ASIDE_SECONDS = 10.0
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class KeptRecords:
    """The records of `table`, each with its number `key` and its size `bytes`, in the database at `path`.

    `one` is what a record is called in a sentence. Every method raises `error` for a database that is there and cannot
    be used now (locked for five seconds, no permission, a full disk). Safe to use from any thread.
    """

    def __init__(
        self, path: Path, schema: str, *, table: str, key: str, limit: int, one: str, error: type[StoreError]
    ) -> None:
        self.path, self._schema, self._table, self._key = path, schema, table, key
        self._limit, self._one, self._error = limit, one, error

    def read(self, query: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """What the query finds; None where nothing was kept yet, or the database is damaged."""
        try:
            return read_database(self.path, query)
        except FileNotFoundError:
            return None
        except (sqlite3.Error, OSError) as error:
            if is_damage(error):
                anew = f"the next {self._one} that is kept begins a new one"
                _log.warning("%s is damaged (%s): %s", self.path, error, anew)
                return None
            if "no such table" in str(error):
                return None
            raise self._error(f"{self.path} cannot be read: {database_reason(error, self.path)}.") from error

    def write(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` in one transaction; it may run twice, where the database is begun anew for it."""
        database = ReplaceableDatabase(
            self.path,
            self._schema,
            lambda: file_lock(self.path.with_name(f"{self.path.name}.lock"), _SET_ASIDE_SECONDS),
        )
        try:
            try:
                database.transact(work)
            finally:
                database.close()
        except (sqlite3.Error, OSError, StoreError) as error:
            raise self._error(f"{self.path} cannot be written: {database_reason(error, self.path)}.") from error

    def evict(self, connection: sqlite3.Connection, keeping: int) -> None:
        """Remove the oldest records beyond the limit, but none of the newest `keeping`."""
        rows = connection.execute(f"SELECT {self._key}, bytes FROM {self._table} ORDER BY {self._key}").fetchall()
        excess = sum(size for _, size in rows) - self._limit
        last = 0
        for number, size in rows[: len(rows) - keeping]:
            if excess <= 0:
                break
            excess -= size
            last = number
        connection.execute(f"DELETE FROM {self._table} WHERE {self._key} <= ?", (last,))


def decoded(record: bytes, kind: type[_T]) -> _T | None:
    """A record as it was kept; None for one that a later program wrote otherwise, or that is damaged."""
    try:
        return msgspec.json.decode(record, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        return None
