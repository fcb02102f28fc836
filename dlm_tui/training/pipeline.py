"""Train a document: every adapter on its own rows, all of them committed together, then the gate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import torch

from dlm_tui.document import sources
from dlm_tui.document.probes import NO_GATE
from dlm_tui.document.seeds import seed_note
from dlm_tui.errors import Cancelled, DlmTuiError, UsageError
from dlm_tui.progress import Progress, Report, note, run_to_end, warn
from dlm_tui.store import (
    MetricsWriter,
    refuse_foreign_base,
    refuse_other_document,
    run_lock,
)
from dlm_tui.store.checkpoints import forget_checkpoints, interrupted, interrupted_damage
from dlm_tui.store.owed import REMEDY, Owed, owed_by_training
from dlm_tui.training.adapter_run import Say, StepCount, discard_unused, train_task
from dlm_tui.training.adapter_task import AdapterTask
from dlm_tui.training.adapter_work import AdapterWork, Trained
from dlm_tui.training.checkpoints import AdapterCheckpoints
from dlm_tui.training.commit import (
    FinishedRun,
    commit_runs,
    finish_run,
    keep_runs,
)
from dlm_tui.training.effects import measure_effects
from dlm_tui.training.launcher import launcher_variables, without_launcher
from dlm_tui.training.memory import fitting_rows
from dlm_tui.training.phases import Step
from dlm_tui.training.plan import AdapterPlan, TrainingPlan, refuse_impossible, refuse_lacking
from dlm_tui.training.report import AdapterOutcome, TrainOutcome
from dlm_tui.training.request import TrainRequest
from dlm_tui.training.rows import AdapterRows, cut_notes, tokenised

if TYPE_CHECKING:
    from dlm_tui.document.sources import SourceScan
    from dlm_tui.model import Base


def train_document(request: TrainRequest, report: Report) -> TrainOutcome:
    """Train, write the new versions, flip all pointers, then train the gate.

    Until every adapter is trained nothing that is in force changes: a failed or cancelled run leaves the previous
    adapters and gate, and marks its rows. A gate that fails for whatever reason leaves the new adapters and the old
    gate in force, and the outcome says so. Raises UsageError for an unknown adapter, Diverged, Cancelled (whose
    sentence tells what is in force), DlmTuiError.
    """
    began = time.monotonic()
    outcome = TrainOutcome()

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
        owed = _left(request)
        if owed is not None:
            say(owed.words)
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
        if request.document.gate_enabled and (owed is None or owed.gate):
            _train_gate(request, report, outcome, owed)
        elif request.gate_only:
            raise UsageError(NO_GATE)
        if not request.gate_only:
            measure_effects(request, outcome, report)
    outcome.seconds = time.monotonic() - began
    return outcome


def _train_adapters(
    request: TrainRequest, plan: TrainingPlan, metrics: MetricsWriter, report: Report, say: Say
) -> list[FinishedRun]:
    """Every adapter of the plan, trained and written, none in force yet."""
    reached: list[tuple[AdapterPlan, AdapterRows]] = []
    for adapter in plan.adapters:
        rows = tokenised(adapter.rows, plan.sequence_len, request.base)
        for text in cut_notes(adapter.name, rows):
            say(text)
        if any(rows.of(phase) for phase in adapter.phases):
            texts = len(rows.train) if request.calibration is None else len(request.calibration.prompts)
            refuse_lacking(adapter.name, adapter.kind, texts=texts, pairs=len(rows.preference))
            reached.append((adapter, rows))
    if not reached:
        raise DlmTuiError("there is nothing to train: no section of the document reaches an adapter")
    plan = _within_memory(request.base, plan, [rows for _, rows in reached], say)
    tasks = [AdapterTask(request, plan, adapter, rows) for adapter, rows in reached]
    count = StepCount(report, sum(task.steps for task in tasks))
    runs: list[FinishedRun] = []
    elsewhere = _trained_elsewhere(request, tasks, report, count)
    try:
        for task in tasks:
            runs.append(train_task(task, elsewhere.get(task.name), metrics, count, say, alone=len(tasks) == 1))
    except (Cancelled, KeyboardInterrupt):
        for run in runs:
            discard_unused(request.store, run.version)
            finish_run(metrics, run.run_id, "cancelled")
        raise
    except BaseException:
        keep_runs(metrics, runs)
        raise
    return runs


def _trained_elsewhere(
    request: TrainRequest, tasks: list[AdapterTask], report: Report, count: StepCount
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
    for task in tasks:
        checkpoints = task.checkpoints(run_id=0)
        if not request.resume or checkpoints.finished() is None:
            waiting[task.name] = checkpoints
            missing.append(task.work())
    found: dict[str, Trained] = {}
    for one, trained in request.elsewhere.train(missing, live):
        found[one.adapter.name] = trained
        if len(tasks) > 1:
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


def _left(request: TrainRequest) -> Owed | None:
    """What the training to go on with owes still, where its adapters are in force."""
    if not request.resume or interrupted(request.store) is not None:
        return None
    owed = owed_by_training(request.store)
    return owed if owed is not None and (request.document.gate_enabled or owed.effects) else None


def _train_gate(request: TrainRequest, report: Report, outcome: TrainOutcome, owed: Owed | None) -> None:
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
