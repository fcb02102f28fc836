"""Reading one file that may be anything: a pipe, a link that was put there meanwhile, huge, growing."""

from __future__ import annotations

import os
from dataclasses import dataclass

from dlm_tui.small_files import UnfitFile, regular_file

# A file that keeps changing is read this often before it is given up.
_ATTEMPTS = 3
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


class Unreadable(Exception):
    """The file cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells a changed file from an unchanged one without reading it: size in bytes, times in nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, info: os.stat_result) -> Fingerprint:
        """From what `stat` says."""
        return cls(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)


def read_regular(path: str, limit: int, *, head: int = 0, stop_at: bytes = b"") -> tuple[bytes, Fingerprint]:
    """The bytes of a regular file of at most `limit` bytes, and its fingerprint while they were read.

    The last component of `path` must not be a link. If `stop_at` occurs in the first `head` bytes, only those are
    read and returned. Raises Unreadable for anything else, and for a file that changed during every attempt.
    """
    try:
        for _ in range(_ATTEMPTS):
            with regular_file(path, _NO_FOLLOW) as (handle, before):
                if before.st_size > limit:
                    raise Unreadable(f"larger than {limit} bytes")
                data = handle.read(head) if head else b""
                if stop_at and stop_at in data:
                    return data, Fingerprint.of(before)
                data += _read_rest(handle.fileno(), before.st_size - len(data))
                after = os.fstat(handle.fileno())
            if len(data) == before.st_size and Fingerprint.of(before) == Fingerprint.of(after):
                return data, Fingerprint.of(after)
    except (IsADirectoryError, UnfitFile):
        raise Unreadable("not a regular file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unreadable(reason) from None
    raise Unreadable("it changed while it was read")


def _read_rest(descriptor: int, size: int) -> bytes:
    """`size` more bytes, or up to the end if that comes first; a file that grows is not followed."""
    parts: list[bytes] = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
