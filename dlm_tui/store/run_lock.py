"""One training per store at a time, and what killed ones left is cleared before the next begins."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from dlm_tui.small_files import read_head
from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import Store
from dlm_tui.store.litter import clear_dead_versions
from dlm_tui.store.locks import LOCKS, TRAINING, named_lock, store_lock

_PROBE_SECONDS = 4.0
_HOLDER = "train.holder"


@contextlib.contextmanager
def run_lock(store: Store, *, clear: bool = True) -> Iterator[None]:
    """Hold the right to train while the block runs; it dies with its holder. Raises LockHeld at once if another has it.

    `clear` away what killed trainings left, unless the block does so itself.

    What stands in the way of the commit at the end is said now: raises LockHeld or LockStale for a store lock that
    cannot be had.
    """
    with named_lock(store, TRAINING, 0.0, _held_sentence):
        _note_holder(store)
        with store_lock(store, _PROBE_SECONDS):
            if clear:
                clear_dead_versions(store)
        yield


def may_train(store: Store) -> bool:
    """Whether a training could begin now: nobody holds the right, and it can be had."""
    try:
        with named_lock(store, TRAINING, 0.0):
            return True
    except StoreError:
        return False


def _note_holder(store: Store) -> None:
    """Leave a word for others; the lock itself is the kernel's, so that this may be missing or old."""
    words = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%H:%M')}"
    with contextlib.suppress(OSError):
        (store.cache_dir / LOCKS / _HOLDER).write_text(words, encoding="utf-8")


def training_elsewhere(store: Store) -> str:
    """`another run is training this document (process 12 on host, since 09:15)`, for whom the run lock keeps out."""
    try:
        words = read_head(store.cache_dir / LOCKS / _HOLDER, 200).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        words = ""
    return "another run is training this document" + (f" ({words})" if words.isprintable() and words else "")


def _held_sentence(store: Store) -> str:
    return f"{training_elsewhere(store)}; wait for it or cancel it"
