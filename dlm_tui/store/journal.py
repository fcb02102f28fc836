"""Several files of a store that change together: all of them or none, whenever the process is killed.

The new files are written beside the old ones and flushed; then one record, `.journal.tui`, names them: from that moment
the change counts. Renaming follows, and the record goes. Whoever opens the store next and finds a record finishes it;
where a new file is missing or damaged, the files that were already renamed are put back. A reader that may not write
reads the new files where they lie. The record has a hash of itself: one that is not what was written is set aside.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dlm_tui.files import (
    json_bytes,
    put_in_place,
    remove,
    set_aside,
    sha256_file,
    sync_tree,
    write_atomic,
    write_scratch,
)
from dlm_tui.platform import sync_directory
from dlm_tui.small_files import read_file
from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import Store
from dlm_tui.store.own_hash import OWN_HASH, own_sha256
from dlm_tui.system_errors import cause

NAME = ".journal.tui"
_LIMIT = 64 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """`sha256` is of the new file or folder; `before` is what a file held, in base64, or the hash of the folder that
    was there, None where there was nothing."""

    kind: Literal["file", "folder"]
    path: Path
    staged: Path
    sha256: str
    before: str | None = None


@dataclass(frozen=True)
class _Record:
    """`proved` is whether a hash says that it is what was written; older ones have none."""

    entries: list[_Entry]
    proved: bool


class Change:
    """What is to change together; nothing is visible before `change` ends."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: list[_Entry] = []

    def write(self, path: Path, data: bytes) -> None:
        """Give the file at `path` new content. Raises OSError; nothing has changed then."""
        path.parent.mkdir(parents=True, exist_ok=True)
        before = base64.b64encode(path.read_bytes()).decode("ascii") if path.is_file() else None
        staged = write_scratch(path, data)
        self._entries.append(_Entry("file", path, staged, hashlib.sha256(data).hexdigest(), before))

    def replace_folder(self, path: Path, scratch: Path) -> None:
        """Put the finished folder `scratch`, a sibling of `path`, in the place of `path`."""
        sync_tree(scratch)
        before = folder_sha256(path) if path.is_dir() else None
        self._entries.append(_Entry("folder", path, scratch, folder_sha256(scratch), before))

    def commit(self) -> None:
        """Make the change; after an OSError from before the record nothing has changed."""
        record = self._store.root / NAME
        # Folders last: what a folder held is gone as soon as it is replaced, a file can be put back.
        self._entries.sort(key=lambda entry: entry.kind == "folder")
        try:
            for folder in {entry.path.parent for entry in self._entries}:
                sync_directory(folder)
            write_atomic(record, json_bytes(_as_json(self._store, self._entries)))
        except BaseException:
            self.discard()
            raise
        try:
            for entry in self._entries:
                _apply(entry)
        except OSError as error:
            raise StoreError(
                f"{error.filename or self._store.root} cannot be replaced ({cause(error)}); the change is "
                f"recorded in {record} and will be finished when the store is opened next."
            ) from error
        _forget(record)

    def discard(self) -> None:
        """Take back what was staged."""
        for entry in self._entries:
            remove(entry.staged)


@contextlib.contextmanager
def change(store: Store) -> Iterator[Change]:
    """Collect files and put them in force as one when the block ends well; the caller holds the store."""
    together = Change(store)
    try:
        yield together
    except BaseException:
        together.discard()
        raise
    together.commit()


def recover(store: Store) -> None:
    """Finish, or take back, the change of a killed process; the caller holds the store.

    Raises StoreError for a record that this user may not read.
    """
    record = store.root / NAME
    if not os.path.lexists(record):
        return
    try:
        found = _read(store)
    except PermissionError as error:
        raise StoreError(
            f"{record} cannot be read ({error.strerror}), and a change that was cut short waits in it: let its owner "
            "open the store, or change its permissions."
        ) from error
    if found is None:
        aside = set_aside(record)
        _log.warning("%s cannot be read and was set aside as %s; `dlm-tui doctor DOC` checks the store", record, aside)
        return
    try:
        _settle(found)
    except OSError as error:
        _log.warning("the change in %s cannot be finished yet: %s", record, error)
        return
    _forget(record)


def _settle(record: _Record) -> None:
    """Finish the change where every new file is there, else take it back; raises OSError, and may be called again."""
    entries = record.entries
    lost = [entry for entry in entries if not _is_new(entry.path, entry) and not _is_new(entry.staged, entry)]
    if not lost:
        for entry in entries:
            if not _is_new(entry.path, entry):
                _apply(entry)
            remove(entry.staged)
    elif any(os.path.lexists(entry.staged) for entry in entries) or any(map(_is_old, lost)):
        _put_back(record)
    # else all were renamed; what changed since then is somebody else's


def staged_path(store: Store, path: Path) -> Path:
    """Where the new content of `path` waits while a change is not finished, else `path`."""
    try:
        waiting = {entry.path: entry for entry in _entries(store) if _waits(entry)}
    except OSError:
        return path
    return waiting[path].staged if path in waiting else path


