"""Sweeps: every combination of some settings, judged on held-out sections; what was measured before is not again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from dlm_tui.document import probes_digest, write_settings
from dlm_tui.document.counts import checked_folds
from dlm_tui.document.seeds import seed_in_range, seed_note
from dlm_tui.errors import Cancelled, DlmTuiError, UsageError
from dlm_tui.progress import Progress, Report, note, run_to_end
from dlm_tui.store import MetricsError, MetricsReader, MetricsWriter, RunLog, Store, StoreError, refuse_foreign_base
from dlm_tui.store.adapter_kind import AdapterKind
from dlm_tui.training.checkpoints import fingerprint
from dlm_tui.training.commit import finish_run, pinned_versions
from dlm_tui.training.held_out import FoldResult, FoldWork, decoded, encoded, fold_works, train_and_judge
from dlm_tui.training.launcher import without_launcher
from dlm_tui.training.phases import Diverged, Step
from dlm_tui.training.request import kinds_before
from dlm_tui.training.sweep_grid import Setting, Trial, only_gate, trials_of
from dlm_tui.training.sweep_report import By, SweepReport, TrialReport, best_of, reason_text

if TYPE_CHECKING:
    from dlm_tui.document import Document
    from dlm_tui.document.sources import SourceScan
    from dlm_tui.model import Base

PHASE = "sweep"
Done = Callable[[FoldWork, FoldResult | str], None]
"""Takes the result of one piece of work, or the sentence of why it has none."""
Execute = Callable[["Base", list[FoldWork], Report, Done], None]


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What to try. `document` includes the sections of its sources, `data` are the bytes of its file.

    `by` None judges by the loss, or by the gate's log loss where only the gate is tried. `write` puts the best into the
    document.
    """

    document: Document
    data: bytes
    store: Store
    base: Base
    grid: tuple[Setting, ...]
    folds: int = 5
    by: By | None = None
    write: bool = False
    scan: SourceScan | None = None


@dataclass
class _Figures:
    """What is known of the trials so far."""

    results: dict[str, FoldResult | str] = field(default_factory=dict)
    fresh: int = 0


def sweep_document(request: SweepRequest, report: Report, execute: Execute | None = None) -> SweepReport:
    """Train and judge every combination; the adapters and the gate of the store stay as they are.

    `execute` does the work that was not done before, one after another in this process unless given. Finished work is
    kept in the metrics as it comes: a sweep that was killed, cancelled or lost goes on with what is missing. Raises
    UsageError for a grid that is none, Cancelled, DlmTuiError.
    """
    began = time.monotonic()
    checked_folds(request.folds)
    refuse_foreign_base(request.store, request.document)
    seed = seed_in_range(request.document.training.seed)
    request.store.create()
    details = {"sweep": {setting.path: list(setting.values) for setting in request.grid}, "folds": request.folds}
    with MetricsWriter(request.store) as metrics, without_launcher():
        run = metrics.begin_run(PHASE, seed, details=details)
        try:
            found = _judged(request, metrics, report, execute or one_after_another, run)
            found.seconds = time.monotonic() - began
            if request.write:
                _write_best(request, found)
        except BaseException as error:
            finish_run(metrics, run, "cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed")
            raise
        for text in found.notes:
            note(report, text)
        _keep(request.store, metrics, found)
        finish_run(metrics, run, "ok")
    return found


def _judged(request: SweepRequest, metrics: MetricsWriter, report: Report, execute: Execute, run: int) -> SweepReport:
    """The report of run `run`; its seconds are not known yet."""
    trials = trials_of(request.document, request.data, request.grid)
    notes = [text for text in (seed_note(request.document.training.seed),) if text]
    figures, works = _adapters(request, trials, metrics, report, execute)
    gates = _gates(request, trials, metrics, report, notes)
    reports = [_trial(trial, own, gate, figures) for trial, own, gate in zip(trials, works, gates, strict=True)]
    by: By = request.by or ("log_loss" if only_gate(request.grid) else "loss")
    found = SweepReport(
        run_id=run,
        by=by,
        folds=request.folds,
        seed=seed_in_range(request.document.training.seed),
        trials=reports,
        best=best_of(reports, by),
        works=len({work.key for own in works for work in own}),
        fresh=figures.fresh,
        notes=[*notes, *dict.fromkeys(text for text in figures.results.values() if isinstance(text, str))],
        seconds=0.0,
    )
    found.reason = reason_text(found)
    return found


def one_after_another(base: Base, works: list[FoldWork], report: Report, done: Done) -> None:
    """The work in this process; `report` may end it by raising."""
    for number, work in enumerate(works):

        def on_step(step: Step, number: int = number, name: str = work.name) -> None:
            report(Progress("trial", number, len(works), scope=name, loss=step.loss, loss_kind=step.loss_kind))

        report(Progress("trial", number, len(works), scope=work.name))
        try:
            done(work, train_and_judge(base, work, on_step))
        except Diverged as error:
            done(work, f"{work.name}: {error}")


