"""Who may change a store: the short store lock, and named ones (`run_lock` is that of a training).

The store lock has two layers. A kernel lock (freed by the kernel when its holder dies) orders processes of
ours, so that only one at a time judges and replaces a leftover `.lock` of formats §13.3. The `.lock` file
itself is what other tools look at; it is created whole by linking a finished file into place, so nobody ever
sees half of it. The second name of that file, `.lock.tui`, marks it as ours: whoever has the kernel lock and
finds it knows, without clocks or process ids, that its writer is dead. For the `.lock` of another tool the
process id must be gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Literal

from dlm_tui.platform import lock_is_held
from dlm_tui.small_files import MOVE_AWAY, read_head
from dlm_tui.store.errors import LockHeld, LockStale, StoreError
from dlm_tui.store.journal import recover
from dlm_tui.store.layout import Store
from dlm_tui.store.process import holder_lives, written_on
from dlm_tui.store.scratch import clear_scratch
from dlm_tui.system_errors import cause

_POLL_SECONDS = 0.05
_UNJUDGED_SECONDS = 3.0
TRAINING = "train"
"""The name of the lock that whoever trains the store's document holds."""
_named: set[Path] = set()
_held: dict[Path, tuple[int, int]] = {}
_held_guard = threading.Lock()


@contextlib.contextmanager
def store_lock(store: Store, timeout: float = 0.0) -> Iterator[None]:
    """Hold the store while the block runs, waiting at most `timeout` seconds for it.

    The same thread may enter again. Raises LockHeld when a living process (or another thread) has it,
    LockStale when a leftover cannot be judged: it is never stolen from anybody who may still live. A leftover
    of a dead process of this host is replaced. Whoever comes in finishes what a killed holder began (`journal`) and
    clears its scratch files. Hold it for a commit, never for a computation.
    """
    try:
        store.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        store.refuse_unwritable()
        raise StoreError(f"The store {store.root} cannot be created: {cause(error)}.") from error
    key = store.root.resolve()
    thread = threading.get_ident()
    with _held_guard:
        owner, depth = _held.get(key, (thread, 0))
        again = depth > 0 and owner == thread
        if again:
            _held[key] = (thread, depth + 1)
    if again:
        try:
            yield
        finally:
            with _held_guard:
                _held[key] = (thread, _held[key][1] - 1)
        return
    deadline = time.monotonic() + max(0.0, timeout)
    with (
        named_lock(store, "store", timeout, _held_sentence),
        _lock_file(store.lock_path, deadline),
    ):
        with _held_guard:
            _held[key] = (thread, 1)
        try:
            recover(store)
            clear_scratch(store)
            yield
        finally:
            with _held_guard:
                _held.pop(key, None)


LOCKS = "tui_locks"
"""The folder of a store's kernel locks, in its cache."""


@contextlib.contextmanager
def named_lock(
    store: Store, name: str, timeout: float, sentence: Callable[[Store], str] | None = None
) -> Iterator[None]:
    """A kernel lock of ours on `cache/tui_locks/<name>.lock`; waits at most `timeout` seconds.

    Raises LockHeld with `sentence(store)`, StoreError where nothing can be written in the store, or when the lock file
    cannot be made.
    """
    held = (lambda: sentence(store)) if sentence else None
    path = _path_of(store, name)
    with file_lock(path, timeout, held, store.refuse_unwritable):
        _named.add(path.resolve())
        try:
            yield
        finally:
            _named.discard(path.resolve())


def is_locked(store: Store, name: str) -> bool:
    """Whether somebody holds `named_lock(store, name)`. Nothing is written for it but where a lock file can be made and
    the system has no other way to ask."""
    held = lock_is_held(_path_of(store, name))
    if held is not None:
        return held
    try:
        with named_lock(store, name, 0.0):
            return False
    except LockHeld:
        return True


def held_elsewhere(store: Store, name: str) -> bool:
    """Whether another process holds `named_lock(store, name)`."""
    return _path_of(store, name).resolve() not in _named and is_locked(store, name)


def _path_of(store: Store, name: str) -> Path:
    return store.cache_dir / LOCKS / f"{name}.lock"


def strange_locks(store: Store) -> list[tuple[Path, str]]:
    """What has the place of the folder of kernel locks or of a lock in it and is none, with a sentence about it."""
    folder = store.cache_dir / LOCKS
    if what := _stranger(folder, "folder"):
        return [(folder, what)]
    found = sorted(path for path in folder.glob("*.lock") if "." not in path.stem) if folder.is_dir() else []
    return [(path, what) for path in found if (what := _stranger(path, "file"))]


def _stranger(path: Path, noun: str) -> str | None:
    """A sentence, without its full stop, on a path that is no such `noun`: a folder, or a file that is no link."""
    try:
        mode = (path.stat() if noun == "folder" and path.exists() else path.lstat()).st_mode
    except OSError:
        return None
    kinds = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFREG: "file"}
    kind = kinds.get(stat.S_IFMT(mode), "pipe or device")
    return None if kind == noun else f"{path} is a {kind} and no {noun} for locks"


