"""The per-document store: paths, versions, manifest, locks, logs, gate files, metrics. No torch here.

Names load on first use: the manifest needs pydantic, which takes a tenth of a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlm_tui.lazy import load as load_name

if TYPE_CHECKING:
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
    from dlm_tui.store.gate_report import (
        describe_gate,
    )
    from dlm_tui.store.layout import (
        Store,
        resolve_home,
        utc_seconds,
    )
    from dlm_tui.store.lock import (
        store_lock,
    )
    from dlm_tui.store.manifest import (
        ExportRecord,
        LockRecord,
        Manifest,
        TrainingRun,
        read_lock_record,
        read_manifest,
        refuse_foreign_base,
        update_manifest,
        write_lock_record,
    )
    from dlm_tui.store.metrics_reader import (
        GateEvent,
        GateRun,
        MetricsReader,
        weights_entropy,
    )
    from dlm_tui.store.metrics_writer import (
        MetricsWriter,
    )
    from dlm_tui.store.report import (
        show_report,
    )
    from dlm_tui.store.run_log import (
        RunLog,
    )
    from dlm_tui.store.runs import (
        next_run_id,
    )
    from dlm_tui.store.state import (
        GateState,
        gate_state,
    )
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

_HOME = {
    "errors": (
        "GateFileError",
        "LockHeld",
        "LockStale",
        "ManifestError",
        "MetricsError",
        "PointerError",
        "StoreError",
    ),
    "gate_files": (
        "GateConfig",
        "parse_gate_config",
        "read_gate_config",
        "read_gate_record",
        "write_gate_config",
        "write_gate_record",
    ),
    "gate_report": ("describe_gate",),
    "state": (
        "GateState",
        "gate_state",
    ),
    "layout": (
        "Store",
        "resolve_home",
        "utc_seconds",
    ),
    "lock": ("store_lock",),
    "manifest": (
        "ExportRecord",
        "LockRecord",
        "Manifest",
        "TrainingRun",
        "read_lock_record",
        "read_manifest",
        "refuse_foreign_base",
        "update_manifest",
        "write_lock_record",
    ),
    "metrics_reader": (
        "GateEvent",
        "GateRun",
        "MetricsReader",
        "weights_entropy",
    ),
    "metrics_writer": ("MetricsWriter",),
    "report": ("show_report",),
    "run_log": ("RunLog",),
    "runs": ("next_run_id",),
    "versions": (
        "AdapterVersion",
        "adapter_versions",
        "commit_version",
        "current_version",
        "latest_version",
        "new_version",
        "reject_version",
        "stored_adapters",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

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
    "describe_gate",
    "gate_state",
    "latest_version",
    "new_version",
    "next_run_id",
    "parse_gate_config",
    "read_gate_config",
    "read_gate_record",
    "read_lock_record",
    "read_manifest",
    "refuse_foreign_base",
    "reject_version",
    "resolve_home",
    "show_report",
    "store_lock",
    "stored_adapters",
    "update_manifest",
    "utc_seconds",
    "weights_entropy",
    "write_gate_config",
    "write_gate_record",
    "write_lock_record",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _MODULE_OF, name)
