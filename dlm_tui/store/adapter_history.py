"""The versions of every adapter: what is known of each, which is in force, and going back and forward between them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dlm_tui.errors import UsageError
from dlm_tui.files import json_bytes, scratch_sibling, set_aside, write_atomic
from dlm_tui.losses import SFT, Loss, short_unit_of
from dlm_tui.platform import sync_directory
from dlm_tui.small_files import is_no_file, read_file
from dlm_tui.store.adapter_kind import TrainingRecord, read_training_record
from dlm_tui.store.effects import OwnEffect
from dlm_tui.store.errors import REMEDY, PointerError, StoreError
from dlm_tui.store.journal import Change as FileChange
from dlm_tui.store.journal import change
from dlm_tui.store.layout import Store, utc_seconds
from dlm_tui.store.locks import store_lock
from dlm_tui.store.manifest import Manifest, TrainingRun, read_manifest, stage_manifest
from dlm_tui.store.metrics_reader import MetricsReader
from dlm_tui.store.own_hash import OWN_HASH, own_sha256
from dlm_tui.store.owner import claim
from dlm_tui.store.shared_files import freed_bytes
from dlm_tui.store.training_numbers import training_numbers
from dlm_tui.store.version_record import (
    AdapterVersion,
    claim_of,
    end_claim,
    filled_by_others,
    held_by_others,
    is_kept,
    mark_kept,
    may_be_kept,
    read_record,
    verify_version,
)
from dlm_tui.store.versions import (
    current_version,
    existing_versions,
    put_in_force,
    trained_without_manifest,
)
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from dlm_tui.document import Document

HISTORY = "tui_history.json"
_LOCK_SECONDS = 10.0
_MOST_CHANGES = 1000
_EXPORT_MANIFEST = "export_manifest.json"
_log = logging.getLogger(__name__)


class Change(msgspec.Struct, kw_only=True):
    """A moment at which other versions came into force: adapter → (before, after), None where there was none."""

    at: str
    reason: str
    versions: dict[str, tuple[int | None, int | None]]


class _History(msgspec.Struct, kw_only=True):
    kept: dict[str, list[int]] = {}
    changes: list[Change] = []
    effects: dict[str, dict[int, OwnEffect]] = {}
    dropped: dict[str, int] = {}
    """The highest number of each adapter that went with a version that was dropped."""


@dataclass(frozen=True, kw_only=True)
class VersionFacts:
    """One version of one adapter.

    `kind` is how it was trained, in words (`pissa wanda r8 ±2`). `when` is naive UTC; `run_id` the training run it
    came from and `training` the number that a person counts that training by, None for imports. `train_losses` are of
    the end of every phase of its training, in order; `val_loss` is in nats per token. `effect` is what was measured on
    its own sections; `size` the bytes that go with it: files shared with other versions are none of them. `exports` are
    the folders whose export holds this version.
    """

    name: str
    version: int
    path: Path
    in_force: bool
    kept: bool
    when: str | None
    run_id: int | None
    origin: str
    parameterization: str
    kind: str
    rank: int | None
    train_losses: tuple[Loss, ...]
    val_loss: float | None
    effect: OwnEffect | None
    size: int
    exports: tuple[str, ...] = ()
    training: int | None = None

    @property
    def last_loss(self) -> Loss | None:
        """The loss that its training ended with."""
        return self.train_losses[-1] if self.train_losses else None

    @property
    def train_loss(self) -> float | None:
        """The number of `last_loss`."""
        return self.last_loss.value if self.last_loss else None

    @property
    def loss_words(self) -> list[str]:
        """`loss 0.351 nats/token`, `dpo 0.006 nats/pair`, `val 0.923 nats/token`: those that are known."""
        val = [] if self.val_loss is None else [f"val {self.val_loss:.3f} {short_unit_of(SFT)}"]
        return [*(loss.short for loss in self.train_losses), *val]


def version_history(store: Store, names: Sequence[str]) -> dict[str, list[VersionFacts]]:
    """Every finished version of each adapter, oldest first. Raises PointerError and ManifestError for damaged files."""
    manifest, numbers = read_manifest(store), training_numbers(store)
    history = _read_history(store)
    exported = _exported_versions(store)
    found: dict[str, list[VersionFacts]] = {}
    for name in names:
        in_force = current_version(store, name)
        runs = _runs_of(manifest, name)
        found[name] = [
            _facts(
                store,
                name,
                number,
                runs.get(number),
                in_force,
                history.kept.get(name, ()),
                exported.get((name, number)),
                history.effects.get(name, {}).get(number),
                numbers,
            )
            for number in sorted(existing_versions(store, name))
            if is_whole(store, _folder(store, name, number))
        ]
    return found


def find_version(store: Store, name: str, number: int) -> AdapterVersion:
    """Version `number` of an adapter. Raises UsageError naming those that exist, or for one that is being trained."""
    path = _folder(store, name, number)
    if path.is_symlink() or not (path / "adapter_config.json").is_file():
        there = ", ".join(str(one) for one in sorted(existing_versions(store, name))) or "none"
        raise UsageError(f"adapter {name!r} has no version {number}; there are: {there}")
    if not is_whole(store, path):
        raise UsageError(f"{name}@{number} is being trained: it can be used once its training has ended")
    return AdapterVersion(name, number, path)


def _folder(store: Store, name: str, number: int) -> Path:
    return store.adapter_dir(name) / "versions" / f"v{number:04d}"


def is_whole(store: Store, folder: Path) -> bool:
    """Whether a version is finished, and no training that runs has a claim on it: that may still take it back."""
    record = read_record(folder)
    if not (folder / "adapter_config.json").is_file() or filled_by_others(record):
        return False
    return record is None or record["state"] == "kept" or claim_of(record) is None or not held_by_others(store, record)


def use_versions(
    store: Store, wanted: Mapping[str, int], reason: str = "use", document: Document | None = None
) -> dict[str, tuple[int | None, int]]:
    """Put these versions in force together; returns adapter → (before, after) of those that changed.

    A store without a manifest gets that of `document`: nothing is in force without one.
    Raises UsageError for a version that does not exist, LockHeld when the store is in use.
    """
    targets = {name: find_version(store, name, number) for name, number in wanted.items()}
    changed: dict[str, tuple[int | None, int]] = {}
    if document is not None:
        claim(store, document)

    def record(manifest: Manifest) -> None:
        for name, (_, after) in changed.items():
            if name == "default":
                manifest.adapter_version = after
            else:
                manifest.adapter_versions[name] = after

    with store_lock(store, _LOCK_SECONDS), change(store) as together:
        for name, target in targets.items():
            was = _version_before(store, name)
            if was != target.version:
                verify_version(store, target)
                changed[name] = (was, target.version)
                put_in_force(store, target, together)
        if changed:
            if read_manifest(store) is not None:
                stage_manifest(store, together, record)
            stage_note(store, together, reason, changed)
    return changed


def _version_before(store: Store, name: str) -> int | None:
    """The version in force; a damaged pointer counts as none, for it is about to be replaced."""
    try:
        version = current_version(store, name)
    except PointerError:
        return None
    return version.version if version is not None else None


def before_last_training(store: Store, names: Sequence[str]) -> dict[str, int]:
    """The versions that were in force before the last training: adapter → version; {} where there is none to go to.

    The last training is the newest run with every other run that ended with it; an adapter that it made for the first
    time has no earlier version and is left out.
    """
    manifest = read_manifest(store)
    runs = [run for run in (manifest.training_runs if manifest else ()) if run.status == "completed"]
    if not runs:
        return {}
    last_end = runs[-1].ended_at
    trained = {run.adapter_name or "default": run.adapter_version for run in runs if run.ended_at == last_end}
    history = _read_history(store)
    found: dict[str, int] = {}
    for name, version in trained.items():
        if name not in names:
            continue
        noted = [c.versions[name][0] for c in history.changes if name in c.versions and c.versions[name][1] == version]
        earlier = [run.adapter_version for run in runs if (run.adapter_name or "default") == name][:-1]
        candidate = noted[-1] if noted else (earlier[-1] if earlier else None)
        if candidate is not None and candidate in existing_versions(store, name):
            found[name] = candidate
    return found


def keep_version(store: Store, name: str, number: int, kept: bool = True) -> None:
    """Mark a version so that `prune` leaves it (or take the mark away)."""
    version = find_version(store, name, number)
    with store_lock(store, _LOCK_SECONDS):
        if kept:
            end_claim(version)
        history = _history_to_change(store)
        marked = set(history.kept.get(name, ()))
        history.kept[name] = sorted(marked | {number} if kept else marked - {number})
        _write_history(store, history)
        if not kept and is_kept(version.path):
            mark_kept(version, kept=False)


def record_effects(store: Store, effects: Mapping[str, tuple[int, OwnEffect]]) -> None:
    """Remember what was measured: adapter → (version, effect). Raises LockHeld, OSError."""
    if not effects:
        return
    with store_lock(store, _LOCK_SECONDS):
        history = _history_to_change(store)
        for name, (version, effect) in effects.items():
            history.effects.setdefault(name, {})[version] = effect
        _write_history(store, history)


def is_measured(store: Store, name: str, number: int) -> bool:
    """Whether the effect of a version is recorded. Raises StoreError for a history that this user may not read."""
    return number in _read_history(store).effects.get(name, {})


def drop_version(store: Store, name: str, number: int) -> int:
    """Delete a version; returns the bytes freed. Raises UsageError for one in force or held by an export, StoreError
    where it cannot be told what exports hold."""
    target = find_version(store, name, number)
    with store_lock(store, _LOCK_SECONDS):
        _refuse_unknown_exports(store)
        in_force = current_version(store, name)
        if in_force is not None and in_force.version == number:
            raise UsageError(f"{name}@{number} is in force; put another version in force first")
        exports = _exported_versions(store).get((name, number))
        if exports:
            raise UsageError(f"{name}@{number} is part of the export in {exports[0]}; delete that export first")
        size = freed_bytes([target.path])
        history = _history_to_change(store)  # before the folder goes: nobody else may know its number
        history.kept[name] = [one for one in history.kept.get(name, ()) if one != number]
        history.effects.get(name, {}).pop(number, None)
        history.dropped[name] = max(number, history.dropped.get(name, 0))
        _write_history(store, history)
        # Renamed first: a kill in the middle leaves no version that looks whole, but scratch, which is cleared.
        gone = scratch_sibling(target.path)
        target.path.rename(gone)
        sync_directory(gone.parent)
        shutil.rmtree(gone)
    return size


def highest_noted(store: Store, name: str) -> int:
    """The highest version of the adapter that the history knows, 0 for none."""
    history = _read_history(store)
    moved = (one for change in history.changes for one in change.versions.get(name, ()) if one is not None)
    return max(history.dropped.get(name, 0), *moved, *history.kept.get(name, ()), *history.effects.get(name, ()), 0)


def prunable(store: Store, names: Sequence[str]) -> list[VersionFacts]:
    """Versions that nothing needs: neither in force, nor kept, nor part of an export, nor the one to go back to.

    Raises StoreError where a file that says so is damaged or gone: reading goes on without it, deleting does not.
    """
    _refuse_unknown_marks(store)
    _refuse_unknown_exports(store)
    back = before_last_training(store, names)
    return [
        facts
        for versions in version_history(store, names).values()
        for facts in versions
        if not (facts.in_force or facts.kept or facts.exports or back.get(facts.name) == facts.version)
        and not may_be_kept(facts.path)
    ]


def _refuse_unknown_marks(store: Store) -> None:
    for aside in set_aside_histories(store):
        raise StoreError(f"{unknown_marks(aside)} None is deleted before.")
    if damage := history_damage(store):
        raise StoreError(
            f"{damage} Which versions are kept is in it, so none is deleted; `dlm-tui doctor DOC --repair` sets it "
            "aside and says what is to be done then."
        )
    if missing := trained_without_manifest(store):
        raise StoreError(f"{missing}{REMEDY}")


def _refuse_unknown_exports(store: Store) -> None:
    if MetricsReader(store).problems():
        raise StoreError(
            f"{store.metrics_path} is damaged, and where exports are is in it, so no version is deleted.{REMEDY}"
        )
    for folder in _export_folders(store):
        path = folder / _EXPORT_MANIFEST
        if os.path.lexists(path) and not _json_object(path):
            raise StoreError(
                f"{path} cannot be read, and which versions the export holds is in it, so none is deleted; delete that "
                "folder or export again."
            )


def stage_note(
    store: Store, together: FileChange, reason: str, versions: Mapping[str, tuple[int | None, int | None]]
) -> None:
    """Remember that other versions come into force, as a part of that change; the caller holds the store."""
    together.write(store.adapters_dir / HISTORY, _history_bytes(_noted(store, reason, versions)))


def _noted(store: Store, reason: str, versions: Mapping[str, tuple[int | None, int | None]]) -> _History:
    history = _history_to_change(store)
    history.changes.append(Change(at=utc_seconds(), reason=reason, versions=dict(versions)))
    del history.changes[:-_MOST_CHANGES]
    return history


def changes(store: Store) -> list[Change]:
    """What came into force when, oldest first."""
    return _read_history(store).changes


def history_damage(store: Store) -> str | None:
    """What is wrong with the file of marks, dates and effects, in one sentence. Raises StoreError as reading does."""
    return None if _decoded(store) is not None else f"{store.adapters_dir / HISTORY} is not what was written."


def set_aside_histories(store: Store) -> list[Path]:
    """What is left of damaged histories: each may name versions that are kept and that nothing else knows of."""
    return sorted(store.adapters_dir.glob(f"{Path(HISTORY).stem}.damaged*"))


def unknown_marks(aside: Path) -> str:
    """What it means that a history was set aside, and how a person settles it."""
    return (
        f"{aside} was damaged and set aside, and which versions are kept is in it: mark anew what is to stay "
        "(`dlm-tui adapter keep DOC NAME --version N`), then delete it."
    )


def _read_history(store: Store) -> _History:
    """The history as it is; a damaged one counts as empty, for the versions themselves are not touched."""
    return _decoded(store) or _History()


def _history_to_change(store: Store) -> _History:
    """The history, which is about to be written: a damaged one is set aside, so that what is left in it is not lost."""
    history = _decoded(store)
    if history is None:
        path = store.adapters_dir / HISTORY
        aside = set_aside(path)
        if aside is None:
            raise StoreError(f"{path} is damaged and cannot be renamed; move it away.")
        _log.warning("Marks, dates and effects begin anew. %s", unknown_marks(aside))
    return history or _History()


def _decoded(store: Store) -> _History | None:
    """None for a file that is no history or not what was written; an empty one where there is none."""
    path = store.adapters_dir / HISTORY
    try:
        data = read_file(path)
        history, written = msgspec.json.decode(data, type=_History), json.loads(data)
        own = written.pop(OWN_HASH, None)  # earlier versions wrote none
        return history if own is None or own == own_sha256(written) else None
    except FileNotFoundError:
        return _History()
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    except OSError as error:
        if is_no_file(error):
            return None
        raise StoreError(f"{path} cannot be read: {cause(error)}.") from error


def _write_history(store: Store, history: _History) -> None:
    write_atomic(store.adapters_dir / HISTORY, _history_bytes(history))


def _history_bytes(history: _History) -> bytes:
    record = msgspec.to_builtins(history, str_keys=True)
    return json_bytes({**record, OWN_HASH: own_sha256(record)})


def _runs_of(manifest: Manifest | None, name: str) -> dict[int, TrainingRun]:
    """The run that made each version; a later record of the same version counts."""
    if manifest is None:
        return {}
    return {run.adapter_version: run for run in manifest.training_runs if (run.adapter_name or "default") == name}


def _facts(
    store: Store,
    name: str,
    number: int,
    run: TrainingRun | None,
    in_force: AdapterVersion | None,
    kept: Sequence[int],
    exports: Sequence[str] | None,
    effect: OwnEffect | None,
    numbers: Mapping[int, int],
) -> VersionFacts:
    path = _folder(store, name, number)
    config = _json_object(path / "adapter_config.json")
    imported = _json_object(path / "tui_import.json")
    rank = config.get("r")
    parameterization = str(config.get("dlm_parameterization") or "lora")
    record = read_training_record(path)
    return VersionFacts(
        name=name,
        version=number,
        path=path,
        in_force=in_force is not None and in_force.version == number,
        kept=number in kept or is_kept(path),
        when=(run.ended_at or run.started_at) if run else imported.get("imported_at"),
        run_id=run.run_id if run else None,
        origin=str(imported.get("source")) if imported else "trained" if run else "unknown",
        parameterization=parameterization,
        kind=record.words or (f"{parameterization} r{rank}" if isinstance(rank, int) else parameterization),
        rank=rank if isinstance(rank, int) else None,
        train_losses=_train_losses(run, record),
        val_loss=run.final_val_loss if run else None,
        effect=effect,
        size=freed_bytes([path]),
        exports=tuple(exports or ()),
        training=numbers.get(run.run_id) if run else None,
    )


def _train_losses(run: TrainingRun | None, record: TrainingRecord) -> tuple[Loss, ...]:
    """What the version's own record says of its losses; else the one of its run, of a kind that need not be known."""
    if run is None or run.final_train_loss is None:
        return ()
    kind = run.final_train_loss_kind or ("signed" if record.kind.signed else None)  # signed pairs are the last phase
    return tuple(record.losses) or (Loss.of(kind, run.final_train_loss),)


def _exported_versions(store: Store) -> dict[tuple[str, int], list[str]]:
    """(adapter, version) → folders of exports that still exist and name it in their manifest."""
    found: dict[tuple[str, int], list[str]] = {}
    for folder in _export_folders(store):
        adapters = _json_object(folder / _EXPORT_MANIFEST).get("adapters")
        for name, facts in adapters.items() if isinstance(adapters, dict) else ():
            version = facts.get("version") if isinstance(facts, dict) else None
            if isinstance(version, int):
                found.setdefault((str(name), version), []).append(str(folder))
    return found


def _export_folders(store: Store) -> list[Path]:
    folders = (
        {path.parent for path in store.exports_dir.rglob(_EXPORT_MANIFEST)} if store.exports_dir.is_dir() else set()
    )
    folders |= {Path(str(row["folder"])) for row in MetricsReader(store).exports(None) if row.get("folder")}
    return sorted(folders)


def _json_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file, {} where there is none that can be read."""
    try:
        value = json.loads(read_file(path, 1 << 24))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
