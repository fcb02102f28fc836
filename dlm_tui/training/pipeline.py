"""Train a document: every adapter on its own rows, all of them committed together, then the gate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from dlm_tui.document import sources
from dlm_tui.document.probes import NO_GATE
from dlm_tui.document.seeds import seed_note
from dlm_tui.errors import Cancelled, DlmTuiError, UsageError
from dlm_tui.losses import SFT
from dlm_tui.progress import EarlyLook, Eta, Progress, Report, note, run_to_end, warn
from dlm_tui.store import (
    MetricsWriter,
    RunLog,
    Store,
    StoreError,
    new_version,
    read_manifest,
    refuse_foreign_base,
    refuse_other_document,
    reject_version,
    run_lock,
    utc_seconds,
)
from dlm_tui.store.adapter_kind import TEXT_SELECTIONS, TrainingRecord, tail_words
from dlm_tui.store.checkpoints import forget_checkpoints, interrupted, interrupted_damage
from dlm_tui.store.litter import clear_earlier_try
from dlm_tui.store.owed_gate import REMEDY, OwedGate, owed_gate
from dlm_tui.store.version_record import AdapterVersion
from dlm_tui.store.versions import discard_version
from dlm_tui.training.adapter_work import AdapterWork, Trained, train_adapter
from dlm_tui.training.checkpoints import AdapterCheckpoints, CheckpointEvery, fingerprint
from dlm_tui.training.commit import (
    FinishedRun,
    commit_runs,
    finish_run,
    keep_runs,
    last_losses,
    pinned_versions,
    record_loss_kind,
    record_tail_depth,
    write_version,
)
from dlm_tui.training.early_answers import early_prompts
from dlm_tui.training.effects import measure_effects
from dlm_tui.training.launcher import launcher_variables, without_launcher
from dlm_tui.training.memory import fitting_rows
from dlm_tui.training.phases import Diverged, Finetuned, Step
from dlm_tui.training.plan import AdapterPlan, TrainingPlan, refuse_impossible, refuse_lacking
from dlm_tui.training.report import AdapterOutcome, TrainOutcome
from dlm_tui.training.request import TrainRequest
from dlm_tui.training.rows import AdapterRows, cut_notes, tokenised

if TYPE_CHECKING:
    from dlm_tui.document.sources import SourceScan
    from dlm_tui.model import Base

_log = logging.getLogger(__name__)
Say = Callable[[str], None]
"""Tells a person a sentence, and keeps it for the outcome."""


def train_document(request: TrainRequest, report: Report) -> TrainOutcome:
    """Train, write the new versions, flip all pointers, then train the gate.

    Until every adapter is trained nothing that is in force changes: a failed or cancelled run leaves the previous
    adapters and gate, and marks its rows. A gate that fails for whatever reason leaves the new adapters and the old
    gate in force, and the outcome says so. Raises UsageError for an unknown adapter, Diverged, Cancelled (whose
    sentence tells what is in force), DlmTuiError.
    """
    began = time.monotonic()
    outcome, runs = TrainOutcome(), list[FinishedRun]()

    def say(text: str) -> None:
        outcome.notes.append(text)
        note(report, text)

    request.store.create()
    ignored = launcher_variables()
    with run_lock(request.store), without_launcher():
        if ignored:
            say(f"launcher variables are ignored, a training is one process: {', '.join(ignored)}")
        refuse_other_document(request.store, request.document)
        refuse_foreign_base(request.store, request.document)
        owed = _gate_left(request)
        if owed is not None:
            say("the adapters are trained and in force, the gate is left")
        elif request.gate_only:
            if remark := seed_note(request.document.training.seed):
                say(remark)
        else:
            plan = request.plan()
            refuse_impossible(plan, gpu=torch.cuda.is_available())
            for text in (*plan.notes, *_source_notes(request.scan)):
                say(text)
            with MetricsWriter(request.store) as metrics:
                _say_of_interrupted(request, say)
                runs = _train_adapters(request, plan, metrics, report, say)
                report(Progress("commit", text="putting the new adapters in force"))
                commit_runs(request, metrics, runs, request.asked(plan, torch.get_num_threads()))
            forget_checkpoints(request.store)
            outcome.adapters = {run.name: _adapter_outcome(run) for run in runs}
        if request.document.gate_enabled:
            _train_gate(request, report, outcome, owed)
        elif request.gate_only:
            raise UsageError(NO_GATE)
        measure_effects(request, runs, outcome, report)
    outcome.seconds = time.monotonic() - began
    return outcome


def _train_adapters(
    request: TrainRequest, plan: TrainingPlan, metrics: MetricsWriter, report: Report, say: Say
) -> list[FinishedRun]:
    """Every adapter of the plan, trained and written, none in force yet."""
    work: list[tuple[AdapterPlan, AdapterRows]] = []
    for adapter in plan.adapters:
        rows = tokenised(adapter.rows, plan.sequence_len, request.base)
        for text in cut_notes(adapter.name, rows):
            say(text)
        if any(rows.of(phase) for phase in adapter.phases):
            texts = len(rows.train) if request.calibration is None else len(request.calibration.prompts)
            refuse_lacking(adapter.name, adapter.kind, texts=texts, pairs=len(rows.preference))
            work.append((adapter, rows))
    if not work:
        raise DlmTuiError("there is nothing to train: no section of the document reaches an adapter")
    plan = _within_memory(request.base, plan, [rows for _, rows in work], say)
    total = sum(plan.steps(rows.of(phase), phase) for adapter, rows in work for phase in adapter.phases)
    count = _Count(report, total)
    runs: list[FinishedRun] = []
    elsewhere = _trained_elsewhere(request, plan, work, report, count)
    try:
        for adapter, rows in work:
            trained = elsewhere.get(adapter.name)
            runs.append(_train_one(request, plan, adapter, rows, metrics, count, say, trained, alone=len(work) == 1))
    except (Cancelled, KeyboardInterrupt):
        for run in runs:
            _discard(request.store, run.version)
            finish_run(metrics, run.run_id, "cancelled")
        raise
    except BaseException:
        keep_runs(metrics, runs)
        raise
    return runs


def _trained_elsewhere(
    request: TrainRequest,
    plan: TrainingPlan,
    work: list[tuple[AdapterPlan, AdapterRows]],
    report: Report,
    count: _Count,
) -> dict[str, Trained]:
    """The adapters that other machines trained, by name; each is kept as it comes, so that `resume` has it."""
    if request.elsewhere is None:
        return {}

    furthest: dict[tuple[str | None, str], float] = {}

    def live(step: Progress) -> None:
        if step.loss is None:  # a look, or the cluster itself: the steps of all adapters are counted here
            report(msgspec.structs.replace(step, done=0))
        elif step.done > furthest.get((step.scope, step.stage), 0):
            furthest[step.scope, step.stage] = step.done
            done = Step(phase=step.stage, step=int(step.done), loss=step.loss, loss_kind=step.loss_kind)
            count.tick(step.scope or "", done)
        else:  # what was lost with a node is done again, and counted once
            report(Progress(step.stage, scope=step.scope))

    waiting: dict[str, AdapterCheckpoints] = {}
    missing: list[AdapterWork] = []
    for adapter, rows in work:
        checkpoints = _checkpoints(request, plan, adapter, rows, run_id=0)
        if not request.resume or checkpoints.finished() is None:
            waiting[adapter.name] = checkpoints
            missing.append(_work(request, plan, adapter, rows))
    found: dict[str, Trained] = {}
    for one, trained in request.elsewhere.train(missing, live):
        found[one.adapter.name] = trained
        if len(work) > 1:
            checkpoints, result = waiting[one.adapter.name], trained.result
            checkpoints.done = result.phases
            checkpoints.finish(result.tensors, result.config, result.tail_depth)
    return found


def _within_memory(base: Base, plan: TrainingPlan, work: list[AdapterRows], say: Say) -> TrainingPlan:
    """The plan with as many rows at once as memory allows, where the document leaves that to the machine."""
    longest = max(rows.longest for rows in work)
    checkpointing = plan.trainer.activation_checkpointing
    fitting = fitting_rows(base.model, base.config, longest, plan.micro_batch, checkpointing=checkpointing)
    fitted = plan.within(fitting)
    if fitted is not plan:
        say(f"{fitted.micro_batch} rows at once, {fitted.grad_accum} times a step: memory has no room for more")
    return fitted


class _Count:
    """Counts optimiser steps over the adapters of a run, so that the time left is that of all of them."""

    def __init__(self, report: Report, total: int):
        self._report, self._total = report, total
        self._done, self._eta = 0, Eta()

    def skip(self, steps: int) -> None:
        """Steps that an earlier try of this run has done."""
        self._done += steps

    def tick(self, name: str, step: Step) -> None:
        if step.look is not None:
            self._report(Progress(step.phase, scope=name, look=step.look))
        if step.loss is None:
            return
        self._done += 1
        eta = self._eta.left("adapters", self._done, self._total)
        self._report(
            Progress(step.phase, self._done, self._total, scope=name, loss=step.loss, eta=eta, loss_kind=step.loss_kind)
        )


def _train_one(
    request: TrainRequest,
    plan: TrainingPlan,
    adapter: AdapterPlan,
    rows: AdapterRows,
    metrics: MetricsWriter,
    count: _Count,
    say: Say,
    trained: Trained | None,
    *,
    alone: bool,
) -> FinishedRun:
    """One adapter to the end, or what was `trained` elsewhere; `alone` is the only one of its run and need not wait
    for others."""
    document, store, name = request.document, request.store, adapter.name
    started = utc_seconds()
    deciding = _fingerprint(request, plan, adapter, rows)
    if request.resume:
        clear_earlier_try(store, name, deciding)
    target = new_version(store, name)
    run_id = metrics.begin_run(
        adapter.phases[0].name,
        plan.seed,
        adapter_version=target.version,
        adapter_name=name,
        parameterization=adapter.parameterization,
        details={**_kind_details(adapter, request), "settings": plan.settings(adapter)},
    )
    began = time.monotonic()
    with RunLog(store, run_id) as log:
        log.banner(
            seed=plan.seed,
            pinned_versions=pinned_versions(),
            plan=_plan_text(request, plan, adapter, rows),
        )
        known = _known_sections(store)
        log.delta(
            new=[item for item in adapter.rows.section_ids if item not in known],
            unchanged=[item for item in adapter.rows.section_ids if item in known],
            removed=sorted(known - {section.section_id for section in document.sections}),
        )
        offset = 0
        looks: list[EarlyLook] = []
        kinds: set[str] = set()

        def keep(step: Step) -> None:
            nonlocal offset
            # A second phase counts on, because a run's steps are keyed by their number.
            number = step.step + (offset if step.phase != "sft" else 0)
            if step.phase == "sft":
                offset = max(offset, step.step)
            if step.look is not None:
                looks.append(step.look)
                log.look(number, step.look)
            if step.val_loss is not None:
                metrics.record_eval(run_id, number, step.val_loss)
            elif step.look is None:
                if step.loss_kind is not None and step.loss_kind not in kinds:
                    kinds.add(step.loss_kind)
                    record_loss_kind(metrics, run_id, step.loss_kind, number)
                metrics.record_step(
                    run_id, number, step.loss, step.learning_rate, step.grad_norm, step.tokens_per_second
                )
                log.step(
                    number,
                    step.loss,
                    step.learning_rate,
                    step.grad_norm,
                    step.tokens_per_second,
                    loss_kind=step.loss_kind or SFT,
                    tokens=step.tokens,
                )

        def on_step(step: Step) -> None:
            keep(step)
            count.tick(name, step)

        checkpoints = _checkpoints(request, plan, adapter, rows, run_id)
        try:
            result = _finished(checkpoints) if request.resume and trained is None else None
            if trained is not None:
                for step in trained.steps:
                    keep(step)
                result = trained.result
                began -= trained.seconds
            elif result is None:
                if request.resume:
                    say(_resumed_text(name, checkpoints))
                count.skip(checkpoints.resumed_step)
                work = _work(request, plan, adapter, rows)
                result = train_adapter(request.base, work, on_step, checkpoints)
                if not alone:
                    checkpoints.finish(result.tensors, result.config, result.tail_depth)
            else:
                say(f"{name}: trained to the end before the interruption")
                count.skip(sum(result.steps.values()))
            if result.tail_depth:
                record_tail_depth(metrics, run_id, result.tail_depth)
            losses = last_losses(plan, result)
            record = TrainingRecord(
                kind=adapter.kind,
                words=adapter.words,
                calibration=_calibrated_on(adapter, request),
                tail_depth=result.tail_depth,
                losses=losses,
            )
            write_version(request, target, result, record, deciding)
        except BaseException as error:
            finish_run(metrics, run_id, "cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed")
            if isinstance(error, Diverged):
                reject_version(store, target)
            else:
                _discard(store, target)
            raise
        steps = sum(result.steps.values())
        log.complete(steps=steps)
        if told := tail_words(adapter.selection, result.tail_depth):
            say(f"{name}: {told}")
        log.summary(
            adapter_version=target.version,
            seed=plan.seed,
            steps=steps,
            duration_seconds=time.monotonic() - began,
            train_losses=losses,
            final_val_loss=result.val_loss,
            adapter_name=name,
            source_directives=[sources.describe_short(counts) for counts in request.scan.counts]
            if request.scan
            else [],
        )
        return FinishedRun(
            plan=adapter,
            fingerprint=deciding,
            run_id=run_id,
            version=target,
            started_at=started,
            result=result,
            losses=losses,
            summary=log.summary_relative,
            looks=looks,
        )


def _discard(store: Store, version: AdapterVersion) -> None:
    try:
        discard_version(store, version)
    except (StoreError, OSError) as error:
        _log.warning("%s stays: %s", version.path, error)  # `doctor` finds it


def _work(request: TrainRequest, plan: TrainingPlan, adapter: AdapterPlan, rows: AdapterRows) -> AdapterWork:
    prompts = _calibration_ids(request, rows) if _calibrated_on(adapter, request) else None
    asked = early_prompts(adapter.rows, rows, request.base) if plan.trainer.early_answers else None
    return AdapterWork(plan=plan, adapter=adapter, rows=rows, prompts=prompts, asked=asked)


def _calibrated_on(adapter: AdapterPlan, request: TrainRequest) -> str | None:
    """The prompt set that the adapter's selection looks at, None where it looks at the adapter's own rows."""
    return request.calibration.source if request.calibration and adapter.selection in TEXT_SELECTIONS else None


def _calibration_ids(request: TrainRequest, rows: AdapterRows) -> list[list[int]]:
    """The prompts of the prompt set as the base is asked them, cut as training rows are."""
    prompts = request.calibration.prompts if request.calibration else ()
    system = request.document.system_prompt
    return [request.base.chat(prompt, system)[: rows.limit] for prompt in prompts]


def _kind_details(adapter: AdapterPlan, request: TrainRequest) -> dict[str, Any]:
    """What the metrics keep of an adapter's kind of training, beside its parameterization."""
    details = {
        "selection": adapter.selection,
        "rank": adapter.rank,
        "coefficient": adapter.coefficient if adapter.signed else None,
        "calibration": _calibrated_on(adapter, request),
    }
    return {key: value for key, value in details.items() if value is not None}


