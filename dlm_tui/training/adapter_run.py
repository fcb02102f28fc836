"""The run of one adapter: trained, recorded and written as a version that is not in force yet."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from dlm_tui.document import sources
from dlm_tui.errors import Cancelled
from dlm_tui.losses import SFT
from dlm_tui.progress import EarlyLook, Eta, Progress, Report
from dlm_tui.store import (
    MetricsWriter,
    RunLog,
    Store,
    StoreError,
    new_version,
    read_manifest,
    reject_version,
    utc_seconds,
)
from dlm_tui.store.adapter_kind import TrainingRecord, tail_words
from dlm_tui.store.litter import clear_earlier_try
from dlm_tui.store.version_record import AdapterVersion
from dlm_tui.store.versions import discard_version
from dlm_tui.training.adapter_task import AdapterTask
from dlm_tui.training.adapter_work import Trained, train_adapter
from dlm_tui.training.checkpoints import AdapterCheckpoints
from dlm_tui.training.commit import (
    FinishedRun,
    finish_run,
    last_losses,
    pinned_versions,
    record_loss_kind,
    record_tail_depth,
    write_version,
)
from dlm_tui.training.phases import Diverged, Finetuned, Step

_log = logging.getLogger(__name__)
Say = Callable[[str], None]
"""Tells a person a sentence, and keeps it for the outcome."""


class StepCount:
    """Counts optimiser steps over the adapters of a training, so that the time left is that of all of them."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._total = report, total
        self._done, self._eta = 0, Eta()

    def skip(self, steps: int) -> None:
        """Steps that an earlier try of this training has done."""
        self._done += steps

    def tick(self, name: str, step: Step) -> None:
        """A step of the adapter is done, or it was looked at."""
        if step.look is not None:
            self._report(Progress(step.phase, scope=name, look=step.look))
        if step.loss is None:
            return
        self._done += 1
        eta = self._eta.left("adapters", self._done, self._total)
        self._report(
            Progress(step.phase, self._done, self._total, scope=name, loss=step.loss, eta=eta, loss_kind=step.loss_kind)
        )


def train_task(
    task: AdapterTask, trained: Trained | None, metrics: MetricsWriter, count: StepCount, say: Say, *, alone: bool
) -> FinishedRun:
    """One adapter to the end, or what was `trained` elsewhere; `alone` is the only one of its run and need not wait
    for others. A run that fails leaves its row in the metrics, and no version."""
    request, plan, adapter = task.request, task.plan, task.adapter
    started, began = utc_seconds(), time.monotonic()
    fingerprint = task.fingerprint
    if request.resume:
        clear_earlier_try(request.store, task.name, fingerprint)
    target = new_version(request.store, task.name)
    run_id = metrics.begin_run(
        adapter.phases[0].name,
        plan.seed,
        adapter_version=target.version,
        adapter_name=task.name,
        parameterization=adapter.parameterization,
        details=task.details,
    )
    with RunLog(request.store, run_id) as log:
        _log_beginning(log, task)
        recorder = _Recorder(metrics, log, run_id)
        checkpoints = task.checkpoints(run_id)
        with _given_up_on_error(request.store, metrics, run_id, target):
            result = _result(task, trained, checkpoints, recorder, count, say, alone=alone)
            if result.tail_depth:
                record_tail_depth(metrics, run_id, result.tail_depth)
            losses = last_losses(plan, result)
            record = TrainingRecord(
                kind=adapter.kind,
                words=adapter.words,
                calibration=task.calibrated_on,
                tail_depth=result.tail_depth,
                losses=losses,
            )
            write_version(request, target, result, record, fingerprint)
        steps = sum(result.steps.values())
        log.complete(steps=steps)
        if told := tail_words(adapter.selection, result.tail_depth):
            say(f"{task.name}: {told}")
        log.summary(
            adapter_version=target.version,
            seed=plan.seed,
            steps=steps,
            duration_seconds=time.monotonic() - began + (trained.seconds if trained else 0.0),
            train_losses=losses,
            final_val_loss=result.val_loss,
            adapter_name=task.name,
            source_directives=[sources.describe_short(counts) for counts in request.scan.counts]
            if request.scan
            else [],
        )
        return FinishedRun(
            plan=adapter,
            fingerprint=fingerprint,
            run_id=run_id,
            version=target,
            started_at=started,
            result=result,
            losses=losses,
            summary=log.summary_relative,
            looks=recorder.looks,
        )


