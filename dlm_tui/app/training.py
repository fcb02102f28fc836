"""Training in the background, the gate alone in the engine, and what moved afterwards."""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic

from textual import on
from textual.widget import Widget

from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.moves import changed_text, moves_text
from dlm_tui.app.panes.jobs import JobsPane
from dlm_tui.app.rechecking import Rechecking
from dlm_tui.document.prompt_sets import PromptSets, PromptSetsError
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import (
    Drift,
    Drifted,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Progress,
    TrainGate,
    TrainJob,
    TrainReport,
)
from dlm_tui.store import MetricsReader

_TWICE_SECONDS = 2.0


class Training(Rechecking):
    """Train, retrain the gate, judge it."""

    _cancel_asked = 0.0

    def action_train(self) -> None:
        """Train every adapter, then the gate."""
        self.start_training(None)

    def start_training(self, adapters: list[str] | None) -> None:
        """Train these adapters, or all; one training at a time."""
        if self.board.running("train", "gate"):
            self.say("A training is already running; it is in the jobs pane.", warning=True)
            self.show_page("jobs")
            return
        if self.document_error:
            self.say("The document cannot be read right now; training waits for a good save.", warning=True)
            return
        title = "train " + (", ".join(adapters) if adapters else f"{len(self.names)} adapters and the gate")
        request = TrainJob(
            document=str(self.setup.path), home=str(self.setup.home), base=self.setup.base, adapters=adapters
        )
        self.runs.begin_losses()
        self.background(partial(self._train, request, title), "job-train", "training")

    async def _train(self, request: TrainJob, title: str) -> None:
        self.remember_current()
        record = await self.board.run(request, "train", title)
        if record.state == "done":
            self.state.trained_sections = [section.section_id for section in self.document.sections]
            self._warn_of_gate(record.training)
            await self.gate_changed()
            self.say(f"Trained: {record.summary}. {changed_text(self.moved)}".strip())
            if self.state.page == "jobs" and self.pane_of(self.focused) != "jobs":
                self.show_page("answers")
        elif record.state == "failed":
            self.say(record.summary, error=True, title="Training failed; the adapters before it stay in force")
        self.refresh_outline()

    def _warn_of_gate(self, report: TrainReport | None) -> None:
        """What the training's result says against the gate, though the adapters are trained."""
        if report is None:
            return
        for text in (report.gate_error, report.gate.warning if report.gate else None):
            if text:
                self.say(text, warning=True, title="The gate")

    def action_train_gate(self) -> None:
        """Train only the gate, in the resident engine."""
        if self.board.running("train", "gate"):
            self.say("A training is already running; it is in the jobs pane.", warning=True)
        elif not self.link.ready:
            self.say("The gate trains in the engine, which is not ready yet.", warning=True)
        else:
            self.background(self._train_gate_alone, "job-train", "gate training")

    async def _train_gate_alone(self) -> None:
        text = self.prompt_pane.text.strip()
        record = await self.retrain_gate()
        self.say_gate(record, text, title="Gate trained" if record.state == "done" else "")

    async def retrain_gate(self) -> JobRecord:
        """Train the gate on the document as it is now and use it at once."""
        self.remember_current()
        record = await self.board.follow(self.link.stream(TrainGate()), "gate", "train the gate")
        if record.trained is not None and record.state == "done":
            self.gate_run = record.trained.run_id
            await self.gate_changed()
        return record

    def say_gate(self, record: JobRecord, text: str, *, lead: str = "", trail: str = "", title: str = "") -> None:
        """One toast about a retrained gate: `lead`, what happened to the weights of the prompt `text`, `trail`."""
        if record.state == "cancelled":
            self.say(f"{lead} The gate was not retrained. {trail}".strip(), warning=True, title=title)
        elif record.state != "done" or record.trained is None:
            self.say(f"{lead} The gate was not changed: {record.summary} {trail}".strip(), error=True, title=title)
        else:
            warning = record.trained.warning
            words = [lead, moves_text(self.moved, text, self.names), changed_text(self.moved), warning, trail]
            self.say(" ".join(word for word in words if word), warning=bool(warning), title=title)

    # ---- jobs ------------------------------------------------------------------------------------------------------

    def job_changed(self, record: JobRecord, event: Event | None) -> None:
        """An event of a job: losses are kept, and what shows jobs is asked to draw."""
        if isinstance(event, Progress) and event.loss is not None and record.kind in {"train", "gate"}:
            self.runs.add_loss(event.scope or "gate", event.done, event.loss)
        self.ask_jobs()

    def ask_jobs(self) -> None:
        """Everything that shows jobs draws."""
        self.refresh_status()
        self.jobs_pane.ask()
        if not self.trained_names:
            self.refresh_desk()

    def refresh_status(self) -> None:
        """The status line."""
        raise AssertionError

    def pane_of(self, widget: Widget | None) -> str | None:
        """The id of the pane a widget is in."""
        raise AssertionError(widget)

    @on(JobsPane.CancelPressed)
    def _cancel_pressed(self) -> None:
        record = self.board.running()
        if record is None:
            self.say("No job is running.")
        else:
            self.cancel_record(record)

    def cancel_record(self, record: JobRecord) -> None:
        """Stop a job and say what it took."""

        async def stop() -> None:
            how = await self.board.cancel(record)
            self.say(f"{record.title}: {how}.")

        self.background(stop, "job-cancel", "cancel job")

    def ask_cancel_job(self) -> bool:
        """Esc with a job running: the second press within two seconds stops it. False when no job runs."""
        record = self.board.running("train", "export")
        if record is None:
            return False
        if monotonic() - self._cancel_asked < _TWICE_SECONDS:
            self._cancel_asked = 0.0
            self.cancel_record(record)
        else:
            self._cancel_asked = monotonic()
            self.say(f"Esc again stops: {record.title}.", warning=True)
        return True

    # ---- judging ---------------------------------------------------------------------------------------------------

    async def action_evaluate(self) -> None:
        """Judge the gate by folds."""
        await self._report(Evaluate(), "judging the gate")

    async def action_drift(self) -> None:
        """What freezing costs."""
        await self._report(Drift(prompts=self._saved_prompts()), "measuring what freezing costs")

    def _saved_prompts(self) -> list[str]:
        """The prompts of all sets beside the document, each once, in order."""
        try:
            return PromptSets(self.setup.path).prompts()
        except PromptSetsError as error:
            self.say(f"The saved prompts are left out: {error}", warning=True)
            return []

    async def _report(self, request: Evaluate | Drift, title: str) -> None:
        if not self.link.ready:
            self.say("This needs the engine, which is not ready yet.", warning=True)
            return
        if len(self.trained_names) < 2:
            self.say(f"This needs a trained gate: {self.key('train.all')} trains it.", warning=True)
            return
        from dlm_tui.app.screens.report import ReportScreen

        screen = ReportScreen(title, self.names, self.marks)
        screen.on_line = self.open_line
        await self.app.push_screen(screen)
        worker = self.background(partial(self._run_report, screen, request), "report", title, exclusive=True)
        screen.on_closed = worker.cancel

    async def _run_report(self, screen: object, request: Evaluate | Drift) -> None:
        from dlm_tui.app.screens.report import ReportScreen

        assert isinstance(screen, ReportScreen)
        finished = False
        try:
            async for event in self.link.stream(request):
                if isinstance(event, Progress):
                    screen.show_progress(event)
                elif isinstance(event, Evaluated):
                    screen.show_evaluation(event.report)
                elif isinstance(event, Drifted):
                    screen.show_drift(event.report)
                elif isinstance(event, Failed):
                    screen.show_problem(event.text)
            finished = True
        except EngineGone as error:
            screen.show_problem(str(error))
            finished = True
        finally:
            if not finished:
                await self.link.cancel(request)

    def open_line(self, line: int) -> None:
        """Open the document at a line."""
        raise AssertionError(line)

    # ---- metrics ---------------------------------------------------------------------------------------------------

    _metrics_version: object = None

    def poll_metrics(self) -> None:
        """Read the history in a thread when the database has changed."""
        self.background(self._read_metrics, "metrics", "metrics", exclusive=True)

    async def _read_metrics(self) -> None:
        reader = MetricsReader(self.store)
        version = await asyncio.to_thread(reader.data_version)
        if version == self._metrics_version:
            return
        history = await asyncio.to_thread(reader.gate_overview, 400)
        self._metrics_version = version
        if history:
            self.gate_run = history[-1].run_id
        self.runs.show_history(history, self.names, self.marks)