def _say_of_interrupted(request: TrainRequest, say: Say) -> None:
    """What is to be continued is there, or what is there is given up. Raises UsageError where there is nothing."""
    left = interrupted(request.store)
    if request.resume and left is None:
        if damage := interrupted_damage(request.store):
            raise UsageError(f"the interrupted training cannot be gone on with: {damage}; train without --resume")
        raise UsageError("there is no interrupted training to continue; train without --resume")
    if not request.resume:
        if left is not None:
            say(f"an interrupted training is given up ({left.words}): `train --resume` would have gone on with it")
        forget_checkpoints(request.store)


def _gate_left(request: TrainRequest) -> OwedGate | None:
    """The gate where that is all that is left of the training to go on with."""
    if not request.resume or not request.document.gate_enabled or interrupted(request.store) is not None:
        return None
    return owed_gate(request.store)


def _checkpoints(
    request: TrainRequest, plan: TrainingPlan, adapter: AdapterPlan, rows: AdapterRows, run_id: int
) -> AdapterCheckpoints:
    return AdapterCheckpoints.open(
        request.store,
        adapter.name,
        _fingerprint(request, plan, adapter, rows),
        run_id,
        sum(plan.steps(rows.of(phase), phase) for phase in adapter.phases),
        CheckpointEvery(steps=request.checkpoint_steps, seconds=request.checkpoint_seconds),
        request.resume,
        request.asked(plan, torch.get_num_threads()),
    )


