"""What this program changed in a document, in a file of its own, so that it can be taken back after a restart."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec

from dlm_tui.document.append import AppendResult
from dlm_tui.document.document import read_document_bytes
from dlm_tui.document.edit import Edit, undo_edit
from dlm_tui.document.in_place import shared_start
from dlm_tui.document.replacing import document_lock
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import set_aside, write_atomic
from dlm_tui.small_files import read_file

_MOST, _MOST_BYTES = 200, 4 << 20
_LOCK_SECONDS = 10.0
_DAMAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class NothingToUndo(DlmTuiError):
    """No change of this program made the document what it is now."""


class DocumentChange(msgspec.Struct, kw_only=True, frozen=True):
    """One change: at byte `offset`, `removed` made way for `added`; hashes are of the whole file, after and before.

    `line` is where the section is or was; `kind` says who is to know when it is taken back.
    """

    kind: str
    line: int
    offset: int
    removed: bytes
    added: bytes
    sha256: str
    previous_sha256: str

    @classmethod
    def of_append(cls, kind: str, result: AppendResult) -> DocumentChange:
        """What `append_section` did."""
        return cls(
            kind=kind,
            line=result.line,
            offset=result.offset,
            removed=b"",
            added=result.added_text.encode(),
            sha256=result.sha256,
            previous_sha256=result.previous_sha256,
        )

    @classmethod
    def between(cls, kind: str, before: bytes, after: bytes) -> DocumentChange:
        """What made one file of another: the bytes between what is equal at both ends."""
        start = shared_start(before, after)
        tail = shared_start(before[start:][::-1], after[start:][::-1])
        return cls(
            kind=kind,
            line=before[:start].count(b"\n") + 1,
            offset=start,
            removed=before[start : len(before) - tail],
            added=after[start : len(after) - tail],
            sha256=hashlib.sha256(after).hexdigest(),
            previous_sha256=hashlib.sha256(before).hexdigest(),
        )

    @classmethod
    def of_edit(cls, kind: str, edit: Edit) -> DocumentChange:
        """What a change in place did."""
        return cls(
            kind=kind,
            line=edit.line,
            offset=edit.offset,
            removed=edit.removed,
            added=edit.added,
            sha256=edit.sha256,
            previous_sha256=edit.previous_sha256,
        )


class ChangeLog:
    """The file: one JSON list, oldest first, at most 200 changes and 4 MiB of their text. None of it blocks anybody:
    a damaged file is set aside. Call it in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[DocumentChange]:
        """All changes, oldest first."""
        try:
            return msgspec.json.decode(read_file(self._path), type=list[DocumentChange])
        except FileNotFoundError:
            return []
        except (OSError, *_DAMAGE) as error:
            logging.getLogger(__name__).warning("the file of changes %s is set aside: %s", self._path, error)
            set_aside(self._path)
            return []

    def add(self, change: DocumentChange) -> None:
        """Keep one more. Raises OSError."""
        with self._held():
            self._write([*self.read(), change])

    def undo(self, document: Path) -> DocumentChange:
        """Take back the newest change that made the document what it is now; what is newer than that is forgotten.

        Raises NothingToUndo, FileChanged, OSError.
        """
        with self._held():
            return self._undone(document, self.read())

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with document_lock(self._path, _LOCK_SECONDS):
            yield

    def _undone(self, document: Path, changes: list[DocumentChange]) -> DocumentChange:
        if not changes:
            raise NothingToUndo("nothing in the document was changed by this program")
        now = hashlib.sha256(read_document_bytes(document)).hexdigest()
        at = next((at for at in reversed(range(len(changes))) if changes[at].sha256 == now), None)
        if at is None:
            raise NothingToUndo(f"{document} was changed elsewhere since the last change; nothing was undone")
        change = changes[at]
        undo_edit(
            document,
            Edit(
                offset=change.offset,
                removed=change.removed,
                added=change.added,
                line=change.line,
                section_id=None,
                sha256=change.sha256,
                previous_sha256=change.previous_sha256,
            ),
        )
        self._write(changes[:at])
        return change

    def _write(self, changes: list[DocumentChange]) -> None:
        kept: list[DocumentChange] = []
        size = 0
        for change in reversed(changes[-_MOST:]):
            size += len(change.removed) + len(change.added)
            if size > _MOST_BYTES:
                break
            kept.insert(0, change)
        write_atomic(self._path, msgspec.json.encode(kept))
