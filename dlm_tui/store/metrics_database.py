"""The database that metrics go to: one connection, transactions, and a new file where the old one is damaged."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlm_tui.store.errors import MetricsError, StoreError
from dlm_tui.store.layout import Store
from dlm_tui.store.locks import named_lock
from dlm_tui.store.metrics_schema import ADDITIVE_TABLES, SHARED_TABLES
from dlm_tui.store.sqlite import is_damage, open_for_writing, set_aside

Statement = tuple[str, Sequence[Any]]
_SET_ASIDE_SECONDS = 10.0
_log = logging.getLogger(__name__)


class MetricsDatabase:
    """`begun` are the rows that begin this writer's runs: a new database needs them before anything else of a run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection: sqlite3.Connection | None = None
        self.begun: dict[int, list[Statement]] = {}

    def transact(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Run `work` in one transaction; a damaged database is replaced once, and the work done on the new one.

        Raises MetricsError.
        """
        before = _inode(self._store.metrics_path)
        try:
            try:
                self._attempt(work)
            except (sqlite3.Error, OSError) as error:
                if not self._unusable(error):
                    raise
                self._replace(before, error)
                self._attempt(work)
        except (sqlite3.Error, OSError, StoreError) as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the connection; SQLite folds its WAL in. Raises MetricsError."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.close()
            except sqlite3.Error as error:
                raise self._failure(error) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_for_writing(self._store.metrics_path, SHARED_TABLES + ADDITIVE_TABLES)
        return self._connection

    def _attempt(self, work: Callable[[sqlite3.Connection], None]) -> None:
        connection = self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _unusable(self, error: Exception) -> bool:
        path = self._store.metrics_path
        return is_damage(error) or (path.is_file() and not os.access(path, os.R_OK | os.W_OK))

    def _replace(self, before: int | None, error: Exception) -> None:
        path = self._store.metrics_path
        with contextlib.suppress(MetricsError):
            self.close()
        with named_lock(self._store, "metrics", _SET_ASIDE_SECONDS):
            # Another writer may have replaced it while this one waited: the new one is not to be moved.
            if _inode(path) == before:
                aside = set_aside(path)
                _log.warning("%s is damaged (%s): it is kept as %s, and a new one begins", path, error, aside.name)
            connection = self._open()
            for rows in self.begun.values():
                with contextlib.suppress(sqlite3.IntegrityError):
                    run_all(connection, rows)

    def _failure(self, error: Exception) -> MetricsError:
        return MetricsError(f"{self._store.metrics_path} cannot be written: {error}.")


def run_all(connection: sqlite3.Connection, statements: Sequence[Statement]) -> None:
    """Execute each statement with its values."""
    for sql, values in statements:
        connection.execute(sql, values)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
