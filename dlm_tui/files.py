"""Writing files so that a crash at any moment leaves the last good state."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

from dlm_tui.platform import exchange_names, keep_owner, process_lives, process_mark, sync_directory
from dlm_tui.small_files import UnfitFile, regular_file
from dlm_tui.system_errors import SCRATCH_ENDING, naming

_CHUNK = 1 << 20
_MOST_LINKS = 40
_SCRATCH = re.compile(r".+" + SCRATCH_ENDING)


def scratch_sibling(target: Path) -> Path:
    """A fresh name beside `target`, on the same file system, so that a rename onto it is atomic."""
    mark = _short_mark(os.getpid())
    return target.with_name(f"{target.name}.tmp.{os.getpid()}.{f'{mark}.' if mark else ''}{token_hex(4)}")


def scratch_pid(name: str) -> int | None:
    """The process that made a scratch file of this name, or None when the name is not one of `scratch_sibling`."""
    match = _SCRATCH.fullmatch(name)
    return int(match["pid"]) if match else None


def is_abandoned(name: str) -> bool:
    """Whether scratch of this name is of a process of this host that has ended. Where the name has no mark, or that of
    another host, a process that has the id may be the one."""
    match = _SCRATCH.fullmatch(name)
    if match is None:
        return False
    pid, mark = int(match["pid"]), match["mark"]
    if not process_lives(pid):
        return True
    now = _short_mark(pid)
    return mark is not None and now is not None and mark != now and mark[:4] == now[:4]


def _short_mark(pid: int) -> str | None:
    """What tells the process that has an id from others that had it, without a clock: digits for the host, and for the
    process; None where the system does not say. Containers that share a folder give out the same ids."""
    mark = process_mark(pid)
    return f"{_digits(socket.gethostname())}{_digits(mark)}" if mark is not None else None


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:4]


def clear_scratch_of(target: Path, older_than: float = 0.0) -> None:
    """Remove scratch that dead processes of this host left beside `target`, if untouched for `older_than` seconds."""
    prefix = f"{target.name}.tmp."
    with contextlib.suppress(OSError):
        for path in left_scratch(target.parent):
            if path.name.startswith(prefix) and time.time() - path.stat().st_mtime >= older_than:
                remove(path)


def left_scratch(folder: Path) -> list[Path]:
    """What dead processes of this host were writing into a folder when they ended. Raises OSError."""
    return sorted(path for path in folder.iterdir() if is_abandoned(path.name))


@contextlib.contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """An empty folder in the system's temporary directory that goes away with the block.

    Those that killed processes of this user left are cleared first.
    """
    base = Path(tempfile.gettempdir()) / f"dlm-tui-{name}"
    clear_scratch_of(base, older_than=3600.0)  # another container may share the folder, with process ids of its own
    folder = scratch_sibling(base)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        remove(folder)


def remove(path: Path) -> None:
    """Remove a file or a folder with what is in it; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path | None:
    """Give a file that cannot be read another name, so that a new one can begin; None when that fails."""
    number = 0
    while True:
        aside = path.with_name(f"{path.stem}.damaged{f'-{number}' if number else ''}{path.suffix}")
        if not os.path.lexists(aside):
            break
        number += 1
    try:
        path.replace(aside)
    except OSError:
        return None
    return aside


def write_scratch(target: Path, data: bytes, like: Path | None = None) -> Path:
    """A flushed file beside `target` with its owner and mode, or those of `like`, ready to be renamed over it.

    Raises OSError.
    """
    like, scratch = like or target, scratch_sibling(target)
    try:
        with naming(target), open(scratch, "xb", opener=_private if like.exists() else None) as handle:
            keep_owner(like, scratch)  # before anything is in it that others may not read
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return scratch


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def behind_links(path: Path) -> Path:
    """The file that a person's name stands for, where that is a link; the folder it lies in is looked at by the system.

    Raises OSError: for links that lead to nothing (a disk that is not mounted would get a second file), for those that
    lead round, and for one that a stranger put into a folder that everybody may write.
    """
    name = path
    for _ in range(_MOST_LINKS):
        if not path.is_symlink():
            if path != name and not os.path.lexists(path):
                text = f"it is a link to {path}, which does not exist; make that again, or remove the link"
                raise UnfitFile(errno.EINVAL, text, str(name))
            return path
        _refuse_link_of_stranger(path)
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, "its links lead round in a circle", str(name))


def _refuse_link_of_stranger(link: Path) -> None:
    """The rule of Linux (protected_symlinks), which holds for opening a file and not for finding its name."""
    folder = link.parent.stat()
    if folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH:
        owner = link.lstat().st_uid
        if owner not in (os.geteuid(), folder.st_uid):
            text = "it is a link that another user put into a folder of all; choose another name"
            raise UnfitFile(errno.EINVAL, text, str(link))


def write_through_links(path: Path, data: bytes) -> None:
    """`write_atomic` for a file that a person may have linked to another place: the link stays, that file is replaced.

    Not for the store: a link in it leads out of it, to where nothing of the store is to be written. Raises OSError.
    """
    write_atomic(behind_links(path), data)


def write_atomic(target: Path, data: bytes) -> None:
    """Replace `target` by `data`: written beside it, flushed to disk, renamed over it, also where it is a link.

    Raises OSError (for example when the disk is full); `target` is then what it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = write_scratch(target, data)
    try:
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def write_new(target: Path, data: bytes) -> None:
    """Write a file that there is not: whole and flushed, or not at all. Raises FileExistsError, OSError."""
    scratch = write_scratch(target, data)
    try:
        os.link(scratch, target)  # unlike a rename it takes no name that somebody has
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with target.open("xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
    finally:
        scratch.unlink(missing_ok=True)
    sync_directory(target.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        elif path.is_dir():
            sync_directory(path)
    sync_directory(folder)


def put_in_place(scratch: Path, target: Path) -> None:
    """Give the finished folder `scratch` the name `target`; a folder that had the name is removed afterwards.

    Where the system can exchange two names at once (Linux, macOS) there is no moment without a whole folder at
    `target`; elsewhere the old one is moved aside for the swap.
    """
    if not _takes_free_name(scratch, target):
        if exchange_names(scratch, target):
            remove(scratch)
        else:
            _swap_in_steps(scratch, target)
    sync_directory(target.parent)


def _takes_free_name(scratch: Path, target: Path) -> bool:
    """Rename a folder to a name that nobody has; False when somebody has it, also since a moment ago."""
    if target.exists():
        return False
    try:
        scratch.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            return False
        raise
    return True


def _swap_in_steps(scratch: Path, target: Path) -> None:
    aside = scratch_sibling(target)
    target.replace(aside)
    try:
        scratch.replace(target)
    except BaseException:
        aside.replace(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def json_bytes(value: Any) -> bytes:
    """Sorted keys, two-space indent, non-ASCII kept, final line feed: the form all store files have."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def sha256_file(path: Path) -> str:
    """Lower-case hex SHA-256 of a regular file, read in pieces of one MiB. Raises OSError."""
    digest = hashlib.sha256()
    with regular_file(path) as (handle, _):
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