def _fingerprint(request: TrainRequest, plan: TrainingPlan, adapter: AdapterPlan, rows: AdapterRows) -> str:
    """Of all that decides what the adapter becomes."""
    own = {key: value for key, value in vars(adapter).items() if key != "rows"}
    prompts = request.calibration.prompts if request.calibration and _calibrated_on(adapter, request) else None
    return fingerprint(plan.deciding(), own, vars(rows), prompts, request.base.identity.key, pinned_versions())


def _finished(checkpoints: AdapterCheckpoints) -> Finetuned | None:
    """The result of an adapter that an earlier try of this run has trained to the end."""
    found = checkpoints.finished()
    if found is None:
        return None
    tensors, config, tail_depth, phases = found
    result = Finetuned(tensors=tensors, config=config, tail_depth=tail_depth)
    for phase in phases:
        result.add(phase)
    return result


def _resumed_text(name: str, checkpoints: AdapterCheckpoints) -> str:
    because = f", as {'; '.join(checkpoints.damaged)}" if checkpoints.damaged else ""
    if checkpoints.resume is not None:
        return f"{name}: goes on behind step {checkpoints.resumed_step} of {checkpoints.total}{because}"
    return f"{name}: starts at the beginning{because or ', there is no checkpoint of this very training'}"


def _train_gate(request: TrainRequest, report: Report, outcome: TrainOutcome, owed: OwedGate | None) -> None:
    """Train the gate on the adapters that are in force by now: whatever happens here, they stay so. One that is `owed`
    is of the run that put them there."""
    from dlm_tui.gate.embedding import embed_here
    from dlm_tui.gate.training import GateTrainingError, train_document_gate
    from dlm_tui.model import MixedModel

    last_run = max((item.run_id for item in outcome.adapters.values()), default=owed.run_id if owed else None)
    embed = request.elsewhere.embed if request.elsewhere is not None else embed_here
    model = MixedModel(request.base, {})
    work = train_document_gate(request.document, request.store, model, run_id=last_run, embed=embed)
    try:
        outcome.gate = run_to_end(work, lambda step: report(msgspec.structs.replace(step, scope="gate")))
    except (Cancelled, KeyboardInterrupt) as stop:
        if not outcome.adapters:
            raise
        raise Cancelled(
            f"stopped while the gate trained: {_in_force(outcome)}, the gate before stays; {REMEDY}"
        ) from stop
    except Exception as error:
        if not outcome.adapters:
            raise
        failure = GateTrainingError.of(error)
        outcome.gate_error = f"{failure} ({_in_force(outcome)}, the gate before stays; the next training tries again)"
        warn(report, outcome.gate_error)
    else:
        if outcome.gate.alarm:
            warn(report, outcome.gate.alarm)


