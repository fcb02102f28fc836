"""A whole store looked through: hashes, pointers, manifest, database, leftovers; and what can be mended, mended."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dlm_tui.counting import counted
from dlm_tui.files import is_abandoned, remove
from dlm_tui.files import set_aside as set_file_aside
from dlm_tui.small_files import MOVE_AWAY
from dlm_tui.store.adapter_history import (
    HISTORY,
    history_damage,
    is_whole,
    set_aside_histories,
    unknown_marks,
    use_versions,
)
from dlm_tui.store.checkpoints import FOLDER, are_over, damaged_checkpoints, forget_checkpoints, goes_on, interrupted
from dlm_tui.store.errors import REMEDY, ManifestError, MetricsError, StoreError
from dlm_tui.store.former_gates import damaged_gates
from dlm_tui.store.gate_files import AGAIN, check_gate_files, check_novelty_file, read_gate_config
from dlm_tui.store.journal import pending
from dlm_tui.store.layout import FLAT, Store, utc_seconds
from dlm_tui.store.litter import dead_runs, dead_versions, end_dead_runs
from dlm_tui.store.locks import LOCKS, TRAINING, held_elsewhere, lock_holder, odd_lock, store_lock, strange_locks
from dlm_tui.store.manifest import Manifest, TrainingRun, read_lock_record, read_manifest, update_manifest
from dlm_tui.store.metrics_reader import MetricsReader
from dlm_tui.store.metrics_schema import ADDITIVE_TABLES, SHARED_TABLES
from dlm_tui.store.metrics_writer import MetricsWriter
from dlm_tui.store.owed import owed_by_training
from dlm_tui.store.run_lock import run_lock
from dlm_tui.store.scratch import dead_scratch
from dlm_tui.store.sqlite import open_for_writing, set_aside
from dlm_tui.store.version_record import (
    RECORD_NAME,
    WHOLE_BESIDE,
    AdapterVersion,
    claim_of,
    damage,
    forget_file,
    is_kept,
    last_good_version,
    only_record,
    read_record,
    set_aside_records,
)
from dlm_tui.store.versions import (
    adapter_versions,
    all_versions,
    current_version,
    stored_adapters,
    trained_without_manifest,
)
from dlm_tui.system_errors import system_sentence

Severity = Literal["damage", "litter", "note"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence about a store. "damage" is wrong, "litter" can go, "note" is for a person to know.

    `mend` mends it, None where only a person can; `text` then says how.
    """

    severity: Severity
    text: str
    mend: Callable[[], None] | None = None


def examine(
    store: Store, names: Sequence[str], base_model: str | None = None, *, checkpoints: bool = True
) -> list[Finding]:
    """What is wrong with a store, what is left over in it, and what is worth knowing; reads only.

    `names` are the adapters that the document declares, `base_model` is its base; `checkpoints` asks also what an
    interrupted training left. Never raises for what it finds.
    """
    if not store.root.is_dir():
        return []
    found: list[Finding] = []
    for look in (*_LOOKS, _checkpoints) if checkpoints else _LOOKS:
        try:
            found += look(store, tuple(names) or (FLAT,), base_model)
        except (StoreError, OSError) as error:
            if _said(error) not in {finding.text for finding in found}:
                found.append(Finding(severity="damage", text=str(error).removesuffix(REMEDY)))
    return found


def repair(store: Store, names: Sequence[str], base_model: str | None = None) -> list[str]:
    """Mend what can be mended while holding the store and the right to train; returns what was done, one sentence each.

    Raises LockHeld while somebody trains or commits.
    """
    done: list[str] = []
    for finding in examine(store, names, base_model):  # the lock itself stands before everything else
        if finding.mend is not None and finding.text.startswith((str(store.lock_path), str(store.cache_dir / LOCKS))):
            finding.mend()
            done.append(finding.text)
    with run_lock(store, clear=False):
        for _ in range(3):  # a mended manifest shows what is wrong with a pointer
            mendable = [finding for finding in examine(store, names, base_model) if finding.mend is not None]
            for finding in mendable:
                try:
                    finding.mend()  # type: ignore[misc]
                except (StoreError, OSError) as error:
                    done.append(f"{finding.text} (not mended: {system_sentence(error) or error})")
                else:
                    done.append(finding.text)
            if not mendable:
                break
    return done


def _said(error: Exception) -> str:
    """The error without its remedy, which is this module, also where a person could do it."""
    text = str(error).removesuffix(REMEDY)
    return text.replace(f"{MOVE_AWAY}.", ".") if text.endswith(f"{MOVE_AWAY}.") else text


