"""Writing into a document where it lies, for files that a rename would tear apart: what was cut is completed later.

A file with several names, or of somebody else, cannot be replaced by another one. Before its bytes are touched, a note
beside it holds the whole text before and behind the change. It goes when all is written; whoever reads the document
next completes what a note is still there for. Where the file was edited since, nothing is overwritten: the note, which
any editor shows, is named until somebody has looked at it and removed it.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dlm_tui.errors import DlmTuiError
from dlm_tui.files import clear_scratch_of, remove, write_scratch
from dlm_tui.platform import alone_with, sync_directory
from dlm_tui.small_files import regular_file
from dlm_tui.system_errors import cause, naming

_NOTE = re.compile(r"\.dlm-tui-(?P<inode>[0-9]+)\.change")
_MOST_BYTES = 1 << 30
_WAIT_SECONDS = 10.0
_SAYS = "a change that was not written to its end: the text before it follows, then the text behind it"


class DocumentBusy(DlmTuiError):
    """Another process of this program keeps the document locked; nothing was changed."""


class CutChange(DlmTuiError):
    """A change of the document was cut while it was written, and somebody has to look at what is left of it."""


def write_in_place(target: Path, seen: bytes, data: bytes) -> bytes | None:
    """Make a file that holds `seen` hold `data`, as the same file; returns what it holds instead, where it does.

    Raises OSError, and the file is then as it was; CutChange where an earlier change has to be looked at first, and
    DocumentBusy where another process writes it.
    """
    with naming(target), target.open("r+b", buffering=0) as handle, _alone(target, handle):
        left = _settle(target, handle, writable=True)
        if left is not None:
            raise CutChange(f"{left}; nothing was changed")
        now = _whole(handle)
        if now != seen:
            return now
        note = _write_note(target, handle, seen, data)
        same = shared_start(seen, data)
        try:
            _write_from(handle, same, data)
        except BaseException:
            _write_from(handle, same, seen)  # over blocks that it has: that takes no room
            _forget(note)
            raise
        _forget(note)
    return None


def finish_cut_change(path: Path) -> str | None:
    """Complete a change that was cut while it was written into the document, which is said in the log.

    Returns a sentence where the document was edited since and a person has to look. Raises CutChange where the change
    cannot be completed, DocumentBusy.
    """
    try:
        target = Path(os.path.realpath(path))
        info = target.stat()
    except (OSError, ValueError):  # whoever reads it says so
        return None
    if not stat.S_ISREG(info.st_mode) or next(_notes(target, info), None) is None:
        return None
    try:
        with _opened(target) as (handle, writable), _alone(target, handle):
            left = _settle(target, handle, writable)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CutChange(f"{path}: a change was cut while it was written; it is not completed: {cause(error)}") from None
    if left is not None:
        _say_once(left)
    return left


def shared_start(first: bytes, second: bytes) -> int:
    """How many bytes at the beginning of both are the same."""
    both = range(min(len(first), len(second)))
    return bisect.bisect_left(both, True, key=lambda at: first[: at + 1] != second[: at + 1])


# ---- the note ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Change:
    before: bytes
    after: bytes


def _note_of(target: Path, inode: int) -> Path:
    """By the file and not by its name: all names of it in the folder find the note, and its new one behind a move."""
    return target.with_name(f".dlm-tui-{inode}.change")


def _write_note(target: Path, handle: io.FileIO, before: bytes, after: bytes) -> Path:
    note = _note_of(target, os.fstat(handle.fileno()).st_ino)
    clear_scratch_of(note)
    described = {
        "dlm-tui": _SAYS,
        "document": target.name,
        "before": [len(before), _sha256(before)],
        "after": [len(after), _sha256(after)],
    }
    try:
        scratch = write_scratch(note, json.dumps(described).encode() + b"\n" + before + after, like=target)
        try:
            scratch.replace(note)
        except BaseException:
            remove(scratch)
            raise
    except OSError as error:  # of a file that nobody chose
        raise OSError(error.errno, error.strerror, str(target)) from error
    sync_directory(note.parent)
    return note


def _notes(target: Path, info: os.stat_result) -> Iterator[Path]:
    """The notes beside a document that are about this file, or about one of its name."""
    try:
        with os.scandir(target.parent) as entries:
            found = [match for entry in entries if (match := _NOTE.fullmatch(entry.name))]
    except OSError:  # a folder that lets nobody see what is in it
        return
    for match in found:
        path = target.with_name(match[0])
        if int(match["inode"]) == info.st_ino or _description(path).get("document") == target.name:
            yield path


def _description(path: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError, RecursionError), regular_file(path) as (handle, _):
        described = json.loads(handle.read(1 << 12).partition(b"\n")[0])
        return described if isinstance(described, dict) else {}
    return {}


def _read_note(path: Path, info: os.stat_result) -> _Change | None:
    """The change that a note of the document `info` is about; None for one that is not whole, or of a stranger.

    In a folder that keeps its users' files apart a stranger may put a note where they may not change the document.
    """
    try:
        with regular_file(path, getattr(os, "O_NOFOLLOW", 0)) as (handle, whose):
            apart = bool(path.parent.stat().st_mode & stat.S_ISVTX)
            if apart and whose.st_uid not in (0, os.geteuid(), info.st_uid):
                return None
            if whose.st_size > _MOST_BYTES:
                return None
            line, _, texts = handle.readall().partition(b"\n")
        described = json.loads(line)
        (size, before_sum), (rest, after_sum) = described["before"], described["after"]
        before, after = texts[:size], texts[size:]
        if len(after) != rest or (_sha256(before), _sha256(after)) != (before_sum, after_sum):
            return None
        return _Change(before, after)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _forget(note: Path) -> None:
    remove(note)
    sync_directory(note.parent)  # or it comes back with the power, and finds what was written since


# ---- completing ----------------------------------------------------------------------------------------------------


def _settle(target: Path, handle: io.FileIO, writable: bool) -> str | None:
    """Complete what notes beside the document tell of; a sentence for one that is left. The file is held."""
    info = os.fstat(handle.fileno())
    left = None
    for note in _notes(target, info):
        change, now = _read_note(note, info), _whole(handle)
        own = note == _note_of(target, info.st_ino)
        if change is not None and now in (change.before, change.after):
            if own:  # else it is about another file, which had this name
                _forget(note)
        elif change is not None and _is_between(now, change):
            if not writable:
                raise CutChange(
                    f"{target}: a change was cut while it was written, and this user may not complete it; open it as"
                    f" its owner, or make it writable"
                )
            _write_from(handle, shared_start(change.before, change.after), change.after)
            _forget(note)
            logging.getLogger(__name__).warning("%s: a change that was cut while it was written is completed", target)
        else:
            left = (
                f"{target}: a change was cut while it was written, and the file was edited since; {note} holds the"
                f" text before and behind that change: take from it what is missing, then remove it"
            )
    return left


def _is_between(now: bytes, change: _Change) -> bool:
    """Whether a file is what is left where one text was being written over another: each byte is of either of them, or
    zero in a block behind the old end that never came to the disk."""
    before, after, size = change.before, change.after, len(now)
    shortest, longest = sorted((len(before), len(after)))
    at = shared_start(before, after)
    if not shortest <= size <= longest or now[:at] != before[:at]:
        return False
    bytes_of = itertools.zip_longest(now[at:], before[at:size], after[at:size], fillvalue=0)
    return all(byte in (old, new) for byte, old, new in bytes_of)


@functools.lru_cache(maxsize=64)
def _say_once(sentence: str) -> None:
    """The document is read again at every look at it."""
    logging.getLogger(__name__).warning("%s", sentence)


# ---- the file ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(target: Path, handle: io.FileIO) -> Iterator[None]:
    """Against processes that write the same file by another name, too, which the lock beside it does not hold off."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(alone_with(handle.fileno(), _WAIT_SECONDS))
        except TimeoutError:
            raise DocumentBusy(f"{target} is being changed by another process; try again") from None
        yield


@contextlib.contextmanager
def _opened(target: Path) -> Iterator[tuple[io.FileIO, bool]]:
    """The file, and whether it can be written."""
    writable = os.access(target, os.W_OK)
    with target.open("r+b" if writable else "rb", buffering=0) as handle:
        yield handle, writable


def _whole(handle: io.FileIO) -> bytes:
    handle.seek(0)
    return handle.readall()


def _write_from(handle: io.FileIO, at: int, data: bytes) -> None:
    """Make the file `data`, whose first `at` bytes it holds already."""
    handle.seek(at)
    rest = memoryview(data)[at:]
    while rest:
        rest = rest[handle.write(rest) :]
    os.ftruncate(handle.fileno(), len(data))
    os.fsync(handle.fileno())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
