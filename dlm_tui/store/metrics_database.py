"""The database that metrics go to."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from dlm_tui.store.errors import MetricsError, StoreError
from dlm_tui.store.layout import Store
from dlm_tui.store.locks import named_lock
from dlm_tui.store.metrics_schema import ADDITIVE_TABLES, SHARED_TABLES
from dlm_tui.store.replaceable import ReplaceableDatabase
from dlm_tui.system_errors import database_reason

Statement = tuple[str, Sequence[Any]]
_SET_ASIDE_SECONDS = 10.0


class MetricsDatabase:
    """`begun` are the rows that begin this writer's runs: a new database needs them before anything else of a run."""

    def __init__(self, store: Store) -> None:
        self._path = store.metrics_path
        self._database = ReplaceableDatabase(
            self._path,
            SHARED_TABLES + ADDITIVE_TABLES,
            lambda: named_lock(store, "metrics", _SET_ASIDE_SECONDS),
            self._begin_runs,
        )
        self.begun: dict[int, list[Statement]] = {}

    def transact(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` in one transaction; a damaged database is replaced once, and the work done on the new one.

        Raises MetricsError.
        """
        try:
            self._database.transact(work)
        except (sqlite3.Error, OSError, StoreError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the connection; SQLite folds its WAL in. Raises MetricsError."""
        try:
            self._database.close()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _begin_runs(self, connection: sqlite3.Connection) -> None:
        for rows in self.begun.values():
            with contextlib.suppress(sqlite3.IntegrityError):
                run_all(connection, rows)

    def _failure(self, error: Exception) -> MetricsError:
        return MetricsError(f"{self._path} cannot be written: {database_reason(error, self._path)}.")


def run_all(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    """Execute each statement with its values."""
    for sql, values in statements:
        connection.execute(sql, values)
