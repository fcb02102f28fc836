"""Files whose names a person gives: what stands there already is lost to nobody who was not asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dlm_tui.errors import UsageError
from dlm_tui.files import behind_links, clear_scratch_of, write_atomic
from dlm_tui.small_files import UnfitFile, read_file

_END_OF_ARRAY = b"\n]\n"


class NameTaken(UsageError):
    """`path` holds something else of the kind that was to be written there; `free` is a name that nobody has."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.free, self.what = path, free_name(path), what
        super().__init__(f"{path} holds another {what}; choose another name, such as {self.free.name}")


def write_given(path: Path, data: bytes, what: str, is_one: Callable[[bytes], bool], *, replace: bool = False) -> None:
    """Write `data`, a `what`, to a file that a person named; `is_one` tells whether the bytes that stand there are one.

    Those are replaced where `data` begins with them, which loses nothing, and otherwise only with `replace`: whoever
    sets it has asked. Raises NameTaken, UsageError for a file of another kind, which is never replaced, and OSError.
    """
    there = _there(path)
    if there is not None and not data.startswith(there.removesuffix(_END_OF_ARRAY)):
        if not is_one(there):
            raise UsageError(f"{path} exists and is not a {what}; choose another name, such as {free_name(path).name}")
        if not replace:
            raise NameTaken(path, what)
    target = behind_links(path)
    clear_scratch_of(target)
    write_atomic(target, data)


def free_name(path: Path) -> Path:
    """A name beside `path` that nobody has: `talk-2.json` for `talk.json`."""
    number = 2
    while os.path.lexists(free := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    return free


def _there(path: Path) -> bytes | None:
    """What stands at a name; None for nothing. Something too large or of no such kind is like another kind of file."""
    try:
        return read_file(path)
    except FileNotFoundError:
        return None
    except UnfitFile:
        return b"\0"
