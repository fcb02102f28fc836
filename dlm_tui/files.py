"""Writing files so that a crash at any moment leaves the last good state."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

from dlm_tui.system_errors import naming

_CHUNK = 1 << 20
_AT_FDCWD, _EXCHANGE_LINUX, _EXCHANGE_DARWIN = -100, 2, 2


def scratch_sibling(target: Path) -> Path:
    """A fresh name beside `target`, on the same file system, so that a rename onto it is atomic."""
    return target.with_name(f"{target.name}.tmp.{os.getpid()}.{token_hex(4)}")


def write_atomic(target: Path, data: bytes) -> None:
    """Replace `target` by `data`: written beside it, flushed to disk, renamed over it.

    Raises OSError (for example when the disk is full); `target` is then what it was before.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_sibling(target)
    try:
        with naming(target), scratch.open("xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        with contextlib.suppress(FileNotFoundError):
            shutil.copymode(target, scratch)
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def sync_directory(folder: Path) -> None:
    """Make renames inside `folder` durable; file systems that cannot do it are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        elif path.is_dir():
            sync_directory(path)
    sync_directory(folder)


@contextlib.contextmanager
def replace_directory(target: Path) -> Iterator[Path]:
    """Fill a sibling folder, then put it in the place of `target`; any failure leaves `target` untouched.

    Yields the empty folder to write into.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_sibling(target)
    scratch.mkdir()
    try:
        yield scratch
        sync_tree(scratch)
        put_in_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(scratch: Path, target: Path) -> None:
    """Give the finished folder `scratch` the name `target`; a folder that had the name is removed afterwards.

    Where the system can exchange two names at once (Linux, macOS) there is no moment without a whole folder at
    `target`; elsewhere the old one is moved aside for the swap.
    """
    if not target.exists():
        scratch.replace(target)
    elif _exchange(scratch, target):
        shutil.rmtree(scratch, ignore_errors=True)
    else:
        _swap_in_steps(scratch, target)
    sync_directory(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system or the file system cannot."""
    call = _exchange_call()
    return call is not None and call(os.fsencode(one), os.fsencode(other)) == 0


def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            rename = library.renameat2
            return lambda a, b: int(rename(_AT_FDCWD, a, _AT_FDCWD, b, _EXCHANGE_LINUX))
        if sys.platform == "darwin":
            swap = library.renamex_np
            return lambda a, b: int(swap(a, b, _EXCHANGE_DARWIN))
    except (OSError, AttributeError, TypeError):
        return None
    return None


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
    """Lower-case hex SHA-256 of a file, read in pieces of one MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
