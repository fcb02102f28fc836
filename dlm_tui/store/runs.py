"""Numbering runs."""

from __future__ import annotations

from dlm_tui.store.layout import Store
from dlm_tui.store.manifest import read_manifest
from dlm_tui.store.metrics_reader import MetricsReader


def next_run_id(store: Store) -> int:
    """1 + the highest run id of the manifest and of the metrics, so that no id means two runs."""
    manifest = read_manifest(store)
    recorded = max((run.run_id for run in manifest.training_runs), default=0) if manifest else 0
    return 1 + max(recorded, MetricsReader(store).highest_run_id())
