"""A job child: `python -m dlm_tui.engine.job_worker`. Runs one training or export request and ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.engine.priority import JOB, give_way
from dlm_tui.engine.progress_events import ProgressEvents
from dlm_tui.engine.protocol import (
    PROTOCOL,
    Cancel,
    Evaluated,
    EvaluateJob,
    Event,
    Exported,
    ExportJob,
    Failed,
    Hello,
    Imported,
    ImportJob,
    JobRequest,
    Log,
    Request,
    Stopped,
    SweepJob,
    Swept,
    Trained,
    TrainJob,
)
from dlm_tui.engine.stdio_transport import StdioTransport, package_versions
from dlm_tui.errors import Cancelled, DlmTuiError
from dlm_tui.export.report import ExportReport
from dlm_tui.model.environment import collect_rarely, quiet_libraries
from dlm_tui.model.memory import refuse_narrow_limits
from dlm_tui.progress import NOTE, WARNING, Progress
from dlm_tui.system_errors import error_line, system_sentence

if TYPE_CHECKING:
    from dlm_tui.export import ExportRequest
    from dlm_tui.export.cost_table import FormatCost
    from dlm_tui.session import Session


class _Job:
    """The state shared by the thread that reads requests and the one that works."""

    def __init__(self, transport: StdioTransport, request: JobRequest):
        self.transport, self.request, self._progress = transport, request, ProgressEvents()
        self._cancelled = threading.Event()
        threading.Thread(target=self._watch, name="cancel", daemon=True).start()

    def _watch(self) -> None:
        while True:
            message = self.transport.inbox.get()
            if message is None or (isinstance(message, Cancel) and message.target == self.request.id):
                self._cancelled.set()
                return

    def check(self) -> None:
        """Raises Cancelled once that was asked for, or once the screen is gone."""
        if self._cancelled.is_set():
            raise Cancelled

    def send(self, event: Event) -> None:
        """Send an event of this job."""
        event.id = self.request.id
        self.transport.send(event)

    def step(self, step: Progress) -> None:
        """Report progress, and stop here when that was asked for; notes are about what is done already."""
        if step.stage not in {NOTE, WARNING}:
            self.check()
        self.send(self._progress.event(step))


def main() -> None:
    """Take one request, answer it, end."""
    give_way(JOB)
    collect_rarely()
    quiet_libraries()
    transport = StdioTransport()
    transport.send(
        Hello(protocol=PROTOCOL, versions=package_versions(), device="cpu", dtype="float32", pid=os.getpid())
    )
    transport.listen()
    request: Request | None = transport.inbox.get()
    if not isinstance(request, JobRequest):
        os._exit(2)
    # A terminal's hang-up or a plain kill ends the work through the same door as a cancel message.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _raise_cancelled)
    job = _Job(transport, request)
    job.send(_answer(job))
    os._exit(0)


def _raise_cancelled(*_: object) -> None:
    raise Cancelled


def _answer(job: _Job) -> Event:
    try:
        refuse_narrow_limits()
        match job.request:
            case TrainJob():
                return run_train(job, job.request)
            case EvaluateJob():
                return run_evaluate(job, job.request)
            case ExportJob():
                return run_export(job, job.request)
            case SweepJob():
                return run_sweep(job, job.request)
            case ImportJob():
                return run_import(job, job.request)
    except Cancelled as stop:
        return Stopped(reason="cancelled", text=str(stop))
    except DlmTuiError as error:
        return Failed(kind=type(error).__name__, text=str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return Failed(kind=type(error).__name__, text=system_sentence(error) or f"unexpected {error_line(error)}")


def run_train(job: _Job, request: TrainJob) -> Trained:
    """Train with one thread fewer than the machine has, so that typing stays quick.

    What was interrupted goes on with as many threads as before: the bytes depend on them.
    """
    import torch

    from dlm_tui.document import load, sources
    from dlm_tui.model import base_of, load_base
    from dlm_tui.progress import run_to_end
    from dlm_tui.store import Store, resolve_home
    from dlm_tui.store.checkpoints import interrupted
    from dlm_tui.store.owed import owed_by_training
    from dlm_tui.training import TrainRequest, refuse_before_base, train_document
    from dlm_tui.training.report import TrainOutcome, train_report
    from dlm_tui.training.request import calibration_prompts

    document, scan = sources.expand_sources(load(Path(request.document)))
    store = Store(resolve_home(request.home), document.dlm_id)
    left = interrupted(store) if request.resume else None  # None also where it was ended before its first checkpoint
    receipt = store.root / request.receipt if request.receipt else None
    in_force = receipt is not None and receipt.is_file()  # an earlier try was ended between adapters and gate
    owed = owed_by_training(store) if in_force else None
    if in_force and left is None and owed is None:  # it was ended when all was done
        return Trained(report=train_report(document, TrainOutcome()))
    asked = left.asked if left is not None else owed.asked if owed is not None else None
    torch.set_num_threads(asked.threads if asked is not None else max(1, (os.cpu_count() or 2) - 1))
    refuse_before_base(document, store, request.adapters, request.choices, gate_only=request.gate_only)
    calibration = calibration_prompts(Path(request.calibration)) if request.calibration else None
    base = run_to_end(load_base(base_of(document, request.base)), job.step)
    outcome = train_document(
        TrainRequest(
            document=document,
            store=store,
            base=base,
            adapters=request.adapters,
            gate_only=request.gate_only,
            choices=request.choices,
            calibration=calibration,
            scan=scan,
            base_folder=request.base,
            resume=left is not None or owed is not None,
            checkpoint_steps=request.checkpoint_steps,
            trainer=request.trainer,
            receipt=receipt,
        ),
        job.step,
    )
    return Trained(report=train_report(document, outcome))


def run_evaluate(job: _Job, request: EvaluateJob) -> Evaluated:
    """Judge the gate by folds; the report is kept in the metrics."""
    from dlm_tui.gate import evaluate_gate, record_evaluation
    from dlm_tui.progress import run_to_end
    from dlm_tui.session import Session
    from dlm_tui.store import resolve_home

    override = Path(request.base) if request.base else None
    opening = Session.open(Path(request.document), resolve_home(request.home), override, adapters=False)
    session = run_to_end(opening, job.step)
    work = evaluate_gate(session.document, session.store, session.model, folds=request.folds)
    report = run_to_end(work, job.step)
    if problem := record_evaluation(session.store, report):
        job.send(Log(text=f"the report is not kept: {problem}", level="warning"))
    return Evaluated(report=report)


def run_sweep(job: _Job, request: SweepJob) -> Swept:
    """Try settings on held-out sections, with one thread fewer than the machine has."""
    import torch

    from dlm_tui.document import parse_bytes, read_document_bytes, sources
    from dlm_tui.model import base_of, load_base
    from dlm_tui.progress import run_to_end
    from dlm_tui.store import Store, refuse_other_document, resolve_home
    from dlm_tui.training.sweep import SweepRequest, sweep_document
    from dlm_tui.training.sweep_grid import parse_grid, trials_of

    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    path = Path(request.document)
    data = read_document_bytes(path)
    document, scan = sources.expand_sources(parse_bytes(data, path))
    store = Store(resolve_home(request.home), document.dlm_id)
    refuse_other_document(store, document)
    grid = parse_grid(request.settings)
    trials_of(document, data, grid)  # what is wrong with the grid is said before a base is loaded
    base = run_to_end(load_base(base_of(document, request.base)), job.step)
    wanted = SweepRequest(
        document=document,
        data=data,
        store=store,
        base=base,
        grid=grid,
        folds=request.folds,
        by=request.by,
        write=request.write,
        scan=scan,
    )
    return Swept(report=sweep_document(wanted, job.step))


def run_import(job: _Job, request: ImportJob) -> Imported:
    """Check an adapter against the base and put it in force."""
    from dlm_tui.document import load
    from dlm_tui.model import base_of, load_base
    from dlm_tui.progress import run_to_end
    from dlm_tui.store import resolve_home
    from dlm_tui.training.import_adapter import import_adapter

    path, home = Path(request.document), resolve_home(request.home)
    base = run_to_end(load_base(base_of(load(path), request.base)), job.step)
    done = run_to_end(import_adapter(request.source, request.name, path, home, base, replace=True), job.step)
    rank = done.candidate.adapter.rank
    return Imported(name=done.name, version=done.version, rank=rank, declared=done.declared, notes=list(done.notes))


def run_export(job: _Job, request: ExportJob) -> Exported:
    """Export, and hand the result to Ollama where that is asked for."""
    from dlm_tui.export import ExportRequest, export_document
    from dlm_tui.export.report import export_report
    from dlm_tui.progress import run_to_end
    from dlm_tui.session import Session
    from dlm_tui.store import resolve_home

    override = Path(request.base) if request.base else None
    session = run_to_end(Session.open(Path(request.document), resolve_home(request.home), override), job.step)
    wanted = ExportRequest(
        target=request.target,
        quant=request.quant,
        mix=request.mix,
        adapter=request.adapter,
        signed=request.signed,
        out=request.out,
        verify=request.verify,
        legacy_adapter=request.legacy_adapter,
        comparison=tuple(request.comparison),
    )
    if request.compare:
        return Exported(report=ExportReport(folder="", next_command="", comparison=_compare(job, wanted, session)))
    result = run_to_end(export_document(wanted, session), job.step)
    report = export_report(result)
    if request.register and request.target == "ollama":
        _register(job, report, result.folder, str(result.manifest["ollama_name"]))
    return Exported(report=report)


def _compare(job: _Job, wanted: ExportRequest, session: Session) -> list[FormatCost]:
    """What is measured by the time it is done or stopped. Raises Cancelled when that is nothing beside float32."""
    from dlm_tui.export.format_costs import FORMS, FormatComparison
    from dlm_tui.progress import run_to_end

    comparison = FormatComparison(wanted, session)
    try:
        run_to_end(comparison.run(), job.step)
    except Cancelled:
        if len(comparison.lines) <= len(FORMS):
            raise
    return comparison.lines


def _register(job: _Job, report: ExportReport, folder: Path, name: str) -> None:
    """Hand a finished export to Ollama; `report` says how that went."""
    from contextlib import closing

    from dlm_tui.export import create_model

    try:
        with closing(create_model(folder, name)) as lines:
            for line in lines:
                job.check()
                job.send(Log(text=line))
        report.registered = name
    except Cancelled:
        report.register_error = "ollama create was stopped; the export itself is complete"
    except (DlmTuiError, OSError) as error:
        report.register_error = str(error)


if __name__ == "__main__":
    main()
