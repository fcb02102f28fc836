"""What earlier scans found in files, kept on disk, so that unchanged files are not read again."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from dlm_tui.document.sources.reading import Fingerprint
from dlm_tui.document.sources.scan import Outcome, TextFacts

_VERSION = 1
_OUTCOMES = frozenset(get_args(Outcome))
# A file that was written this recently may be written again without its times changing.
_SETTLED_NS = 50_000_000
_TABLE = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB NOT NULL, label TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
    outcome TEXT NOT NULL, section_id TEXT NOT NULL, content_sha256 TEXT NOT NULL,
    content_bytes INTEGER NOT NULL, raw_bytes INTEGER NOT NULL,
    PRIMARY KEY (path, label)
) WITHOUT ROWID
"""

_Key = tuple[str, str]
_Entry = tuple[Fingerprint, TextFacts | Outcome]


class FileMemory:
    """A table of fingerprints and findings. Losing it costs time, nothing else, so a damaged one is started anew.

    `read` counts the files that had to be read since it was opened.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[_Key, _Entry] = {}
        self._seen: dict[_Key, _Entry] = {}
        self._changed = False
        self.read = 0
        if path is not None and path.is_file():
            with contextlib.suppress(sqlite3.Error, ValueError, OSError):
                self._known = dict(_load(path))

    def recall(self, path: str, label: str, fingerprint: Fingerprint) -> TextFacts | Outcome | None:
        """What the file was found to be; None unless size, times and inode are what they were."""
        entry = self._known.get((path, label))
        if entry is None or entry[0] != fingerprint:
            return None
        self._seen[path, label] = entry
        return entry[1]

    def keep(self, path: str, label: str, fingerprint: Fingerprint, found: TextFacts | Outcome) -> None:
        """Remember a file that was read, if a later change is sure to show in its times."""
        self.read += 1
        if time.time_ns() - max(fingerprint.mtime_ns, fingerprint.ctime_ns) > _SETTLED_NS:
            self._seen[path, label] = fingerprint, found
            self._changed = True

    def save(self) -> None:
        """After a whole pass: forget what was not met, and write the rest. A disk that refuses is no failure."""
        changed = self._changed or len(self._seen) != len(self._known)
        self._known, self._seen, self._changed = self._seen, {}, False
        if self._path is not None and changed:
            with contextlib.suppress(sqlite3.Error, OSError):
                _store(self._path, self._known)


def _load(path: Path) -> Iterator[tuple[_Key, _Entry]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            return
        for name, label, size, mtime, ctime, inode, outcome, section, digest, content, raw in connection.execute(
            "SELECT * FROM files"
        ):
            if outcome not in _OUTCOMES:
                raise ValueError(outcome)
            facts = TextFacts(section, digest, content, raw)
            found: TextFacts | Outcome = facts if outcome == "ingested" else outcome
            yield (os.fsdecode(name), label), (Fingerprint(size, mtime, ctime, inode), found)


def _store(path: Path, known: dict[_Key, _Entry]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_rows(path, known)
    except sqlite3.OperationalError:
        raise  # somebody else writes it just now: theirs is as good
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        _write_rows(path, known)


def _write_rows(path: Path, known: dict[_Key, _Entry]) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(_TABLE)
        connection.execute("DELETE FROM files")
        connection.executemany(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (_row(key, *entry) for key, entry in known.items()),
        )
        connection.execute(f"PRAGMA user_version = {_VERSION}")


def _row(key: _Key, fingerprint: Fingerprint, found: TextFacts | Outcome) -> tuple[object, ...]:
    facts = found if isinstance(found, TextFacts) else TextFacts("", "", 0, 0)
    outcome = "ingested" if isinstance(found, TextFacts) else found
    return (
        os.fsencode(key[0]),
        key[1],
        fingerprint.size,
        fingerprint.mtime_ns,
        fingerprint.ctime_ns,
        fingerprint.inode,
        outcome,
        facts.section_id,
        facts.content_sha256,
        facts.content_bytes,
        facts.raw_bytes,
    )
