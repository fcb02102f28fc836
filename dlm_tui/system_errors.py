"""What the system and its libraries raise, said in one sentence with the place and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dlm_tui.errors import DlmTuiError
from dlm_tui.process_limits import narrow_limit

_REMEDIES = {
    errno.ENOSPC: "no space is left on its disk; free some and do it again",
    errno.EDQUOT: "the disk quota is used up; free some and do it again",
    errno.EACCES: "this user may not do that; change its permissions or its owner",
    errno.EPERM: "this user may not do that; change its permissions or its owner",
    errno.EROFS: "its disk is mounted read-only; choose another place (--home, --out)",
    errno.ENOENT: "it does not exist; check the path",
    errno.ENOTDIR: "a part of that path is a file, not a folder; check the path",
    errno.EISDIR: "it is a folder, not a file; check the path",
    errno.EEXIST: "it exists already; choose another name",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
    errno.ELOOP: "its links lead round in a circle; remove one of them",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.EIO: "the disk reports an error; look after the disk before anything else",
    errno.ENOMEM: "there is not enough memory; close other programs",
    errno.ENXIO: "it is a socket or a device, not a file; check the path",
    errno.ENOTEMPTY: "the folder is not empty; look what is in it",
    errno.ESTALE: "the network folder is gone; mount it again",
}
SCRATCH_ENDING = r"\.tmp\.(?P<pid>[0-9]+)(?:\.(?P<mark>[0-9a-f]{8}))?\.[0-9a-f]{8}"
"""How the names end of what is written beside its target until it is whole; those of earlier versions have no mark."""
_SCRATCH = re.compile(SCRATCH_ENDING + r"(?=/|$)")
_ROOM = 1 << 20
"""Bytes that a database needs on its disk for a moment, at the least."""
_MOST_SHOWN = 300
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_ALLOCATION = re.compile(
    # the last is what oneDNN says where it has no room for its code
    r"can't allocate memory|out of memory|Unable to allocate|could not create a primitive$",
    re.IGNORECASE,
)


def system_sentence(error: BaseException) -> str | None:
    """One sentence for an error of the system or of a library below; None for any other.

    Knows OSError (full disk, permissions, missing files), shutil.Error, SafetensorError, SQLite, memory, nesting,
    text that is not UTF-8, and Jinja.
    """
    number, path = _errno(error), _path(error)
    if number is not None:
        return f"{path or 'a file'}: {cause(error)}"
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return _no_memory()
    if isinstance(error, RuntimeError) and _ALLOCATION.search(str(error)):
        return _no_memory()
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read"
    if isinstance(error, sqlite3.Error):
        return f"the metrics database cannot be used: {first_line(error)}; `dlm-tui doctor DOC` looks at it"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{_around(error)!r} holds bytes that are not UTF-8 and cannot be written; rename the file or mend the text"
        )
    if isinstance(error, UnicodeDecodeError):
        return f"a text is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); convert it"
    if name == "SafetensorError":
        return f"{path or 'a safetensors file'} cannot be read or written: {first_line(error)}"
    if type(error).__module__.partition(".")[0] == "jinja2":
        return f"a chat template cannot be used: {first_line(error)}"
    return None


def _no_memory() -> str:
    limit = narrow_limit()
    if limit is None:
        return "there is not enough memory for this; close other programs or use a smaller base"
    return (
        f"there is not enough memory for this: the process may take {limit.limit / 1e9:.1f} GB ({limit.command}) and"
        f" has {limit.taken / 1e9:.1f} GB; raise that limit, or use a smaller base"
    )


def unforeseen_sentence(error: Exception) -> str:
    """What a person is told of an error that nothing here knows: under a narrow limit of memory a library that finds no
    room fails in any way, while it is loaded, too."""
    limit = narrow_limit()
    under = (
        ""
        if limit is None
        else f"; it may be the limit of {limit.limit / 1e9:.1f} GB of memory ({limit.command}), of which the process"
        f" has {limit.taken / 1e9:.1f} GB: raise it"
    )
    return f"{error_line(error)}{under} (--debug shows more)"


def sentence_of(error: Exception) -> str:
    """What a person is told of an error: one of the system with its place and remedy, one of ours as it is."""
    return system_sentence(error) or str(error)


def cause(error: BaseException) -> str:
    """What happened and what to do about it, for a sentence that names the place itself."""
    number = _errno(error)
    if number is None:
        return first_line(error)
    return _REMEDIES.get(number) or getattr(error, "strerror", None) or os.strerror(number)


def database_reason(error: Exception, database: Path) -> str:
    """What stands behind an error of SQLite: it reports a full disk as one that fails, or full where another one is."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL):
        for folder in (database.parent, Path(tempfile.gettempdir())):
            with contextlib.suppress(OSError):
                if shutil.disk_usage(folder).free < _ROOM:
                    return f"no space is left on the disk of {folder}; free some and do it again"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """System errors of the block that name no file name `path`; those of safetensors and copytree become OSError."""
    try:
        yield
    except OSError as error:
        number = _errno(error)
        if number is None or (error.filename is not None and not isinstance(error, shutil.Error)):
            raise
        raise OSError(number, error.strerror or os.strerror(number), _path(error) or str(path)) from error
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with those that it goes on in; the name of one without a text."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    said, *rest = lines
    while said.endswith((":", ",", " and", " or")) and rest:
        said = f"{said} {rest.pop(0)}"
    return said


def error_line(error: BaseException) -> str:
    """The name of any other error and its first line; one of ours is a sentence already."""
    if isinstance(error, DlmTuiError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__


def _around(error: UnicodeEncodeError) -> str:
    """The text that cannot be written, or what stands before and behind the bytes in a long one."""
    text = error.object
    return text if len(text) <= _MOST_SHOWN else text[max(0, error.start - 40) : error.start + 40]


def _errno(error: BaseException) -> int | None:
    """The system's number for what happened, also where a library has put it into a text."""
    if isinstance(error, shutil.Error):
        return next((found for found in map(_number_in, _reasons(error)) if found is not None), None)
    if isinstance(error, OSError):
        return error.errno if error.errno is not None else _number_in(str(error))
    if type(error).__name__ == "SafetensorError" or type(error) is Exception:  # the latter is what tokenizers raises
        return _number_in(str(error))
    return None


def _path(error: BaseException) -> str | None:
    """What the error is about, by the name that a person knows: the target, and not what is written beside it."""
    name = getattr(error, "filename", None)
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        name = str(error.args[0][0][1])
    return _SCRATCH.sub("", os.fsdecode(name)) if isinstance(name, (str, bytes)) else None


def _reasons(error: shutil.Error) -> list[str]:
    listed = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return [str(entry[-1]) for entry in listed if entry]


def _number_in(text: str) -> int | None:
    match = _OS_ERROR.search(text) or re.search(r"\[Errno (\d+)\]", text)
    return int(match[1]) if match else None
