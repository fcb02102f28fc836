"""A database that is written to in transactions: one connection, and a new file where the old one is damaged."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from dlm_tui.store.sqlite import is_damage, open_for_writing, set_aside

_log = logging.getLogger(__name__)
Work = Callable[[sqlite3.Connection], None]


class ReplaceableDatabase:
    """`schema` makes the tables, `lock` orders the processes that would replace the file at `path`, and `begin` puts
    into a new database what it needs before anything else."""

    def __init__(
        self, path: Path, schema: str, lock: Callable[[], AbstractContextManager[None]], begin: Work = lambda _: None
    ) -> None:
        self._path, self._schema, self._lock, self._begin = path, schema, lock, begin
        self.connection: sqlite3.Connection | None = None
        self._had_folder = path.parent.is_dir()

    def transact(self, work: Work) -> None:
        """Run `work` in one transaction; a damaged database is replaced once, and the work done on the new one.

        Raises sqlite3.Error, OSError, StoreError.
        """
        before = _inode(self._path)
        try:
            self._attempt(work)
        except (sqlite3.Error, OSError) as error:
            if not self._unusable(error):
                raise
            self._replace(before, error)
            self._attempt(work)

    def close(self) -> None:
        """Close the connection; SQLite folds its WAL in. Raises sqlite3.Error."""
        if self.connection is not None:
            connection, self.connection = self.connection, None
            connection.close()

    def _open(self) -> sqlite3.Connection:
        if self.connection is None:
            if self._had_folder and not self._path.parent.is_dir():  # an empty one would take the place of what left
                raise OSError(errno.ENOENT, "its folder is gone; bring it back", str(self._path.parent))
            self.connection = open_for_writing(self._path, self._schema)
        return self.connection

    def _attempt(self, work: Work) -> None:
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
        return is_damage(error) or (self._path.is_file() and not os.access(self._path, os.R_OK | os.W_OK))

    def _replace(self, before: int | None, error: Exception) -> None:
        path = self._path
        with contextlib.suppress(sqlite3.Error):
            self.close()
        with self._lock():
            # Another writer may have replaced it while this one waited: the new one is not to be moved.
            if _inode(path) == before:
                aside = set_aside(path)
                _log.warning("%s is damaged (%s): it is kept as %s, and a new one begins", path, error, aside.name)
            self._begin(self._open())


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
