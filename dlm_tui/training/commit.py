"""Finished adapters become files, committed versions and records."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from safetensors.torch import save

from dlm_tui.document.seeds import seed_in_range
from dlm_tui.errors import DlmTuiError
from dlm_tui.files import json_bytes, sync_tree, write_atomic
from dlm_tui.losses import Loss
from dlm_tui.progress import EarlyLook
from dlm_tui.store import (
    AdapterVersion,
    Manifest,
    MetricsWriter,
    StoreError,
    TrainingRun,
    change,
    mark_kept,
    owner_path,
    put_in_force,
    seal_version,
    stage_lock_record,
    stage_manifest,
    store_lock,
    utc_seconds,
)
from dlm_tui.store.adapter_kind import TrainingRecord, write_training_record
from dlm_tui.store.checkpoints import Asked, stage_over
from dlm_tui.store.manifest import LOSS_KIND_KEY
from dlm_tui.store.owed import Owed, stage_owed
from dlm_tui.store.shared_files import write_shared
from dlm_tui.store.trained_on import write_version_base
from dlm_tui.system_errors import cause, naming
from dlm_tui.training.phases import Finetuned
from dlm_tui.training.plan import AdapterPlan, TrainingPlan

if TYPE_CHECKING:
    from dlm_tui.training.request import TrainRequest

_LOCK_SECONDS = 60.0
_log = logging.getLogger(__name__)
_KIND_KEY = "adapter_kind"
_PINNED = ("torch", "transformers", "peft", "bitsandbytes", "torchao")


class NotInForce(DlmTuiError):
    """Adapters were trained and kept as versions, but the lock or the disk did not let them be put in force."""


@dataclass(kw_only=True)
class FinishedRun:
    """An adapter between being trained and being committed; `losses` are those of `last_losses`, `fingerprint` is of
    all that decided the result."""

    plan: AdapterPlan
    fingerprint: str
    run_id: int
    version: AdapterVersion
    started_at: str
    result: Finetuned
    losses: list[Loss]
    summary: str
    looks: list[EarlyLook]

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.plan.name


def write_version(
    request: TrainRequest, target: AdapterVersion, result: Finetuned, record: TrainingRecord, claim: str
) -> None:
    """Fill a version directory; nothing points to it yet, and until something does its training has a claim on it."""
    folder = target.path
    with naming(folder):
        # `save_file` would make a file that nobody but its owner can read, in a store that others may share.
        write_atomic(folder / "adapter_model.safetensors", save(result.tensors, metadata={"format": "pt"}))
        write_shared(request.store, target, request.base.save_tokenizer)
    write_atomic(folder / "adapter_config.json", (json.dumps(result.config, indent=2, sort_keys=True)).encode())
    write_atomic(folder / "pinned_versions.json", json_bytes(pinned_versions()))
    write_atomic(folder / "training_run.json", json_bytes({"use_qlora": request.base.quantisation is not None}))
    write_training_record(folder, record)
    write_version_base(folder, request.base.identity)
    sync_tree(folder)
    seal_version(target, claim)


def commit_runs(request: TrainRequest, metrics: MetricsWriter, runs: list[FinishedRun], asked: Asked) -> None:
    """Put every version in force and record the runs in the manifest and `dlm.lock`: all of it or nothing. From then on
    the checkpoints are over, and gate and effects are owed, as part of the training that was `asked` for.

    Raises NotInForce when the lock or the disk says no: the versions are then kept, and the sentence says how one is
    put in force by hand. What the metrics refuse afterwards is a warning in the log, not an error.
    """
    document, store = request.document, request.store
    ended = utc_seconds()

    def record(manifest: Manifest) -> None:
        manifest.base_model, manifest.base_model_revision = document.base_model, request.base.identity.revision
        manifest.source_path = owner_path(document) or manifest.source_path
        for run in runs:
            if run.name == "default":
                manifest.adapter_version = run.version.version
            else:
                manifest.adapter_versions[run.name] = run.version.version
            manifest.training_runs.append(_training_run(request, run, ended))
        manifest.content_hashes = {
            section: section for section in _trained_sections(request, runs, manifest.content_hashes)
        }

    try:
        with store_lock(store, _LOCK_SECONDS), change(store) as together:
            for run in runs:
                put_in_force(store, run.version, together)
            stage_manifest(store, together, record, base_model=document.base_model)
            stage_lock_record(
                store,
                together,
                dlm_sha256=document.sha256,
                seed=seed_in_range(document.training.seed),
                last_run_id=runs[-1].run_id,
                base_model_revision=request.base.identity.revision,
                pinned_versions=pinned_versions(),
            )
            stage_over(store, together)
            versions = {run.name: run.version.version for run in runs}
            last_run = max(run.run_id for run in runs)
            stage_owed(
                store, together, Owed(run_id=last_run, asked=asked, gate=document.gate_enabled, effects=versions)
            )
            if request.receipt is not None:
                together.write(request.receipt, json_bytes(versions))
    except (StoreError, OSError) as error:
        keep_runs(metrics, runs)
        raise NotInForce(_kept_sentence(runs, error)) from error
    for run in runs:
        finish_run(metrics, run.run_id, "ok")


def keep_runs(metrics: MetricsWriter, runs: list[FinishedRun]) -> None:
    """Mark trained versions that could not be put in force, so that nothing removes them."""
    for run in runs:
        try:
            mark_kept(run.version, claim=run.fingerprint)
        except OSError as error:
            _log.warning("%s cannot be marked as kept: %s", run.version.path, error)
        finish_run(metrics, run.run_id, "failed")


def finish_run(metrics: MetricsWriter, run_id: int, status: str) -> None:
    """End a run; metrics that refuse are a warning in the log: they never undo what was trained."""
    try:
        metrics.finish_run(run_id, status)
    except StoreError as error:
        _log.warning("%s", error)


def record_tail_depth(metrics: MetricsWriter, run_id: int, tail_depth: Mapping[str, float]) -> None:
    """Keep the diagnostic of a selection with its run; refused as in `finish_run`."""
    try:
        metrics.record_extra(run_id, tail_depth=dict(tail_depth))
    except StoreError as error:
        _log.warning("%s", error)


def record_loss_kind(metrics: MetricsWriter, run_id: int, kind: str, step: int) -> None:
    """Keep with its run from which step on the losses are of a kind; refused as in `finish_run`."""
    try:
        metrics.record_loss_kind(run_id, kind, step)
    except StoreError as error:
        _log.warning("%s", error)


def _kept_sentence(runs: list[FinishedRun], error: Exception) -> str:
    kept = ", ".join(f"{run.name} version {run.version.version}" for run in runs)
    uses = "; ".join(f"`dlm-tui adapter use DOC {run.name} --version {run.version.version}`" for run in runs)
    why = cause(error) if isinstance(error, OSError) else str(error)
    return f"trained and kept, but not in force: {kept}; {why.rstrip('.')}. Afterwards: {uses}."


def _trained_sections(request: TrainRequest, runs: list[FinishedRun], before: dict[str, str]) -> list[str]:
    """Sections of this run; after a partial run also those the other adapters were trained on before."""
    trained = {section for run in runs for section in run.plan.rows.section_ids}
    if request.adapters:
        trained |= set(before) & {section.section_id for section in request.document.sections}
    return sorted(trained)


def _training_run(request: TrainRequest, run: FinishedRun, ended: str) -> TrainingRun:
    return TrainingRun(
        run_id=run.run_id,
        started_at=run.started_at,
        ended_at=ended,
        adapter_version=run.version.version,
        base_model_revision=request.base.identity.revision,
        seed=seed_in_range(request.document.training.seed),
        steps=sum(run.result.steps.values()),
        final_train_loss=run.losses[-1].value if run.losses else None,
        final_val_loss=run.result.val_loss,
        status="completed",
        # The format has no key for the kinds and refuses unknown ones; this one is a free mapping, per run.
        pinned_versions={**pinned_versions(), _KIND_KEY: run.plan.words, **_final_kind(run.losses)},
        summary_path=run.summary,
        adapter_name=None if run.name == "default" else run.name,
        weight_distribution=run.plan.rows.weight_distribution,
    )


def last_losses(plan: TrainingPlan, result: Finetuned) -> list[Loss]:
    """The loss of the last step of every phase, in order."""
    return [Loss.of(plan.loss_kind(phase), value) for phase, value in result.train_loss.items() if math.isfinite(value)]


def _final_kind(losses: Sequence[Loss]) -> dict[str, str | None]:
    """Of which kind the run's `final_train_loss` is."""
    return {LOSS_KIND_KEY: losses[-1].kind} if losses else {}


def pinned_versions() -> dict[str, str | None]:
    """Versions that decide the numbers; a package that is absent and optional is left out."""
    found: dict[str, str | None] = {}
    for name in _PINNED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
