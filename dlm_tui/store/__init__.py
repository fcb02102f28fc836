"""The per-document store: paths, versions, manifest, locks, logs, gate files, metrics. No torch here."""

from __future__ import annotations

from dlm_tui.store.errors import (
    GateFileError,
    LockHeld,
    LockStale,
    ManifestError,
    MetricsError,
    PointerError,
    StoreError,
)
from dlm_tui.store.gate_files import (
    GateConfig,
    parse_gate_config,
    read_gate_config,
    read_gate_record,
    write_gate_config,
    write_gate_record,
)
from dlm_tui.store.gate_state import GateState, gate_state
from dlm_tui.store.layout import Store, resolve_home, utc_seconds
from dlm_tui.store.lock import store_lock
from dlm_tui.store.manifest import (
    ExportRecord,
    LockRecord,
    Manifest,
    TrainingRun,
    read_lock_record,
    read_manifest,
    update_manifest,
    write_lock_record,
)
from dlm_tui.store.metrics_reader import GateEvent, GateRun, MetricsReader, weights_entropy
from dlm_tui.store.metrics_writer import MetricsWriter, next_run_id
from dlm_tui.store.run_log import RunLog
from dlm_tui.store.versions import (
    AdapterVersion,
    adapter_versions,
    commit_version,
    current_version,
    latest_version,
    new_version,
    reject_version,
    stored_adapters,
)

__all__ = [
    "AdapterVersion",
    "ExportRecord",
    "GateConfig",
    "GateEvent",
    "GateFileError",
    "GateRun",
    "GateState",
    "LockHeld",
    "LockRecord",
    "LockStale",
    "Manifest",
    "ManifestError",
    "MetricsError",
    "MetricsReader",
    "MetricsWriter",
    "PointerError",
    "RunLog",
    "Store",
    "StoreError",
    "TrainingRun",
    "adapter_versions",
    "commit_version",
    "current_version",
    "gate_state",
    "latest_version",
    "new_version",
    "next_run_id",
    "parse_gate_config",
    "read_gate_config",
    "read_gate_record",
    "read_lock_record",
    "read_manifest",
    "reject_version",
    "resolve_home",
    "store_lock",
    "stored_adapters",
    "update_manifest",
    "utc_seconds",
    "weights_entropy",
    "write_gate_config",
    "write_gate_record",
    "write_lock_record",
]
