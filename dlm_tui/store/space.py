"""Whether the disk has room, asked before work that would fail on it after minutes."""

from __future__ import annotations

import shutil

from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import Store

LEAST_FREE = 16 << 20
"""Bytes that a training of the smallest base may write beside its adapters: metrics, gate, cached embeddings."""


def refuse_full_disk(store: Store) -> None:
    """Raises StoreError naming the folder when less is free than the adapters of now take twice, and `LEAST_FREE`."""
    folder = store.root
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
        adapters = sum(path.stat().st_size for path in store.root.glob("adapter/**/*.safetensors"))
    except OSError:
        return  # a disk that does not tell refuses by itself
    need = LEAST_FREE + 2 * adapters
    if free < need:
        raise StoreError(
            f"only {free >> 20} MiB are free in {folder}, and a training may write {need >> 20} MiB: "
            "make room, or let --home or DLM_HOME name another disk"
        )
