"""Replacing a document that other programs save, too: one writer of ours at a time, and nobody's save is lost."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dlm_tui.document.errors import FileChanged
from dlm_tui.document.in_place import DocumentBusy, write_in_place
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import behind_links, clear_scratch_of, remove, set_aside, write_scratch
from dlm_tui.platform import exchange_names, may_give_away, sync_directory

_LOCK_SECONDS = 30.0
_BESIDE_SECONDS = 3.0
Item = TypeVar("Item")


class ReadOnlyDocument(DlmTuiError):
    """A document that may not be written; nothing was changed."""


class NotSetAside(DlmTuiError):
    """A file that can neither be read nor be renamed; nothing was changed."""


def refuse_unwritable(path: Path, target: Path) -> None:
    """Raises ReadOnlyDocument for a file without a write bit, one of somebody else, or a folder that takes no files.

    `target` is `path` with its links followed.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = target.stat().st_mode
        if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(target, os.W_OK):
            raise ReadOnlyDocument(f"{path} is read-only; nothing was changed")
        if not os.access(target.parent, os.W_OK):
            raise ReadOnlyDocument(f"{path} lies in a folder that cannot be written; nothing was changed")


@contextlib.contextmanager
def document_lock(target: Path, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold a document, or a file beside one, against other processes of this program while the block runs; scratch of
    dead ones is cleared. Another holder is waited for at most `seconds`.

    The lock is a file beside the document that goes away again. Raises DocumentBusy, OSError.
    """
    from filelock import FileLock, Timeout

    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path, timeout=seconds, poll_interval=0.02)
    try:
        lock.acquire()
    except Timeout:
        raise DocumentBusy(f"{target} is being changed by another process; try again") from None
    except OSError as error:  # of a file that nobody chose; it is as good as the one that it is beside
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        clear_scratch_of(target)
        yield
    finally:
        # Removed while it is held: whoever waits on it notices that it is gone and makes a new one.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


@contextlib.contextmanager
def beside_lock(path: Path) -> Iterator[None]:
    """Hold a small file beside a document, by whatever link it is reached, while it is looked at and changed.

    Raises DocumentBusy, OSError.
    """
    with document_lock(behind_links(path), _BESIDE_SECONDS):
        yield


def update_beside(
    document: Path,
    path: Path,
    read: Callable[[], dict[str, Item]],
    change: Callable[[dict[str, Item]], object],
    write: Callable[[dict[str, Item]], None],
    tell_aside: Callable[[Path], object] | None = None,
) -> dict[str, Item]:
    """Change the small file at `path` beside a document as it is now, whoever wrote it last; returns what was written.

    With `tell_aside` a file that cannot be read begins anew, and `tell_aside` hears what the old one is called then.
    Raises DocumentBusy, OSError, and what `read` raises; the document is named where its name leaves no room.
    """
    try:
        with beside_lock(path):
            found, aside = _read_or_set_aside(path, read, may_begin_anew=tell_aside is not None)
            try:
                change(found)
                write(found)
            except BaseException:
                if aside is not None and not os.path.lexists(path):
                    with contextlib.suppress(OSError):
                        aside.replace(path)
                raise
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise OSError(error.errno, error.strerror, str(document)) from error
    if aside is not None and tell_aside is not None:
        tell_aside(aside)
    return found


def _read_or_set_aside(
    path: Path, read: Callable[[], dict[str, Item]], *, may_begin_anew: bool
) -> tuple[dict[str, Item], Path | None]:
    """What the file holds, or nothing and the name that the file has now."""
    try:
        return read(), None
    except DlmTuiError as error:
        if not may_begin_anew:
            raise
        if (aside := set_aside(path)) is None:
            raise NotSetAside(f"{path} can neither be read nor be renamed, so nothing is saved") from error
        return {}, aside


@dataclass(frozen=True)
class SomebodySaved:
    """What the file held instead of what was expected; `displaced` when our bytes are in its place already."""

    data: bytes
    displaced: bool


def replace_seen(target: Path, seen: bytes, data: bytes) -> SomebodySaved | None:
    """Give the file new bytes if it still holds `seen`; else tell what it holds.

    Where the system can swap two names, what was there is looked at once more after the swap, so that a save in the
    last moment is seen as well: it is then the caller's to put back or to build on. A file with several names (hard
    links) is written in place, so that all stay one file, and so is one of somebody else, which stays theirs. Raises
    OSError, DocumentBusy, CutChange; the file is then as it was.
    """
    if target.stat().st_nlink > 1 or not may_give_away(target):
        there = write_in_place(target, seen, data)
        return None if there is None else SomebodySaved(there, displaced=False)
    scratch = write_scratch(target, data)
    try:
        now = target.read_bytes()
        if now != seen:
            return SomebodySaved(now, displaced=False)
        if not exchange_names(scratch, target):
            scratch.replace(target)
            now = seen
        else:
            now = scratch.read_bytes()
        sync_directory(target.parent)
        return None if now == seen else SomebodySaved(now, displaced=True)
    finally:
        remove(scratch)


def save_document(path: Path, seen: bytes, data: bytes) -> None:
    """Give the document new bytes, holding it, if it still is what the caller read.

    Raises FileChanged, with the file as somebody else saved it, ReadOnlyDocument, DocumentBusy, OSError.
    """
    target = path.resolve()
    refuse_unwritable(path, target)
    with document_lock(target):
        other = replace_seen(target, seen, data)
        if other is not None:
            if other.displaced:
                replace_seen(target, data, other.data)
            raise FileChanged(f"{path} was saved by somebody else meanwhile; nothing was written")
