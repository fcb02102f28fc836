"""Reading a file of a store that a killed process may have left in the middle of a change."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dlm_tui.store.errors import StoreError
from dlm_tui.store.journal import pending, staged_path
from dlm_tui.store.layout import Store
from dlm_tui.store.locks import store_lock

_WAIT_SECONDS = 2.0


def current_path(store: Store, path: Path) -> Path:
    """Where the content of `path` is: at `path`, or beside it while a change waits that cannot be finished here.

    A change that a killed process left is finished on the way, one that is being made is waited for.
    """
    if not pending(store):
        return path
    with contextlib.suppress(StoreError, OSError), store_lock(store, _WAIT_SECONDS):
        pass
    return staged_path(store, path)
