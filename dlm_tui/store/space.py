"""Whether the disk has room, asked before work that would fail on it after minutes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from dlm_tui.store.errors import StoreError
from dlm_tui.store.layout import Store
from dlm_tui.store.versions import current_version

LEAST_FREE, LEAST_FOR_GATE = 16 << 20, 1 << 20
"""Bytes that a training of the smallest base may write beside its adapters (metrics, gate, cached embeddings, the
tokenizer), and one of the gate alone."""


def refuse_full_disk(store: Store, names: Sequence[str], *, gate_only: bool = False) -> None:
    """Raises StoreError naming the folder when less is free than a training of these adapters may write: what those in
    force take twice, and `LEAST_FREE`."""
    folder = store.root
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free
        adapters = 0 if gate_only else sum(_weights(store, name) for name in names)
    except (OSError, StoreError):
        return  # a disk that does not tell refuses by itself
    need = LEAST_FOR_GATE if gate_only else LEAST_FREE + 2 * adapters
    if free < need:
        raise StoreError(
            f"only {free >> 20} MiB are free in {folder}, and a training may write {need >> 20} MiB: "
            "make room, or let --home or DLM_HOME name another disk"
        )


def _weights(store: Store, name: str) -> int:
    version = current_version(store, name)
    return sum(path.stat().st_size for path in version.path.glob("*.safetensors")) if version is not None else 0
