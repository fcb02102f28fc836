"""What differs between operating systems: processes, swapping two names, durable renames, who may write where."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")
_CLOCK_SLACK_SECONDS = 5.0
_AT_FDCWD, _EXCHANGE_LINUX, _EXCHANGE_DARWIN = -100, 2, 2


def process_lives(pid: int, since: float | None = None) -> bool:
    """Whether a process of that id runs on this host; one that ended but was not yet collected does not.

    `since` is a moment, in seconds since the epoch, at which the process that is meant ran already: one that started
    after it was given the id anew.
    """
    if pid <= 0 or not _signal_reaches(pid) or _ended(pid):
        return False
    started = process_started(pid) if since is not None else None
    return started is None or since is None or started <= since + _CLOCK_SLACK_SECONDS


def process_mark(pid: int) -> str | None:
    """What tells the process that has this id from every other that had it or will have it on this host; None where the
    system does not say. On Linux no clock is in it: that may be set while the process runs."""
    fields = _stat_fields(pid)
    try:
        if fields is not None:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii", errors="replace").strip()
            return f"{boot} {fields[19]}"
    except (OSError, IndexError):
        return None
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except (psutil.Error, ValueError, OverflowError):
        return None


def process_started(pid: int) -> float | None:
    """Seconds since the epoch at which the process started; None where the system does not say."""
    fields = _stat_fields(pid)
    try:
        boot = next(
            float(line.split()[1])
            for line in Path("/proc/stat").read_text(encoding="ascii", errors="replace").splitlines()
            if line.startswith("btime ")
        )
        return boot + float(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else None
    except (OSError, StopIteration, ValueError, IndexError):
        return None


# Of a child with a session or group of its own: Ctrl+C is for its parent, and it can be ended with its children.
_NEW_GROUP = 0x200  # CREATE_NEW_PROCESS_GROUP, which `subprocess` has on Windows only
OWN_GROUP: dict[str, Any] = {"creationflags": _NEW_GROUP} if sys.platform == "win32" else {"start_new_session": True}


def end_group(pid: int, *, at_once: bool) -> None:
    """Ask a child that was started with OWN_GROUP, and its children, to end; `at_once` does not ask.

    Raises ProcessLookupError, PermissionError. Where there are no groups only the child itself is ended.
    """
    if sys.platform == "win32":
        os.kill(pid, signal.SIGTERM)
    else:
        os.killpg(pid, signal.SIGKILL if at_once else signal.SIGTERM)


def be_nicer(by: int) -> int | None:
    """Give way to others; returns the niceness that then holds, None where the system has none or refuses."""
    try:
        return os.nice(by) if sys.platform != "win32" else None
    except OSError:
        return None


def leads_its_session() -> bool:
    """Whether this process began a session of its own."""
    return sys.platform != "win32" and os.getsid(0) == os.getpid()


def exchange_names(one: Path, other: Path) -> bool:
    """Swap two files or folders in one step; False where the system or the file system cannot."""
    call = _exchange_call()
    return call is not None and call(os.fsencode(one), os.fsencode(other)) == 0


def sync_directory(folder: Path) -> None:
    """Make renames inside `folder` durable; file systems that cannot do it are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def may_write(path: Path) -> bool:
    """Whether this process may write the file and make files beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) and not on_read_only_medium(path)


def on_read_only_medium(path: Path) -> bool:
    """Whether nobody can write `path`: its file system is mounted so, or file and folder have no write bit."""
    try:
        if hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY:
            return True
        return not any(stat.S_IMODE(each.stat().st_mode) & 0o222 for each in (path, path.parent))
    except OSError:
        return False


def lock_is_held(path: Path) -> bool | None:
    """Whether a process holds the kernel's lock on a lock file, asked without making or writing it; None where this
    system, or this user, has no way to ask."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def alone_with(descriptor: int, seconds: float) -> Iterator[None]:
    """Hold an open file, whatever its name, against others that ask for it in this way, also on other descriptors of
    this process. Where the system or the file system has no such lock, nothing is held.

    Raises TimeoutError when it is held by another for longer than `seconds`.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.02)
        except OSError:
            break
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def keep_owner(source: Path, target: Path) -> None:
    """Give `target` the owner, group, mode bits and extended attributes (labels, access lists) of `source`, as far as
    this process may."""
    with contextlib.suppress(OSError):
        status = source.stat()
        if hasattr(os, "chown") and (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(OSError):
                os.chown(target, status.st_uid, status.st_gid)
        target.chmod(stat.S_IMODE(status.st_mode))
        for name in os.listxattr(source) if hasattr(os, "listxattr") else ():
            with contextlib.suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name))


def may_give_away(path: Path) -> bool:
    """Whether a file that this process makes can get the owner of the one at `path`. Raises OSError."""
    return not hasattr(os, "geteuid") or os.geteuid() in (0, path.stat().st_uid)


def _signal_reaches(pid: int) -> bool:
    if os.name == "nt":
        return True  # signal 0 would end the process there
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _ended(pid: int) -> bool:
    fields = _stat_fields(pid)
    return fields is not None and fields[:1] in (["Z"], ["X"])


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


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


def machine_memory() -> int | None:
    """Bytes of main memory of this machine, or of the container it runs in; None where the system does not say."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    with contextlib.suppress(OSError, ValueError):
        return min(machine, int(_CONTAINER_MEMORY.read_text(encoding="ascii", errors="replace")))
    return machine