def _lock(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    for strange, sentence in strange_locks(store):
        yield Finding(severity="damage", text=f"{sentence}.", mend=partial(_aside, strange))
    path = store.lock_path
    if what := odd_lock(path):
        text = f"{path} is {what} and no lock, so that nobody can hold the store."
        yield Finding(severity="damage", text=text, mend=lambda: _aside(path))
        return
    holder = lock_holder(store)
    if holder == "living":
        yield Finding(severity="note", text=f"{store.lock_path}: the store is in use right now.")
    elif holder == "unknown":
        text = f"{store.lock_path} cannot be judged; unless another program uses this store, it can be deleted."
        yield Finding(severity="damage", text=text, mend=_remover(store.lock_path))


def _journal(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    if pending(store):

        def finish() -> None:
            with store_lock(store, 10.0):
                pass

        text = f"{store.root}: a change of several files was cut short and waits to be finished."
        yield Finding(severity="damage", text=text, mend=finish)


def _manifest(store: Store, names: Sequence[str], base_model: str | None) -> Iterator[Finding]:
    mend = (lambda: _new_manifest(store, names, base_model)) if base_model else None
    try:
        read_manifest(store)
    except ManifestError as error:
        yield Finding(severity="damage", text=_said(error), mend=mend)
    if missing := trained_without_manifest(store):
        yield Finding(severity="damage", text=missing, mend=mend)
    try:
        read_lock_record(store)
    except ManifestError as error:
        path = store.lock_record_path
        yield Finding(severity="damage", text=_said(error), mend=lambda: _aside(path))


def _adapters(store: Store, names: Sequence[str], _: str | None) -> Iterator[Finding]:
    for name in dict.fromkeys((*names, *stored_adapters(store))):
        try:
            version = adapter_versions(store, [name]).get(name)
        except ManifestError:
            return  # said already
        except StoreError as error:
            good = _recorded_or_good(store, name)
            if good is None:
                yield Finding(severity="damage", text=f"{error} No version of {name!r} is sound: train it again.")
            else:
                yield Finding(severity="damage", text=_said(error), mend=_user(store, name, good))
            continue
        if version is None:
            continue
        try:
            damaged, applied = damage(version, all_files=True), damage(version)
        except StoreError as error:
            yield Finding(severity="damage", text=str(error))
            continue
        if only_record(damaged):
            yield _damaged_record("damage", version, damaged)
            continue
        for file, text in damaged.items():
            good = last_good_version(store, name, below=version.version)
            if file not in applied:
                text = f"{text}; it is not used when the adapter is applied."
                yield Finding(severity="damage", text=text, mend=_forgetter(version, file))
            elif good is None:
                yield Finding(severity="damage", text=f"{text}; no older version is sound: train {name!r} again.")
            else:
                text = f"{text}; version {good} is the last good one."
                yield Finding(severity="damage", text=text, mend=_user(store, name, good))
                break


def _other_versions(store: Store, names: Sequence[str], _: str | None) -> Iterator[Finding]:
    dead = {version.path for version in dead_versions(store)}
    for name in dict.fromkeys((*names, *stored_adapters(store))):
        current = None
        with contextlib.suppress(StoreError):
            current = current_version(store, name)
        for version in all_versions(store, name):
            if version.path in dead or (current is not None and version.version == current.version):
                continue
            if not any(version.path.iterdir()):
                yield Finding(severity="litter", text=f"{version.path} is empty.", mend=_remover(version.path))
            elif read_record(version.path) is not None or _is_filled(version.path):
                newer = current is None or version.version > current.version
                yield from _other_version(store, version, newer)


def _other_version(store: Store, version: AdapterVersion, newer: bool) -> Iterator[Finding]:
    """What is wrong with a version that is not in force; of a sound one, how it comes there, where somebody may miss
    it."""
    try:
        damaged, applied = damage(version, all_files=True), damage(version)
    except StoreError as error:
        yield Finding(severity="note", text=f"{str(error).removesuffix('.')}; it is not in force.")
        return
    if only_record(damaged):
        yield _damaged_record("note", version, damaged)
        return
    if applied:
        worst = next(iter(applied.values()))
        drop = f"`dlm-tui adapter drop DOC {version.name} --version {version.version}` deletes it."
        remedy = f": {drop}" if (version.path / "adapter_config.json").is_file() else "."
        yield Finding(severity="note", text=f"{worst}; it is not in force and cannot be put there{remedy}")
        return
    for text in damaged.values():
        yield Finding(severity="note", text=f"{text}; it is not used when the adapter is applied.")
    record = read_record(version.path)
    claim = claim_of(record) if record is not None else None
    if claim is not None and goes_on(store, version.name, claim):
        return  # its training makes it again, which is said
    trained = record is not None and record["state"] == "trained" and newer
    if (trained or is_kept(version.path)) and is_whole(store, version.path):
        use = f"`dlm-tui adapter use DOC {version.name} --version {version.version}` puts it there."
        yield Finding(severity="note", text=f"{version.path} was trained and is not in force: {use}")


def _damaged_record(severity: Severity, version: AdapterVersion, damaged: Mapping[str, str]) -> Finding:
    """Without the record the version is one as other tools write it."""
    text = f"{damaged[RECORD_NAME]}; {WHOLE_BESIDE}, and can be used without it."
    return Finding(severity=severity, text=text, mend=_forgetter(version, RECORD_NAME))


def _is_filled(folder: Path) -> bool:
    """Whether a version of another tool, which may be writing it right now, has its weights."""
    return (folder / "adapter_model.safetensors").is_file()


def _history(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    if damage := history_damage(store):
        path = store.adapters_dir / HISTORY
        yield Finding(severity="damage", text=f"{damage} Which versions are kept is in it.", mend=lambda: _aside(path))
    for aside in set_aside_histories(store):
        yield Finding(severity="damage", text=unknown_marks(aside))


def _gate(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    try:
        config = read_gate_config(store)
        if config is not None:
            check_gate_files(store, config)
        check_novelty_file(store)
    except StoreError as error:
        again = "" if "train the gate again" in str(error) else " Train the gate again (train --gate-only)."
        yield Finding(severity="damage", text=f"{error}{again}")


def _former_gates(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    for what in damaged_gates(store):
        yield Finding(severity="note", text=f"{what.removesuffix(AGAIN).removesuffix('.')}; that gate is not in force.")


def _metrics(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    problems = MetricsReader(store).problems()
    if problems:
        text = f"{store.metrics_path} is damaged: {problems[0].removesuffix(MOVE_AWAY)}"
        yield Finding(severity="damage", text=text, mend=lambda: _salvage(store.metrics_path))
    elif lost := _lost_runs(store):
        numbers = ", ".join(str(run.run_id) for run in lost)
        text = f"{store.metrics_path} has lost {counted(len(lost), 'run')} of {store.manifest_path.name}: {numbers}."
        yield Finding(severity="damage", text=text, mend=lambda: _record_again(store, lost))


def _set_aside(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    versions = [version.path for name in (FLAT, *stored_adapters(store)) for version in all_versions(store, name)]
    said = set_aside_histories(store)
    for aside in (aside for folder in versions for aside in set_aside_records(folder)):
        said.append(aside)
        text = f"{aside} was damaged and set aside; `dlm-tui adapter prune` leaves its version, which may be kept."
        yield Finding(severity="note", text=text)
    for folder in (store.root, store.adapters_dir, store.queue_dir, *versions):
        for aside in sorted(set(folder.glob("*.damaged*")).difference(said)):
            yield Finding(severity="note", text=f"{aside} was damaged and set aside; nothing reads it.")


def _litter(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    for path in dead_scratch(store):
        if not is_abandoned(path.name):
            continue  # being written right now
        yield Finding(severity="litter", text=f"{path} is left of a process that ended.", mend=_remover(path))
    for version in dead_versions(store):
        text = f"{version.path} is left of a training that was killed."
        yield Finding(severity="litter", text=text, mend=_remover(version.path))
    runs: list[int] = []
    with contextlib.suppress(MetricsError):  # said already
        runs = dead_runs(store)
    if runs:
        listed = ", ".join(str(run) for run in runs)
        text = f'Runs {listed} say "running", and their process has ended.'
        yield Finding(severity="litter", text=text, mend=lambda: end_dead_runs(store))


def _checkpoints(store: Store, _: Sequence[str], __: str | None) -> Iterator[Finding]:
    if held_elsewhere(store, TRAINING):
        return  # being written right now
    if are_over(store):
        text = f"{store.root / FOLDER} is left of a training that was killed when its adapters were in force."
        yield Finding(severity="litter", text=text, mend=lambda: forget_checkpoints(store))
    for one in damaged_checkpoints(store):
        yield Finding(severity="damage", text=f"{one.damage}; {one.then}.", mend=_remover(one.path))
    if (left := interrupted(store)) is not None:
        text = f"A training was interrupted ({left.words}): `dlm-tui train DOC --resume` goes on with it."
        yield Finding(severity="note", text=text)
    elif (owed := owed_by_training(store)) is not None:
        what = "The gate of the last training is not trained" if owed.gate else ""
        names = ", ".join(owed.effects)
        what = what or f"The effect of the last training is not measured ({names})"
        does = "trains it" if owed.gate else "measures it"
        yield Finding(severity="note", text=f"{what}: `dlm-tui train DOC --resume` {does}.")


_LOOKS = (
    _lock,
    _journal,
    _manifest,
    _adapters,
    _other_versions,
    _history,
    _gate,
    _former_gates,
    _metrics,
    _litter,
    _set_aside,
)


def _recorded_or_good(store: Store, name: str) -> int | None:
    """The version that the manifest says is in force if it is sound, else the newest sound one."""
    manifest = read_manifest(store)
    if manifest is not None:
        recorded = manifest.adapter_version if name == FLAT else manifest.adapter_versions.get(name, 0)
        good = last_good_version(store, name, below=recorded + 1) if recorded else None
        if good is not None:
            return good
    return last_good_version(store, name)


def _user(store: Store, name: str, number: int) -> Callable[[], None]:
    def use() -> None:
        use_versions(store, {name: number}, "repair")

    return use


def _forgetter(version: AdapterVersion, name: str) -> Callable[[], None]:
    """What can be missing is set aside, and the version is what is left of it."""

    def forget() -> None:
        path = version.path / name
        if os.path.lexists(path):
            _aside(path)
        forget_file(version, name)

    return forget


def _remover(path: Path) -> Callable[[], None]:
    return lambda: remove(path)


def _aside(path: Path) -> None:
    if set_file_aside(path) is None:
        raise StoreError(f"{path} cannot be renamed.")


def _new_manifest(store: Store, names: Sequence[str], base_model: str | None) -> None:
    """Set the damaged one aside and write what pointers and metrics know."""
    if os.path.lexists(store.manifest_path):
        _aside(store.manifest_path)
    reader = MetricsReader(store)

    def record(manifest: Manifest) -> None:
        for name in dict.fromkeys((*names, *stored_adapters(store))):
            with contextlib.suppress(StoreError):
                version = current_version(store, name)
                if version is not None and name == FLAT:
                    manifest.adapter_version = version.version
                elif version is not None:
                    manifest.adapter_versions[name] = version.version
        for row in reversed(reader.runs(limit=None)):
            if row["status"] == "ok" and row["phase"] != "gate" and row["adapter_version"]:
                trained = reader.run_extras(row["run_id"]).get("adapter_name")
                manifest.training_runs.append(
                    TrainingRun(
                        run_id=row["run_id"],
                        started_at=str(row["started_at"]).removesuffix("Z"),
                        ended_at=str(row["ended_at"] or utc_seconds()).removesuffix("Z"),
                        adapter_version=row["adapter_version"],
                        seed=row["seed"] or 0,
                        steps=len(reader.steps(row["run_id"])),
                        status="completed",
                        adapter_name=None if trained == FLAT else trained,
                    )
                )

    update_manifest(store, record, base_model=base_model)


def _lost_runs(store: Store) -> list[TrainingRun]:
    """Runs of the manifest that the database does not know; [] where the manifest cannot be read, which is said."""
    try:
        manifest = read_manifest(store)
    except ManifestError:
        return []
    known = {row["run_id"] for row in MetricsReader(store).runs(limit=None)}
    return [run for run in (manifest.training_runs if manifest else ()) if run.run_id not in known]


def _record_again(store: Store, runs: Sequence[TrainingRun]) -> None:
    """A row for each of the runs, from the manifest: their curves are gone."""
    with MetricsWriter(store) as metrics:
        for run in runs:
            metrics.restore_run(run)


def _salvage(path: Path) -> None:
    """A new database with every row of the damaged one that SQLite can still read."""
    aside = set_aside(path)
    target = open_for_writing(path, SHARED_TABLES + ADDITIVE_TABLES)
    try:
        target.execute("PRAGMA foreign_keys = OFF")
        tables = [row[0] for row in target.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        for table in tables:
            if not table.startswith("sqlite_"):
                _copy_rows(aside, target, table)
    finally:
        target.close()


def _copy_rows(source: Path, target: sqlite3.Connection, table: str) -> None:
    if not source.is_file():
        return
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(source)) as damaged:
        damaged.text_factory = lambda data: data.decode("utf-8", "replace")
        for row in damaged.execute(f'SELECT * FROM "{table}"'):
            with contextlib.suppress(sqlite3.Error):
                target.execute(f'INSERT OR IGNORE INTO "{table}" VALUES ({", ".join("?" * len(row))})', row)
