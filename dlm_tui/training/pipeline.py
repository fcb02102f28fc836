"""Train a document: every adapter on its own rows, all of them committed together, then the gate."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from dlm_tui.document import Document, route_sections, sources
from dlm_tui.document.seeds import seed_in_range, seed_note
from dlm_tui.errors import Cancelled, DlmTuiError, UsageError
from dlm_tui.progress import Eta, Progress, Report, note, run_to_end
from dlm_tui.store import (
    MetricsReader,
    MetricsWriter,
    RunLog,
    Store,
    new_version,
    next_run_id,
    read_manifest,
    refuse_foreign_base,
    reject_version,
    utc_seconds,
)
from dlm_tui.training.commit import FinishedRun, commit_runs, last_loss, pinned_versions, write_version
from dlm_tui.training.finetune import finetune
from dlm_tui.training.launcher import launcher_variables, without_launcher
from dlm_tui.training.phases import Diverged, Finetuned, Step
from dlm_tui.training.report import AdapterOutcome
from dlm_tui.training.rows import AdapterRows, adapter_rows, cut_notes
from dlm_tui.training.settings import (
    optimiser_steps,
    preference_phase,
    refuse_unsupported,
    sft_phase,
    trains_preferences,
    unused_settings,
)

if TYPE_CHECKING:
    from dlm_tui.document.sources import SourceScan
    from dlm_tui.gate import GateOutcome
    from dlm_tui.model import Base


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train. `adapters` None means all; `gate_only` leaves the adapters alone.

    `document` includes the sections of its sources; `scan` is the finished pass that read them.
    """

    document: Document
    store: Store
    base: Base
    adapters: list[str] | None = None
    gate_only: bool = False
    parameterization: Literal["lora", "pissa"] = "lora"
    selection: str = "s_only"
    scan: SourceScan | None = None


@dataclass(kw_only=True)
class TrainOutcome:
    """What a run left behind. `gate` is None when the document has no gate."""

    adapters: dict[str, AdapterOutcome] = field(default_factory=dict)
    gate: GateOutcome | None = None
    gate_error: str | None = None
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def train_document(request: TrainRequest, report: Report) -> TrainOutcome:
    """Train, write the new versions, flip all pointers, then train the gate.

    Until every adapter is trained nothing that is in force changes: a failed or cancelled run leaves the previous
    adapters and gate, and marks its rows. A gate that fails leaves the new adapters and the old gate in force.
    Raises UsageError for an unknown adapter, Diverged, Cancelled, DlmTuiError.
    """
    began = time.monotonic()
    outcome = TrainOutcome()

    def say(text: str) -> None:
        outcome.notes.append(text)
        note(report, text)

    request.store.create()
    ignored = launcher_variables()
    with training_lock(request.store), without_launcher():
        if ignored:
            say(f"launcher variables are ignored, a training is one process: {', '.join(ignored)}")
        refuse_foreign_base(request.store, request.document)
        if remark := seed_note(request.document.training.seed):
            say(remark)
        if not request.gate_only:
            for text in (*unused_settings(request.document), *_source_notes(request.scan)):
                say(text)
            with MetricsWriter(request.store) as metrics:
                _mark_dead_runs(request.store, metrics)
                runs = _train_adapters(request, metrics, report, say)
                report(Progress("commit", text="putting the new adapters in force"))
                try:
                    commit_runs(request, metrics, runs)
                except BaseException:
                    _drop(runs, metrics, "failed")
                    raise
            outcome.adapters = {run.name: _adapter_outcome(run) for run in runs}
        if request.document.gate_enabled:
            _train_gate(request, report, outcome)
        elif request.gate_only:
            raise UsageError("the document has no gate: set training.gate.enabled with two or more adapters")
    outcome.seconds = time.monotonic() - began
    return outcome


@contextlib.contextmanager
def training_lock(store: Store) -> Iterator[None]:
    """One training run per store at a time. Raises DlmTuiError when another process trains; dies with its holder."""
    folder = store.cache_dir / "tui_train"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DlmTuiError("another run is training this document; wait for it or cancel it") from error
        yield


