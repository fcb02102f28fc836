"""What killed trainings leave: version folders that nothing refers to, and rows that say "running"."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from dlm_tui.files import is_abandoned, remove
from dlm_tui.store.checkpoints import are_over, forget_checkpoints, goes_on
from dlm_tui.store.errors import StoreError
from dlm_tui.store.former_gates import run_of_gate
from dlm_tui.store.layout import FLAT, Store
from dlm_tui.store.manifest import read_manifest
from dlm_tui.store.metrics_reader import MetricsReader
from dlm_tui.store.metrics_writer import MetricsWriter
from dlm_tui.store.process import life_of_writer
from dlm_tui.store.version_record import RECORD_NAME, AdapterVersion, claim_of, read_record, writer_is_dead
from dlm_tui.store.versions import all_versions, current_version, stored_adapters

_log = logging.getLogger(__name__)


def clear_dead_versions(store: Store) -> None:
    """Remove folders of killed trainings and what is over of them, and end their runs; the caller holds store and run
    lock."""
    if are_over(store):
        forget_checkpoints(store)
    for version in dead_versions(store):
        remove(version.path)
    try:
        end_dead_runs(store)
    except StoreError as error:
        _log.warning("%s", error)


def clear_earlier_try(store: Store, name: str, fingerprint: str) -> None:
    """Remove the version that a dead or failed run of this very training finished and did not put in force.

    Its checkpoints make it again, under the same number; the caller holds the run lock.
    """
    if not goes_on(store, name, fingerprint):
        return
    try:
        current = current_version(store, name)
    except StoreError:
        return  # nothing can be proved
    for version in all_versions(store, name):
        record = read_record(version.path)
        in_force = current is not None and version.version == current.version
        if record is None or in_force or claim_of(record) != fingerprint:
            continue
        if record["state"] == "kept" or writer_is_dead(store, record):
            remove(version.path)


def dead_versions(store: Store) -> Iterator[AdapterVersion]:
    """Versions whose own record says that they are the remains of a training: a dead process was filling them, or its
    claim on them stands (`version_record`) and a newer version is in force.

    What was in force once, imported, or kept has no such record.
    """
    for name in (FLAT, *stored_adapters(store)):
        try:
            current = current_version(store, name)
        except StoreError:
            continue
        for version in all_versions(store, name):
            record = read_record(version.path)
            if record is None and _never_begun(version):
                yield version
            if record is None or (current is not None and version.version == current.version):
                continue
            overtaken = current is not None and version.version < current.version
            given_up = record["state"] == "trained" and claim_of(record) is not None and overtaken
            if (record["state"] == "filling" or given_up) and writer_is_dead(store, record):
                yield version


def dead_runs(store: Store) -> list[int]:
    """Ids of runs that say "running" and whose process ran on this host and has ended."""
    holders = MetricsReader(store).running_holders()
    return [run_id for run_id, holder in holders.items() if life_of_writer(holder) == "ended"]


def end_dead_runs(store: Store) -> None:
    """Runs of dead processes that still say "running" are ended: "ok" when the manifest has them or they trained the
    gate in force, else "failed"."""
    dead = dead_runs(store)
    if not dead:
        return
    manifest = read_manifest(store)
    finished = {run_of_gate(store), *(run.run_id for run in (manifest.training_runs if manifest else ()))}
    with MetricsWriter(store) as metrics:
        for run_id in dead:
            metrics.finish_run(run_id, "ok" if run_id in finished else "failed")


def _never_begun(version: AdapterVersion) -> bool:
    """Whether all that is there is the scratch of a record that a dead process was writing."""
    try:
        paths = list(version.path.iterdir())
    except OSError:
        return False
    return bool(paths) and all(
        path.name.startswith(f"{RECORD_NAME}.tmp.") and is_abandoned(path.name) for path in paths
    )
