"""`manifest.json` and `dlm.lock`: the record of runs, exports and reproducibility (formats §13).

Keys that this version does not know are kept when a file is rewritten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dlm_tui.files import json_bytes
from dlm_tui.small_files import read_file
from dlm_tui.store.errors import REMEDY, ManifestError
from dlm_tui.store.journal import Change, change
from dlm_tui.store.layout import Store, utc_seconds
from dlm_tui.store.locks import store_lock
from dlm_tui.store.settled import current_path
from dlm_tui.system_errors import cause

if TYPE_CHECKING:
    from dlm_tui.document import Document

NonEmpty = Annotated[str, Field(min_length=1)]
# SQLite keeps these, and the next number must fit, too
Counter = Annotated[int, Field(ge=1, lt=2**62)]
_LOCK_WAIT_SECONDS = 60.0
LOSS_KIND_KEY = "final_train_loss_kind"
"""Of a run's `pinned_versions`, which is a free mapping: the format has no key for it, and refuses unknown ones."""
_Record = TypeVar("_Record", bound="_Kept")


class _Kept(BaseModel):
    """Unknown keys stay on the object and are written back."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, protected_namespaces=())


class TrainingRun(_Kept):
    """One finished run of one adapter; times are naive UTC seconds."""

    run_id: Counter
    started_at: NonEmpty
    ended_at: str | None = None
    adapter_version: Counter
    base_model_revision: str | None = None
    seed: int
    steps: Annotated[int, Field(ge=0)]
    final_train_loss: float | None = None
    final_val_loss: float | None = None
    status: Literal["running", "completed", "failed", "cancelled"]
    pinned_versions: Mapping[str, object] = Field(default_factory=dict)
    summary_path: str | None = None
    adapter_name: str | None = None
    weight_distribution: dict[str, dict[str, int]] | None = None

    @property
    def final_train_loss_kind(self) -> str | None:
        """What kind of loss `final_train_loss` is, a key of `losses.UNITS`; None where that was not recorded."""
        kind = self.pinned_versions.get(LOSS_KIND_KEY)
        return kind if isinstance(kind, str) else None


class ExportRecord(_Kept):
    """One finished export; `adapter_mix` is a list of [name, weight] in declared order."""

    exported_at: NonEmpty
    target: NonEmpty = "ollama"
    quant: NonEmpty
    merged: bool = False
    ollama_name: str | None = None
    ollama_version: str | None = None
    llama_cpp_tag: str | None = None
    base_gguf_sha256: str | None = None
    adapter_gguf_sha256: str | None = None
    smoke_output_first_line: Annotated[str, Field(max_length=200)] | None = None
    adapter_name: str | None = None
    adapter_mix: list[tuple[str, float]] | None = None


class Manifest(_Kept):
    """The whole of `manifest.json`."""

    dlm_id: NonEmpty
    base_model: NonEmpty
    schema_version: Annotated[int, Field(ge=1)] = 1
    created_at: NonEmpty = Field(default_factory=utc_seconds)
    updated_at: NonEmpty = Field(default_factory=utc_seconds)
    base_model_revision: str | None = None
    base_model_sha256: str | None = None
    adapter_sha256: str | None = None
    adapter_config_sha256: str | None = None
    source_path: str | None = None
    adapter_version: Annotated[int, Field(ge=0)] = 0
    adapter_versions: dict[str, int] = Field(default_factory=dict)
    training_runs: list[TrainingRun] = Field(default_factory=list)
    exports: list[ExportRecord] = Field(default_factory=list)
    content_hashes: dict[str, str] = Field(default_factory=dict)
    pinned_versions: Mapping[str, object] = Field(default_factory=dict)
    license_acceptance: dict[str, object] | None = None

    @property
    def holds_adapters(self) -> bool:
        """Whether anything was trained or imported on its base; a gate alone is trained again on another one."""
        return bool(self.adapter_version or self.adapter_versions or self.training_runs)


class LockRecord(_Kept):
    """`dlm.lock`: what a run was made of, so that a later one can tell what drifted."""

    lock_version: Annotated[int, Field(ge=1)] = 1
    created_at: NonEmpty
    dlm_id: NonEmpty
    dlm_sha256: Annotated[str, Field(pattern=re.compile(r"^[0-9a-f]{64}$"))]
    base_model_revision: str | None = None
    base_model_sha256: str | None = None
    pinned_versions: Mapping[str, object] = Field(default_factory=dict)
    cuda_version: str | None = None
    rocm_version: str | None = None
    hardware_tier: Literal["cuda-sm80+", "cuda-sm<80", "mps", "cpu", "rocm"] = "cpu"
    seed: int
    determinism_flags: Mapping[str, object] = Field(default_factory=dict)
    determinism_class: Literal["strong", "best-effort", "advisory"] = "best-effort"
    license_acceptance: dict[str, object] | None = None
    last_run_id: Annotated[int, Field(ge=1)]
    world_size: Annotated[int, Field(ge=1)] = 1


def read_manifest(store: Store) -> Manifest | None:
    """The manifest, or None when there is none. Raises ManifestError naming file, field and reason."""
    manifest = _read(store, store.manifest_path, Manifest)
    if manifest is not None and manifest.dlm_id != store.dlm_id:
        raise ManifestError(
            f"{store.manifest_path}: dlm_id: it belongs to the document {manifest.dlm_id!r}, not to {store.dlm_id!r}."
            f"{REMEDY}"
        )
    return manifest


def refuse_foreign_base(store: Store, document: Document) -> None:
    """Raises ManifestError when the adapters in the store were trained on another base than the document names."""
    manifest = read_manifest(store)
    if manifest is not None and manifest.holds_adapters and manifest.base_model != document.base_model:
        raise ManifestError(
            f"this store was made for base {manifest.base_model!r}, the document now names {document.base_model!r}; "
            "give the document a new dlm_id or restore its base_model"
        )


def update_manifest(
    store: Store,
    mutate: Callable[[Manifest], None],
    *,
    base_model: str | None = None,
    timeout: float = _LOCK_WAIT_SECONDS,
) -> Manifest:
    """Read, change and replace the manifest while holding the store; returns what was written.

    `base_model` is needed when there is no manifest yet. `updated_at` is set here. `timeout` in seconds.
    Raises ManifestError, LockHeld, LockStale; OSError leaves the old manifest as it was.
    """
    with store_lock(store, timeout), change(store) as together:
        return stage_manifest(store, together, mutate, base_model=base_model)


def stage_manifest(
    store: Store, together: Change, mutate: Callable[[Manifest], None], *, base_model: str | None = None
) -> Manifest:
    """`update_manifest` as a part of a change of several files; the caller holds the store."""
    manifest = read_manifest(store)
    if manifest is None:
        if not base_model:
            raise ManifestError(f"{store.manifest_path} does not exist and no base model was named for it.")
        manifest = Manifest(dlm_id=store.dlm_id, base_model=base_model)
    mutate(manifest)
    manifest.updated_at = utc_seconds()
    together.write(store.manifest_path, _bytes(store.manifest_path, manifest))
    return manifest


def read_lock_record(store: Store) -> LockRecord | None:
    """`dlm.lock`, or None when there is none. Raises ManifestError."""
    return _read(store, store.lock_record_path, LockRecord)


def write_lock_record(
    store: Store,
    *,
    dlm_sha256: str,
    seed: int,
    last_run_id: int,
    base_model_revision: str | None,
    pinned_versions: Mapping[str, object],
    hardware_tier: str = "cpu",
    determinism_class: str = "best-effort",
    **optional: object,
) -> LockRecord:
    """Replace `dlm.lock`; further fields of LockRecord by keyword; unknown keys of an existing file are kept.

    Raises ManifestError for a value the format does not allow.
    """
    with store_lock(store, _LOCK_WAIT_SECONDS), change(store) as together:
        return stage_lock_record(
            store,
            together,
            dlm_sha256=dlm_sha256,
            seed=seed,
            last_run_id=last_run_id,
            base_model_revision=base_model_revision,
            pinned_versions=pinned_versions,
            hardware_tier=hardware_tier,
            determinism_class=determinism_class,
            **optional,
        )


def stage_lock_record(
    store: Store,
    together: Change,
    *,
    dlm_sha256: str,
    seed: int,
    last_run_id: int,
    base_model_revision: str | None,
    pinned_versions: Mapping[str, object],
    hardware_tier: str = "cpu",
    determinism_class: str = "best-effort",
    **optional: object,
) -> LockRecord:
    """`write_lock_record` as a part of a change of several files; the caller holds the store."""
    fields = {
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "dlm_id": store.dlm_id,
        "dlm_sha256": dlm_sha256,
        "seed": seed,
        "last_run_id": last_run_id,
        "base_model_revision": base_model_revision,
        "pinned_versions": pinned_versions,
        "hardware_tier": hardware_tier,
        "determinism_class": determinism_class,
        **optional,
    }
    before = read_lock_record(store)
    kept = dict(before.model_extra or {}) if before is not None else {}
    record = _check(store.lock_record_path, LockRecord, {**kept, **fields})
    together.write(store.lock_record_path, _bytes(store.lock_record_path, record))
    return record


def parse_manifest(data: bytes, place: str | Path) -> Manifest:
    """The manifest that `data` is; `place` names it in errors. Raises ManifestError."""
    return _parse(data, place, Manifest)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it lies in a store."""
    return json_bytes(manifest.model_dump(mode="json", warnings=False))


def _read(store: Store, path: Path, model: type[_Record]) -> _Record | None:
    try:
        data = read_file(current_path(store, path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {cause(error)}.") from error
    try:
        return _parse(data, path, model)
    except ManifestError as error:
        raise ManifestError(f"{error}{REMEDY}") from error


def _parse(data: bytes, place: str | Path, model: type[_Record]) -> _Record:
    try:
        raw = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{place} is not JSON text in UTF-8.") from error
    if not isinstance(raw, dict):
        raise ManifestError(f"{place} does not hold a JSON object.")
    return _check(place, model, raw)


def _check(path: str | Path, model: type[_Record], raw: dict[str, Any]) -> _Record:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        first = problems[0]
        place = ".".join(str(part) for part in first["loc"])
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ManifestError(f"{path}: {place}: {first['msg']}{more}.") from error


def _bytes(path: Path, record: _Kept) -> bytes:
    value = record.model_dump(mode="json", warnings=False)
    # Assigning into nested lists bypasses validation, so what is about to be written is checked once more.
    _check(path, type(record), value)
    return json_bytes(value)
