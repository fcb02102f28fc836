"""What was computed of a file, kept for as long as its path, size and time of change stay the same. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from platformdirs import user_cache_path

from dlm_tui.files import write_atomic
from dlm_tui.small_files import read_file

T = TypeVar("T")
_MANY = 500
"""Notes of one kind, above which those of files that are gone are looked for."""


class _Note(msgspec.Struct, frozen=True):
    path: str
    size: int
    mtime_ns: int
    value: msgspec.Raw


def cache_folder() -> Path:
    """Where this program keeps what it can compute again, as the system has it; on Linux below XDG_CACHE_HOME."""
    return user_cache_path("dlm-tui", appauthor=False)


def remembered(kind: str, file: Path, compute: Callable[[Path], T], type_: type[T]) -> T:
    """`compute(file)`, or what it gave for the same path, size and time of change; `type_` as msgspec reads it.

    A cache that cannot be read or written costs the computation again, nothing else. OSError without the file.
    """
    path = file.resolve()
    facts = path.stat()
    if (known := recall(kind, path, type_)) is not None:
        return known
    value = compute(path)
    with contextlib.suppress(OSError, UnicodeEncodeError):
        note = _Note(str(path), facts.st_size, facts.st_mtime_ns, msgspec.Raw(msgspec.json.encode(value)))
        place = _place(kind, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, msgspec.json.encode(note))
        _forget_gone(place.parent)
    return value


def recall(kind: str, file: Path, type_: type[T]) -> T | None:
    """What `remembered` has of a file as it is, None where it would have to be computed. OSError without the file."""
    path = file.resolve()
    facts = path.stat()
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        note = msgspec.json.decode(read_file(_place(kind, path)), type=_Note)
        if (note.path, note.size, note.mtime_ns) == (str(path), facts.st_size, facts.st_mtime_ns):
            return msgspec.json.decode(note.value, type=type_)
    return None


def _forget_gone(folder: Path) -> None:
    """Drop the notes of files that are no longer there, once there are many notes."""
    notes = list(folder.glob("*.json"))
    if len(notes) <= _MANY:
        return
    for place in notes:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            if not os.path.lexists(msgspec.json.decode(read_file(place), type=_Note).path):
                place.unlink()


def _place(kind: str, path: Path) -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
