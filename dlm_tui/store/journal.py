"""Several files of a store that change together: all of them or none, whenever the process is killed.

The new files are written beside the old ones and flushed; then one record, `.journal.tui`, names them: from that moment
the change counts. Renaming follows, and the record goes. Whoever opens the store next and finds a record finishes it;
where a new file is missing or damaged, the files that were already renamed are put back. A reader that may not write
reads the new files where they lie.
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
from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import Store

NAME = ".journal.tui"
_LIMIT = 64 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Entry:
    """`sha256` is of the new file or folder; `before` is what a file held, in base64, None where there was none."""

    kind: Literal["file", "folder"]
    path: Path
    staged: Path
    sha256: str
    before: str | None = None


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
        self._entries.append(_Entry("folder", path, scratch, folder_sha256(scratch)))

    def commit(self) -> None:
        """Make the change; after an OSError from before the record nothing has changed."""
        record = self._store.root / NAME
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
                f"{error.filename or self._store.root} cannot be replaced ({error.strerror or error}); the change is "
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
    """Finish, or take back, the change of a killed process; the caller holds the store."""
    record = store.root / NAME
    if not os.path.lexists(record):
        return
    entries = _read(store)
    if entries is None:
        aside = set_aside(record)
        _log.warning("%s cannot be read and was set aside as %s; `dlm-tui doctor DOC` checks the store", record, aside)
        return
    if not any(os.path.lexists(entry.staged) for entry in entries):
        _forget(record)  # all were renamed; what changed since then is somebody else's
        return
    if all(_is_new(entry.path, entry) or _is_new(entry.staged, entry) for entry in entries):
        try:
            for entry in entries:
                if not _is_new(entry.path, entry):
                    _apply(entry)
                remove(entry.staged)
        except OSError as error:
            _log.warning("the change in %s cannot be finished yet: %s", record, error)
            return
    elif not _put_back(entries):
        return
    _forget(record)


def staged_path(store: Store, path: Path) -> Path:
    """Where the new content of `path` waits while a change is not finished, else `path`."""
    waiting = {entry.path: entry for entry in _read(store) or [] if _is_new(entry.staged, entry)}
    return waiting[path].staged if path in waiting else path


def pending(store: Store) -> bool:
    """Whether a change is being made, or was left by a killed process."""
    return os.path.lexists(store.root / NAME)


def staged_files(store: Store) -> set[Path]:
    """New files that a record still needs."""
    return {entry.staged for entry in _read(store) or []} if pending(store) else set()


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


def _put_back(entries: list[_Entry]) -> bool:
    try:
        for entry in entries:
            if entry.kind == "file" and _is_new(entry.path, entry):
                if entry.before is None:
                    entry.path.unlink()
                else:
                    write_atomic(entry.path, base64.b64decode(entry.before))
            remove(entry.staged)
    except OSError as error:
        _log.warning("a change that was cut short cannot be taken back yet: %s", error)
        return False
    return True


def _is_new(path: Path, entry: _Entry) -> bool:
    try:
        if entry.kind == "folder":
            return path.is_dir() and folder_sha256(path) == entry.sha256
        return path.is_file() and sha256_file(path) == entry.sha256
    except OSError:
        return False


def _forget(record: Path) -> None:
    with contextlib.suppress(OSError):
        record.unlink(missing_ok=True)
        sync_directory(record.parent)


def _as_json(store: Store, entries: list[_Entry]) -> dict[str, Any]:
    return {
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


def _read(store: Store) -> list[_Entry] | None:
    """The entries of the record, [] without one, None for one that is damaged or leads out of the store."""
    record = store.root / NAME
    try:
        if record.is_symlink() or record.stat().st_size > _LIMIT:
            return None
        raw = json.loads(record.read_bytes())
        return [_entry(store, item) for item in raw["entries"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError, AttributeError):
        return None


def _entry(store: Store, item: dict[str, Any]) -> _Entry:
    kind, before = item["kind"], item["before"]
    if kind not in ("file", "folder") or not isinstance(before, str | None) or not isinstance(item["sha256"], str):
        raise ValueError("not an entry")
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