@contextlib.contextmanager
def file_lock(
    path: Path,
    timeout: float,
    sentence: Callable[[], str] | None = None,
    refuse: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """A kernel lock of ours on the file `path`, which is made where it is not; waits at most `timeout` seconds.

    Raises LockHeld with `sentence()`, StoreError when the lock file cannot be made, or what `refuse()` raises then.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=max(0.0, timeout), poll_interval=_POLL_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise LockHeld(sentence() if sentence else f"{path} is held by another process; try again.") from None
    except OSError as error:
        refuse()
        for place, noun in ((path.parent, "folder"), (path, "file")):
            if strange := _stranger(place, noun):
                raise StoreError(f"{strange}{MOVE_AWAY}.") from error
        raise StoreError(f"{path} cannot be locked: {cause(error)}.") from error
    try:
        yield
    finally:
        lock.release()


def odd_lock(path: Path) -> str | None:
    """What has the place of a lock file and is none, as in `a folder`; None for a file, and where nothing is."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere" if path.is_symlink() else None
    if stat.S_ISREG(mode):
        return None
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"


def lock_holder(store: Store) -> Literal["nobody", "living", "unknown"]:
    """Whether somebody has the store, without taking it; a leftover that the next one replaces is nobody.

    What is no file (`odd_lock`) is nobody's either.
    """
    if odd_lock(store.lock_path):
        return "nobody"
    content = _content(store.lock_path)
    if content is None:
        return "nobody"
    lives = _holder_lives(store.lock_path, content) if content else None
    if lives is False and holder_lives(content, socket.gethostname()):
        lives = True  # marked as ours, and its process is there: it holds it right now
    return "nobody" if lives is False else "living" if lives else "unknown"


@contextlib.contextmanager
def _lock_file(path: Path, deadline: float) -> Iterator[None]:
    standing: tuple[bytes, float] | None = None  # what cannot be judged, and since when it has stood there
    while True:
        try:
            mine = _create(path)
            break
        except FileExistsError:
            if what := odd_lock(path):
                raise StoreError(
                    f"{path} is {what} and no lock, so that nobody can hold the store; "
                    "`dlm-tui doctor DOC --repair` sets it aside."
                ) from None
            content = _content(path)
            verdict = None if content is None else _holder_lives(path, content)
            if content is not None and verdict is False:
                _remove_leftover(path, content)
                continue
            now = time.monotonic()
            if content is None or verdict:
                standing = None
            elif standing is None or standing[0] != content:
                standing = (content, now)
            # Another host's commit is over long before this, and so is the moment in which a `.lock` is empty.
            waited = standing is not None and now >= standing[1] + _UNJUDGED_SECONDS
            if waited or (now >= deadline and standing is not None and standing[0]):
                raise LockStale(
                    f"{path} cannot be judged; if no other program uses this store, delete that file."
                ) from None
            if now >= deadline:
                raise LockHeld(_held_sentence_of(path)) from None
            time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        if _content(path) == mine:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            _mark(path).unlink()


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.tui")


def _holder_lives(path: Path, content: bytes) -> bool | None:
    if written_on(content, socket.gethostname()):
        with contextlib.suppress(OSError):
            if path.samefile(_mark(path)):
                return False
    return holder_lives(content, socket.gethostname())


def _create(path: Path) -> bytes:
    """Put a complete `.lock` in place or raise FileExistsError; returns its bytes."""
    content = f"{os.getpid()}\n{socket.gethostname()}\n{time.time():.6f}\n".encode()
    scratch = path.with_name(f"{path.name}.tmp.{os.getpid()}.{token_hex(4)}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.link(scratch, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be created: {cause(error)}.") from error
    else:
        # Without the mark a leftover is judged by its process id alone, so failing to set it is no failure.
        with contextlib.suppress(OSError):
            scratch.replace(_mark(path))
    finally:
        scratch.unlink(missing_ok=True)
    return content


def _remove_leftover(path: Path, judged: bytes) -> None:
    """Remove the file that was judged dead, and only that one.

    Moved aside first and compared: if somebody replaced it meanwhile, theirs is put back.
    """
    aside = path.with_name(f"{path.name}.stale.{os.getpid()}.{token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _content(aside) != judged:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _content(path: Path) -> bytes | None:
    try:
        return read_head(path, 1024)
    except OSError:
        return None


def _held_sentence(store: Store) -> str:
    return _held_sentence_of(store.lock_path)


def _held_sentence_of(path: Path) -> str:
    content = _content(path)
    if content is None and path.exists():
        return f"{path} cannot be read, so nobody can tell who has the store; look after its owner and permissions."
    lines = (content or b"").decode("utf-8", "replace").split("\n")
    who = f" by process {lines[0]} on {lines[1]}" if len(lines) >= 2 and lines[0].isdecimal() else ""
    return f"The store {path.parent} is in use{who}; wait for it to finish and try again."
