"""Scratch files that killed processes left in a store, cleared by whoever holds it next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from dlm_tui.files import is_abandoned, remove, scratch_pid
from dlm_tui.store.journal import staged_files
from dlm_tui.store.layout import Store

# A process of another host may be writing into a shared cache: its id says nothing here, its age does.
_OLD_SECONDS = 3600.0


def clear_scratch(store: Store) -> None:
    """Remove what nobody can be writing; the caller holds the store."""
    for path in dead_scratch(store):
        remove(path)


def dead_scratch(store: Store) -> Iterator[Path]:
    """Scratch files and folders without a living writer; the caller holds the store."""
    # A store that was being unpacked here, or the one that had its place.
    for path in _scratch_in(store.root.parent):
        if path.name.startswith(f"{store.root.name}.tmp.") and is_abandoned(path.name):
            yield path
    waiting = staged_files(store)
    for folder in _under_the_lock(store):
        # These are written only while the store is held, so whoever wrote them and does not hold it now is dead.
        yield from (path for path in _scratch_in(folder) if path not in waiting)
    for folder in (store.logs_dir, store.queue_dir, *_folders_below(store.cache_dir)):
        for path in _scratch_in(folder):
            if is_abandoned(path.name) and _age(path) > _OLD_SECONDS:
                yield path


def _under_the_lock(store: Store) -> Iterator[Path]:
    yield store.root
    yield store.adapters_dir
    for parent in (store.adapters_dir, store.former_gates_dir):
        with contextlib.suppress(OSError):
            yield from (path for path in parent.iterdir() if _is_folder(path))
    with contextlib.suppress(OSError):  # what was being dropped
        yield from (path / "versions" for path in store.adapters_dir.iterdir() if _is_folder(path / "versions"))


def _scratch_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if scratch_pid(path.name) is not None]
    except OSError:
        return []


def _folders_below(root: Path) -> Iterator[Path]:
    if _is_folder(root):
        yield root
        with contextlib.suppress(OSError):
            yield from (path for path in root.rglob("*") if _is_folder(path))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