def _mark_dead_runs(store: Store, metrics: MetricsWriter) -> None:
    """Runs that still say "running" while nobody holds the lock died without a word."""
    for run in MetricsReader(store).runs(limit=None):
        if run["status"] == "running":
            metrics.finish_run(run["run_id"], "failed")


def _train_adapters(request: TrainRequest, metrics: MetricsWriter, report: Report, say: Any) -> list[FinishedRun]:
    document = request.document
    wanted = _plan(request, say)
    if not wanted:
        raise DlmTuiError("there is nothing to train: no section of the document reaches an adapter")
    total = sum(_steps_of(document, name, rows) for name, rows in wanted.items())
    count = _Count(report, total)
    runs: list[FinishedRun] = []
    try:
        for name, rows in wanted.items():
            for text in cut_notes(name, rows, document):
                say(text)
            if rows.preference and not trains_preferences(document):
                say(f"{name}: {len(rows.preference)} preference rows are not used, preference.enabled is false")
            runs.append(_train_one(request, metrics, name, rows, count))
    except BaseException:
        _drop(runs, metrics, "cancelled")
        raise
    return runs


def _drop(runs: list[FinishedRun], metrics: MetricsWriter, status: str) -> None:
    """Trained versions that will not be put in force go, and their runs say so."""
    for run in runs:
        shutil.rmtree(run.version.path, ignore_errors=True)
        metrics.finish_run(run.run_id, status)


def _plan(request: TrainRequest, say: Any) -> dict[str, AdapterRows]:
    routed = route_sections(request.document)
    names = request.adapters or list(routed)
    for name in names:
        if name not in routed:
            raise UsageError(f"the document declares no adapter {name!r} (declared: {', '.join(routed)})")
    plan = {}
    for name in names:
        remark = refuse_unsupported(name, request.document.adapter_settings(name))
        if remark:
            say(remark)
        weights = request.scan.weights if request.scan is not None else None
        rows = adapter_rows(request.document, routed[name], request.base, weights)
        if not rows.train and not (rows.preference and trains_preferences(request.document)):
            say(f"{name}: no section reaches this adapter, it is left as it is")
            continue
        plan[name] = rows
    return plan


def _steps_of(document: Document, name: str, rows: AdapterRows) -> int:
    total = optimiser_steps(document, len(rows.train), sft_phase(document, document.adapter_settings(name)).epochs)
    if trains_preferences(document):
        total += optimiser_steps(document, len(rows.preference), preference_phase(document).epochs)
    return total


class _Count:
    """Counts optimiser steps over the adapters of a run, so that the time left is that of all of them."""

    def __init__(self, report: Report, total: int):
        self._report, self._total = report, total
        self._done, self._eta = 0, Eta()

    def tick(self, name: str, step: Step) -> None:
        if step.loss is None:
            return
        self._done += 1
        eta = self._eta.left("adapters", self._done, self._total)
        self._report(Progress(step.phase, self._done, self._total, scope=name, loss=step.loss, eta=eta))