def _adapters(
    request: SweepRequest, trials: list[Trial], metrics: MetricsWriter, report: Report, execute: Execute
) -> tuple[_Figures, list[list[FoldWork]]]:
    """The folds of every trial, and the results of all of them."""
    figures = _Figures()
    if only_gate(request.grid):
        return figures, [[] for _ in trials]
    weights = request.scan.weights if request.scan is not None else None
    kinds = kinds_before(request.document, request.store)
    works = [
        fold_works(trial.document, request.base, request.folds, weights, _before(trial, kinds)) for trial in trials
    ]
    unique = {work.key: work for own in works for work in own}
    if not unique:
        raise DlmTuiError("nothing can be held out: every adapter needs at least two sections")
    for key, text in MetricsReader(request.store).sweep_results(list(unique)).items():
        if (result := decoded(text)) is not None:
            figures.results[key] = result

    def done(work: FoldWork, result: FoldResult | str) -> None:
        figures.results[work.key] = result
        figures.fresh += 1
        metrics.record_sweep_result(work.key, encoded(result))

    missing = [work for key, work in unique.items() if key not in figures.results]
    if missing:
        execute(request.base, missing, report, done)
    return figures, works


def _before(trial: Trial, kinds: Mapping[str, AdapterKind]) -> dict[str, AdapterKind]:
    """How the versions in force were trained, but for a rank that the trial sets."""
    ranks = {
        path.removeprefix("adapters.").removesuffix(".lora_r") for path in trial.written if path.endswith("lora_r")
    }
    return {
        name: msgspec.structs.replace(kind, rank=None) if ranks & {name, "lora_r"} else kind
        for name, kind in kinds.items()
    }


def _gates(
    request: SweepRequest, trials: list[Trial], metrics: MetricsWriter, report: Report, notes: list[str]
) -> list[tuple[float, float] | None]:
    """Accuracy and log loss (nats) of the gate of every trial on held-out prompts, by one set of embeddings."""
    known: dict[str, tuple[float, float] | None] = {}
    found: list[tuple[float, float] | None] = []
    for number, trial in enumerate(trials):
        if not trial.document.gate_enabled:
            found.append(None)
            continue
        key = _gate_key(trial.document, request.base, request.folds)
        if key not in known:
            kept = MetricsReader(request.store).sweep_results([key]).get(key)
            try:
                known[key] = _pair(kept) if kept is not None else None
                if known[key] is None:
                    report(Progress("trial", number, len(trials), scope="gate"))
                    known[key] = run_to_end(_judged_gate(request, trial.document), report)
                    metrics.record_sweep_result(key, msgspec.json.encode(known[key]).decode())
            except Cancelled:
                raise
            except DlmTuiError as error:
                notes.append(f"gate: {error}")
                known[key] = None
        found.append(known[key])
    if any("gate.enabled" in trial.settings and not trial.document.gate_enabled for trial in trials):
        notes.append("gate: a trial that turns it off has no figures of it")
    return found


def _judged_gate(request: SweepRequest, document: Document) -> Generator[Progress, None, tuple[float, float]]:
    from dlm_tui.gate import evaluate_gate
    from dlm_tui.model import MixedModel

    model = MixedModel(request.base, {})
    judged = yield from evaluate_gate(document, request.store, model, folds=request.folds)
    return judged.accuracy, judged.log_loss


def _gate_key(document: Document, base: Base, folds: int) -> str:
    settings = document.training.gate.model_dump()
    own = (settings, document.adapter_names, probes_digest(document), folds, document.training.seed)
    return fingerprint("gate", *own, base.identity.key, pinned_versions())


def _pair(text: str) -> tuple[float, float] | None:
    try:
        return msgspec.json.decode(text, type=tuple[float, float])
    except msgspec.MsgspecError:
        return None


def _trial(trial: Trial, works: Iterable[FoldWork], gate: tuple[float, float] | None, figures: _Figures) -> TrialReport:
    """One trial's figures; those of its adapters only where every fold has them."""
    by_adapter: dict[str, list[FoldResult]] = {}
    whole = True
    for work in works:
        result = figures.results.get(work.key)
        if not isinstance(result, FoldResult):
            whole = False
        else:
            by_adapter.setdefault(work.name, []).append(result)
    every = [result for own in by_adapter.values() for result in own] if whole else []
    tokens, prompts = sum(item.tokens for item in every), sum(item.prompts for item in every)
    return TrialReport(
        settings=trial.settings,
        loss=sum(item.nll for item in every) / tokens if tokens else None,
        base_loss=sum(item.base_nll for item in every) / tokens if tokens else None,
        effect=sum(item.kl for item in every) / prompts if prompts else None,
        adapters={
            name: sum(item.nll for item in own) / sum(item.tokens for item in own)
            for name, own in (by_adapter if whole else {}).items()
        },
        accuracy=gate[0] if gate is not None else None,
        log_loss=gate[1] if gate is not None else None,
    )


def _write_best(request: SweepRequest, found: SweepReport) -> None:
    """Put the best trial's settings into the document, none where all are alike. Raises UsageError where no trial has
    a figure, FileChanged."""
    if not found.judged:
        raise UsageError(f"no trial has a figure to be judged by ({found.by}): nothing was written")
    if request.document.path is None:
        raise UsageError("the document has no file to write to")
    if found.best is None:
        found.notes.append(f"{found.reason}; nothing was written into the document")
        return
    written = trials_of(request.document, request.data, request.grid)[found.best].written
    write_settings(request.document.path, request.document.sha256, written)
    found.written = dict(written)


def _keep(store: Store, metrics: MetricsWriter, found: SweepReport) -> None:
    """The report with the metrics, and the reason of a change of the document in the run's log."""
    try:
        metrics.record_sweep(found.run_id, found.as_json())
    except MetricsError as error:
        found.notes.append(f"the report is not kept: {error}")
    with contextlib.suppress(StoreError, OSError), RunLog.of_run(store, found.run_id) as log:
        log.event("sweep", **found.as_json())
        if found.written is not None:
            log.event("document_changed", settings=found.written, reason=found.reason)
