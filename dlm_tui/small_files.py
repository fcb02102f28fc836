"""Reading files that a person or another program may have put there: a pipe in the place of one keeps nobody waiting.

Only what is a regular file is read, which is looked at behind its opening, so that nothing can be exchanged between the
two; and never more of it than a limit.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

MOST_BYTES = 64 << 20
MOVE_AWAY = "; move it away"
"""What to do about something else in the place of a file."""
_PIECE = 1 << 16
_OPEN = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnfitFile(OSError):
    """What lies there is too large, or no file at all; `strerror` says so and what to do about it."""


@contextlib.contextmanager
def regular_file(path: Path | str, flags: int = 0) -> Iterator[tuple[io.FileIO, os.stat_result]]:
    """A regular file opened for reading, and what it is; `flags` are further ones of `os.open`.

    Raises OSError, UnfitFile among them.
    """
    with _opened(path, flags) as (handle, info):
        _refuse_irregular(path, info)
        yield handle, info


def read_file(path: Path | str, limit: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file. Raises OSError, UnfitFile for one of more than `limit` bytes."""
    with regular_file(path) as (handle, info):
        return _whole(handle, path, info.st_size, limit)


def read_head(path: Path | str, size: int) -> bytes:
    """The first bytes of a regular file, at most `size`. Raises OSError."""
    with regular_file(path) as (handle, _):
        return handle.read(size)


def read_file_or_pipe(path: Path | str, limit: int) -> bytes:
    """What a person named for this once, which may be a pipe: one that nobody writes to is not waited for.

    Raises OSError, UnfitFile for more than `limit` bytes.
    """
    with _opened(path) as (handle, info):
        begun: bytes | None = b""
        if stat.S_ISFIFO(info.st_mode):
            begun = handle.read(1)  # None where somebody is there who has written nothing yet
            if begun == b"":
                raise UnfitFile(errno.EINVAL, "nothing is written into that pipe; begin that first", str(path))
        os.set_blocking(handle.fileno(), True)
        return (begun or b"") + _whole(handle, path, info.st_size, limit)


def file_mark(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from the next in its place: inode, bytes and nanoseconds of its change; None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def is_no_file(error: OSError) -> bool:
    """Whether something else has the place of the file that could not be read: a folder, a pipe, a link to itself."""
    return error.errno in (errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.ENXIO)


def require_regular(path: Path | str) -> None:
    """For a file that a library opens by its name. Raises OSError where there is none, or no regular one."""
    _refuse_irregular(path, Path(path).stat())


@contextlib.contextmanager
def _opened(path: Path | str, flags: int = 0) -> Iterator[tuple[io.FileIO, os.stat_result]]:
    try:
        descriptor = os.open(path, _OPEN | flags)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        # A file beside a document of a long name: no disk can have it.
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    try:
        info = os.fstat(descriptor)
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with io.FileIO(descriptor, "rb", closefd=False) as handle:
            yield handle, info
    finally:
        os.close(descriptor)


def _refuse_irregular(path: Path | str, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(info.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(info.st_mode)), "something else")
        raise UnfitFile(errno.EINVAL, f"it is {kind}, not a file{MOVE_AWAY}", str(path))


def _whole(handle: io.FileIO, path: Path | str, size: int, limit: int) -> bytes:
    data = bytearray()
    while size <= limit and (piece := handle.read(max(size - len(data), 0) + _PIECE)):
        data += piece
        size = max(size, len(data))
    if size > limit:
        raise UnfitFile(errno.EFBIG, f"it is larger than {_in_words(limit)}; make it smaller", str(path))
    return bytes(data)


def _in_words(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