def _train_one(
    request: TrainRequest, metrics: MetricsWriter, name: str, rows: AdapterRows, count: _Count
) -> FinishedRun:
    document, store = request.document, request.store
    run_id = next_run_id(store)
    started = utc_seconds()
    target = new_version(store, name)
    metrics.start_run(
        run_id,
        "sft" if rows.train else document.training.preference.method,
        seed_in_range(document.training.seed),
        adapter_version=target.version,
        adapter_name=name,
        parameterization=request.parameterization,
        details={"selection": request.selection} if request.parameterization == "pissa" else None,
    )
    began = time.monotonic()
    with RunLog(store, run_id) as log:
        log.banner(
            seed=seed_in_range(document.training.seed),
            pinned_versions=pinned_versions(),
            plan=_plan_text(request, name, rows),
        )
        known = _known_sections(store)
        log.delta(
            new=[item for item in rows.section_ids if item not in known],
            unchanged=[item for item in rows.section_ids if item in known],
            removed=sorted(known - {section.section_id for section in document.sections}),
        )
        offset = 0

        def on_step(step: Step) -> None:
            nonlocal offset
            # A second phase counts on, because a run's steps are keyed by their number.
            number = step.step + (offset if step.phase != "sft" else 0)
            if step.phase == "sft":
                offset = max(offset, step.step)
            if step.val_loss is not None:
                metrics.record_eval(run_id, number, step.val_loss)
            else:
                metrics.record_step(
                    run_id, number, step.loss, step.learning_rate, step.grad_norm, step.tokens_per_second
                )
                log.step(number, step.loss, step.learning_rate, step.grad_norm, step.tokens_per_second)
            count.tick(name, step)

        try:
            result = _fit(request, name, rows, on_step)
            write_version(request, target, result)
        except BaseException as error:
            metrics.finish_run(run_id, "cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed")
            if isinstance(error, Diverged):
                reject_version(store, target)
            else:
                shutil.rmtree(target.path, ignore_errors=True)
            raise
        steps = sum(result.steps.values())
        log.complete(steps=steps)
        log.summary(
            adapter_version=target.version,
            seed=seed_in_range(document.training.seed),
            steps=steps,
            duration_seconds=time.monotonic() - began,
            final_train_loss=last_loss(result),
            final_val_loss=result.val_loss,
            adapter_name=name,
            source_directives=[sources.describe_short(counts) for counts in request.scan.counts]
            if request.scan
            else [],
        )
        return FinishedRun(
            name=name,
            run_id=run_id,
            version=target,
            rows=rows,
            started_at=started,
            result=result,
            summary=log.summary_relative,
        )


def _fit(request: TrainRequest, name: str, rows: AdapterRows, on_step: Any) -> Finetuned:
    document = request.document
    settings = document.adapter_settings(name)
    preferences = trains_preferences(document)
    if request.parameterization == "pissa":
        from dlm_tui.training.pissa import finetune_pissa

        return finetune_pissa(
            request.base, document, settings, rows, on_step, selection=request.selection, preferences=preferences
        )
    return finetune(request.base, document, settings, rows, on_step, preferences=preferences)


def _train_gate(request: TrainRequest, report: Report, outcome: TrainOutcome) -> None:
    from dlm_tui.gate import train_document_gate
    from dlm_tui.model import MixedModel

    last_run = max((item.run_id for item in outcome.adapters.values()), default=None)
    work = train_document_gate(request.document, request.store, MixedModel(request.base, {}), run_id=last_run)
    try:
        outcome.gate = run_to_end(work, lambda step: report(msgspec.structs.replace(step, scope="gate")))
    except DlmTuiError as error:
        if isinstance(error, Cancelled) or request.gate_only:
            raise
        outcome.gate_error = str(error)
        note(
            report,
            f"the gate was not trained: {error}; the adapters are committed, the previous gate stays in force",
        )


def _adapter_outcome(run: FinishedRun) -> AdapterOutcome:
    return AdapterOutcome(
        run_id=run.run_id,
        version=run.version.version,
        steps=sum(run.result.steps.values()),
        train_loss=last_loss(run.result),
        val_loss=run.result.val_loss,
    )


def _source_notes(scan: SourceScan | None) -> list[str]:
    """A sentence per source, and what was skipped with a warning."""
    if scan is None:
        return []
    return [sources.count_words(counts) for counts in scan.counts] + scan.warnings


def _known_sections(store: Store) -> set[str]:
    manifest = read_manifest(store)
    return set(manifest.content_hashes) if manifest else set()


def _plan_text(request: TrainRequest, name: str, rows: AdapterRows) -> dict[str, Any]:
    return {
        "adapter": name,
        "parameterization": request.parameterization,
        "selection": request.selection if request.parameterization == "pissa" else None,
        "rows": len(rows.train),
        "validation_rows": len(rows.validation),
        "preference_rows": len(rows.preference),
        "base": request.base.identity.id,
    }
