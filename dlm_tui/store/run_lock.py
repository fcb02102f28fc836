"""One training per store at a time, and what killed ones left is cleared before the next begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dlm_tui.store.layout import Store
from dlm_tui.store.litter import clear_dead_versions
from dlm_tui.store.locks import named_lock, store_lock

_PROBE_SECONDS = 4.0


@contextlib.contextmanager
def run_lock(store: Store) -> Iterator[None]:
    """Hold the right to train while the block runs; it dies with its holder. Raises LockHeld at once if another has it.

    What stands in the way of the commit at the end is said now: raises LockHeld or LockStale for a store lock that
    cannot be had.
    """
    with named_lock(store, "train", 0.0, lambda _: "another run is training this document; wait for it or cancel it"):
        with store_lock(store, _PROBE_SECONDS):
            clear_dead_versions(store)
        yield