def discard_unused(store: Store, version: AdapterVersion) -> None:
    """Remove a version that will not be put in force; one that cannot be removed stays, and `doctor` finds it."""
    try:
        discard_version(store, version)
    except (StoreError, OSError) as error:
        _log.warning("%s stays: %s", version.path, error)


class _Recorder:
    """Writes the steps of a run to its metrics and its log; `looks` are those at its answers meanwhile."""

    def __init__(self, metrics: MetricsWriter, log: RunLog, run_id: int) -> None:
        self._metrics, self._log, self._run_id = metrics, log, run_id
        self._offset, self._kinds = 0, set[str]()
        self.looks: list[EarlyLook] = []

    def keep(self, step: Step) -> None:
        # A second phase counts on, because a run's steps are keyed by their number.
        number = step.step + (self._offset if step.phase != "sft" else 0)
        if step.phase == "sft":
            self._offset = max(self._offset, step.step)
        if step.look is not None:
            self.looks.append(step.look)
            self._log.look(number, step.look)
        if step.val_loss is not None:
            self._metrics.record_eval(self._run_id, number, step.val_loss)
        elif step.look is None:
            self._keep_loss(number, step)

    def _keep_loss(self, number: int, step: Step) -> None:
        if step.loss_kind is not None and step.loss_kind not in self._kinds:
            self._kinds.add(step.loss_kind)
            record_loss_kind(self._metrics, self._run_id, step.loss_kind, number)
        facts = (number, step.loss, step.learning_rate, step.grad_norm, step.tokens_per_second)
        self._metrics.record_step(self._run_id, *facts)
        self._log.step(*facts, loss_kind=step.loss_kind or SFT, tokens=step.tokens)


@contextlib.contextmanager
def _given_up_on_error(store: Store, metrics: MetricsWriter, run_id: int, version: AdapterVersion) -> Iterator[None]:
    """Whatever stops the run is recorded as its end, and its version goes; a diverged one is set aside."""
    try:
        yield
    except BaseException as error:
        finish_run(metrics, run_id, "cancelled" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed")
        if isinstance(error, Diverged):
            reject_version(store, version)
        else:
            discard_unused(store, version)
        raise


def _result(
    task: AdapterTask,
    trained: Trained | None,
    checkpoints: AdapterCheckpoints,
    recorder: _Recorder,
    count: StepCount,
    say: Say,
    *,
    alone: bool,
) -> Finetuned:
    """What the adapter became: elsewhere, before an interruption, or here and now."""
    if trained is not None:
        for step in trained.steps:
            recorder.keep(step)
        return trained.result
    if task.request.resume:
        if (finished := _finished(checkpoints)) is not None:
            say(f"{task.name}: trained to the end before the interruption")
            count.skip(sum(finished.steps.values()))
            return finished
        say(_resumed_text(task.name, checkpoints))
    count.skip(checkpoints.resumed_step)

    def on_step(step: Step) -> None:
        recorder.keep(step)
        count.tick(task.name, step)

    result = train_adapter(task.request.base, task.work(), on_step, checkpoints)
    if not alone:
        checkpoints.finish(result.tensors, result.config, result.tail_depth)
    return result


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


def _log_beginning(log: RunLog, task: AdapterTask) -> None:
    """The versions, the plan, and which sections are new since the last training."""
    log.banner(seed=task.plan.seed, pinned_versions=pinned_versions(), plan=task.log_text)
    manifest = read_manifest(task.request.store)
    known = set(manifest.content_hashes) if manifest else set()
    now = task.adapter.rows.section_ids
    log.delta(
        new=[item for item in now if item not in known],
        unchanged=[item for item in now if item in known],
        removed=sorted(known - {section.section_id for section in task.request.document.sections}),
    )