def _in_force(outcome: TrainOutcome) -> str:
    versions = ", ".join(f"{name} version {item.version}" for name, item in outcome.adapters.items())
    return f"in force are {versions}"


def _adapter_outcome(run: FinishedRun) -> AdapterOutcome:
    last = run.losses[-1] if run.losses else None
    return AdapterOutcome(
        run_id=run.run_id,
        version=run.version.version,
        steps=sum(run.result.steps.values()),
        train_loss=last.value if last else None,
        train_loss_kind=last.kind if last else None,
        train_loss_unit=last.unit if last else None,
        train_losses=run.losses,
        val_loss=run.result.val_loss,
        kind=run.plan.words,
        selection=run.plan.selection,
        tail_depth=run.result.tail_depth,
        early_answers=run.looks,
    )


def _source_notes(scan: SourceScan | None) -> list[str]:
    """A sentence per source, and what was skipped with a warning."""
    if scan is None:
        return []
    return [sources.count_words(counts) for counts in scan.counts] + scan.warnings


def _known_sections(store: Store) -> set[str]:
    manifest = read_manifest(store)
    return set(manifest.content_hashes) if manifest else set()


def _plan_text(request: TrainRequest, plan: TrainingPlan, adapter: AdapterPlan, rows: AdapterRows) -> dict[str, Any]:
    return {
        "adapter": adapter.name,
        "parameterization": adapter.parameterization,
        "selection": adapter.selection,
        "rank": adapter.rank,
        "signed": adapter.coefficient if adapter.signed else None,
        "rows": len(rows.train),
        "validation_rows": len(rows.validation),
        "preference_rows": len(rows.preference),
        "base": request.base.identity.id,
        "settings": plan.settings(adapter),
    }