def pending(store: Store) -> bool:
    """Whether a change is being made, or was left by a killed process."""
    return os.path.lexists(store.root / NAME)


def staged_files(store: Store) -> set[Path]:
    """New files that a record still needs. Raises PermissionError for a record that this user may not read."""
    return {entry.staged for entry in _entries(store)} if pending(store) else set()


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of all files below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\n{sha256_file(path)}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _apply(entry: _Entry) -> None:
    if entry.kind == "file":
        entry.staged.replace(entry.path)
        sync_directory(entry.path.parent)
    else:
        put_in_place(entry.staged, entry.path)


def _put_back(record: _Record) -> None:
    """Give every file what it held before. Content that is neither old nor new was written by somebody else since, and
    stays, where the record is proved; else the record's hash of it may be wrong, and it is kept under another name."""
    for entry in record.entries:
        if not _is_old(entry):
            is_new = _is_new(entry.path, entry)
            if not is_new and (record.proved or entry.kind == "folder"):
                _log.warning("%s was written by somebody else since a change was cut short, and stays", entry.path)
            elif not is_new and os.path.lexists(entry.path):
                aside = set_aside(entry.path)
                _log.warning("%s is put back as it was before a change that was cut short; see %s", entry.path, aside)
                _restore(entry)
            else:
                _restore(entry)
    for entry in record.entries:  # a staged file that is left says that there is still something to put back
        remove(entry.staged)


def _restore(entry: _Entry) -> None:
    if entry.before is None:
        remove(entry.path)
    elif entry.kind == "file":
        write_atomic(entry.path, base64.b64decode(entry.before))
    else:
        _log.warning("%s was replaced in a change that was cut short, and is not what it was before", entry.path)


def _is_new(path: Path, entry: _Entry) -> bool:
    return _sha256(path, entry) == entry.sha256


def _is_old(entry: _Entry) -> bool:
    if entry.before is None:
        return not os.path.lexists(entry.path)
    held = entry.before
    if entry.kind == "file":
        held = hashlib.sha256(base64.b64decode(held)).hexdigest()
    return _sha256(entry.path, entry) == held


def _sha256(path: Path, entry: _Entry) -> str | None:
    """Of what is there now; None where it is not what the entry is of. Raises OSError for what cannot be read."""
    with contextlib.suppress(FileNotFoundError):
        if entry.kind == "folder":
            return folder_sha256(path) if path.is_dir() else None
        return sha256_file(path) if path.is_file() else None
    return None


def _waits(entry: _Entry) -> bool:
    try:
        return _is_new(entry.staged, entry)
    except OSError:
        return False


def _forget(record: Path) -> None:
    with contextlib.suppress(OSError):
        record.unlink(missing_ok=True)
        sync_directory(record.parent)


def _as_json(store: Store, entries: list[_Entry]) -> dict[str, Any]:
    record = {
        "format": 1,
        "entries": [
            {
                "kind": entry.kind,
                "path": entry.path.relative_to(store.root).as_posix(),
                "staged": entry.staged.relative_to(store.root).as_posix(),
                "sha256": entry.sha256,
                "before": entry.before,
            }
            for entry in entries
        ],
    }
    return {**record, OWN_HASH: own_sha256(record)}


def _entries(store: Store) -> list[_Entry]:
    record = _read(store)
    return record.entries if record is not None else []


def _read(store: Store) -> _Record | None:
    """The record, an empty one where there is none, None for one that is damaged or leads out of the store.

    Raises PermissionError.
    """
    record = store.root / NAME
    try:
        if record.is_symlink():
            return None
        raw = json.loads(read_file(record, _LIMIT))
        written = raw.pop(OWN_HASH, None)
        if written is not None and written != own_sha256(raw):
            return None
        return _Record([_entry(store, item) for item in raw["entries"]], proved=written is not None)
    except FileNotFoundError:
        return _Record([], proved=True)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return None


def _entry(store: Store, item: dict[str, Any]) -> _Entry:
    kind, before = item["kind"], item["before"]
    if kind not in ("file", "folder") or not isinstance(before, str | None) or not isinstance(item["sha256"], str):
        raise ValueError("not an entry")
    if kind == "file" and before is not None:
        base64.b64decode(before, validate=True)
    path, staged = (_inside(store, item[key]) for key in ("path", "staged"))
    if staged.parent != path.parent or not staged.name.startswith(f"{path.name}.tmp."):
        raise ValueError("not a sibling")
    return _Entry(kind, path, staged, item["sha256"], before)


def _inside(store: Store, name: str) -> Path:
    relative = Path(name)
    root = store.root.resolve()
    if relative.is_absolute() or ".." in relative.parts or not (root / relative).parent.resolve().is_relative_to(root):
        raise ValueError("outside the store")
    return store.root / relative
